"""The lines of docs/generation.md that follow from committed results, and a command that writes them anew.

    python -m bench.generate_page

In: `bench/results/generate-*.json` (of `sapwood bench generate --against transformers,llamacpp`, one of each kind of processor),
`same-answers.json` (of `python -m bench.same_answers`) and `constrained.json` (of `python -m bench.constrained`), as far as they are
there. Out: what stands between the page's two marks. A result that is not there is said to be missing, and a test holds the page to
that, too.
"""

from __future__ import annotations

from typing import Any

from bench.result import result_of, write_blocks
from bench.setting import ROOT

PAGE, MODULE = ROOT / "docs" / "generation.md", "bench.generate_page"
ROWS = (
    ("ratio_transformers_decode", "decoding, distinct prompts", "transformers, times as fast", 4.0),
    ("ratio_transformers_distinct", "all, distinct prompts", "transformers, times as fast", 2.5),
    ("ratio_transformers_shared", "all, samples under one system prompt", "transformers, times as fast", 7.0),
    ("ratio_llamacpp", "all, distinct prompts", "llama.cpp, times as fast", 1.0),
    ("first_token_llamacpp", "first token", "llama.cpp, our time over its", 1.3),
)
"""Key, what was done, against whom, what was aimed at."""
PROCESSORS = {"Zen 5": "generate-zen5", "Zen 4": "generate-zen4"}
"""Results by what they ran on."""


def lines(speeds: dict[str, dict[str, Any]], answers: dict[str, Any] | None, held: dict[str, Any] | None) -> list[str]:
    """What the page says of the results. `speeds`: those of `bench generate` by processor."""
    if not speeds:
        found = ["No result of `sapwood bench generate` from a quiet machine is committed yet."]
    else:
        found = [f"| | against | {' | '.join(speeds)} | aim |", "|---" * (3 + len(speeds)) + "|"]
        for key, done, whom, aim in ROWS:
            measured = " | ".join(f"{speed[key]:.2f}" for speed in speeds.values())
            found.append(f"| {done} | {whom} | {measured} | {aim:g} |")
    if held is not None:
        cost = ", ".join(f"{held[f'overhead_wall{end}']:.1%}" for end in ("_lowest", "", "_highest")).replace("%", " %")
        found += [
            "",
            f"Constraints: {held['valid']:,} of {held['schemas']:,} answers to random JSON schemas ended and are valid; decoding takes so",
        ]
        found[-1] += f" much more time on the clock (least, median, most of the rounds; aim: 10 %): {cost}."
    if answers is None:
        return [*found, "", "No result of `python -m bench.same_answers` is committed yet."]
    told = f"{answers['tokens']} greedy tokens of {answers['prompts']} answers in fp32"
    told = f"{told}, {answers['ties']} ties, {answers['different']} different"
    near = f"{answers['logprob_distance']:.1e} from training's in fp32, where training's own are {answers['training_to_itself']:.1e}"
    near = f"{near} from themselves when rows run in one pass or alone, and {answers['logprob_distance_fp64']:.0e} in fp64"
    return [*found, "", f"{answers['model']}: {told}; log-probabilities are at most {near}."]


def speeds() -> dict[str, dict[str, Any]]:
    """Committed results of `bench generate`, by processor."""
    found = {processor: result_of(name) for processor, name in PROCESSORS.items()}
    return {processor: result for processor, result in found.items() if result is not None}


def main() -> None:
    """Write the lines into the page."""
    write_blocks(PAGE, MODULE, {"measured": lines(speeds(), result_of("same-answers"), result_of("constrained"))})


if __name__ == "__main__":
    main()
