"""The tables of docs/performance.md that follow from committed results, and a command that writes them anew.

    python -m bench.performance_page

In: `bench/results/sft-WORKLOAD.json`, `eval.json`, `growth.json`, `together.json`, `memory.json` and `start.json`, as far as they are
there. Out: what stands between the page's marks: of each workload the share of the limit, the ratios to TRL, memory and losses beside
their aims, and where the time of a step goes where a profile was made; how cost grows; what bringing rows together does to the loss;
memory by unique tokens; how long a start takes. A result that is not there is said to be missing, and a test holds the page to all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.result import result_of, write_blocks
from bench.setting import ROOT

PAGE, MODULE = ROOT / "docs" / "performance.md", "bench.performance_page"
MISSING = "No result is committed yet."
PROFILED, PROFILED_SHARE = 7, 0.02
"""Operations of a profile that the page names, and the share from which it names one."""


@dataclass(frozen=True)
class Aim:
    """What a workload was to reach; None where nothing was named."""

    share: float | None = None
    tuned: float | None = None
    defaults: float | None = None


AIMS = {
    "tools": Aim(0.70, 7, 20),
    "chat": Aim(0.75, 2.2, 5),
    "multiturn": Aim(0.70, 2.2, 5),
    "multiturn-reasoning": Aim(0.65, 5),
    "group": Aim(0.60, 6),
    "pairs": Aim(0.60, 2.5),
    "long": Aim(),
    "natural": Aim(),
}


def lines(results: dict[str, dict[str, Any] | None], choices: dict[str, Any] | None) -> list[str]:
    """What the page says."""
    told = [
        "| workload | share of the limit | times as fast as TRL tuned | as TRL's defaults | memory, into TRL tuned's | "
        "into its defaults' | loss differs by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, aim in AIMS.items():
        found = results.get(name)
        told.append(f"| `{name}` | no result is committed yet | | | | | |" if found is None else _row(name, found, aim))
    if choices is not None:
        told.append(
            f"| 100 multiple-choice questions, 5 examples | | {choices['ratio']:.1f} × lm-eval (6) | | | | "
            f"{choices['largest_difference_nats']:.1e} nats |"
        )
    told += ["", "In brackets: the aim. Where no ratio stands, no peer ran.", ""]
    for name, found in results.items():
        if found is not None and found.get("profile"):
            told += _profile(name, found)
    return told


def _row(name: str, found: dict[str, Any], aim: Aim) -> str:
    memory, defaults = found.get("memory_ratio"), found.get("memory_ratio_to_defaults")
    alike = found["max_relative_loss_difference_to_fp32"] if found.get("in_fp32") else found["max_relative_loss_difference"]
    cells = [
        f"`{name}`",
        f"**{found['share_of_limit']:.1%}**" + ("" if aim.share is None else f" ({aim.share:.0%})"),
        _times(found["ratio_to_tuned"], aim.tuned),
        _times(found["ratio_to_defaults"], aim.defaults),
        "" if memory is None else f"{memory:.2f}",
        "" if defaults is None else f"{defaults:.2f}",
        "" if alike is None else f"{alike:.2%}" + (" (to fp32)" if found.get("in_fp32") else ""),
    ]
    return f"| {' | '.join(cells)} |".replace("%", " %")


def _times(ratio: float | None, aim: float | None) -> str:
    return "" if ratio is None else f"**{ratio:.2f}**" + ("" if aim is None else f" ({aim:g})")


def _profile(name: str, found: dict[str, Any]) -> list[str]:
    named = [line for line in found["profile"] if line["share"] >= PROFILED_SHARE][:PROFILED]
    rest = 1 - sum(line["share"] for line in named)
    table = [f"| {line['share']:.1%} | `{line['operation']}` |" for line in named]
    table.append(f"| {rest:.1%} | everything else |")
    return [f"Where a step of `{name}` goes:", "", "| share | operation |", "|---|---|", *(row.replace("%", " %") for row in table), ""]


def growth(found: dict[str, Any] | None) -> list[str]:
    """How the gain grows along each axis, beside what the number of tokens alone would give."""
    if found is None:
        return [MISSING]
    told = ["| axis | | times as fast as apart (by tokens alone) |", "|---|---|---|"]
    for axis, words in (("sharing", "tokens in common"), ("rows", "rows under one prompt"), ("width", "width of the model")):
        at = [f"{point['at']:.0%}".replace("%", " %") if axis == "sharing" else f"{point['at']:,}" for point in found[axis]]
        ratios = [f"{point['ratio']:.1f} ({point['token_ratio']:.1f})" for point in found[axis]]
        told.append(f"| {words} | {', '.join(at)} | {', '.join(ratios)} |")
    cost = [point["seconds"]["forest"] / point["unique_tokens"] for point in found["length"]]
    lengths = ", ".join(f"{point['at']:,}" for point in found["length"])
    costs = ", ".join(f"{each / cost[0]:.2f}" for each in cost)
    return [*told, "", f"A token of one row of {lengths} tokens, where nothing is shared, costs {costs} of what it costs in the shortest."]


def together(found: dict[str, Any] | None) -> list[str]:
    """Held-out losses with rows at random and brought together, seed by seed."""
    if found is None:
        return [MISSING]
    told = ["| seed | held-out loss before | after, at random | after, together | difference |", "|---" * 5 + "|"]
    runs = found["runs"]
    for apart, alike in zip(runs[::2], runs[1::2], strict=True):
        losses = f"{apart['before']:.3f} | {apart['after']:.4f} | {alike['after']:.4f} | {alike['after'] - apart['after']:+.4f}"
        told.append(f"| {apart['seed']} | {losses} |")
    return [
        *told,
        "",
        f"{found['examples']} examples in steps of {found['batch']}, {found['held_out']} held out, one epoch. Mean difference "
        f"{found['mean_difference']:+.4f} nats a token; seeds alone, at random, spread by "
        f"{found['spread_of_seeds']:.4f} (standard deviation).",
    ]


def memory(found: dict[str, Any] | None) -> list[str]:
    """Peak memory by unique tokens: predicted, and measured."""
    if found is None:
        return [MISSING]
    told = ["| rows | unique tokens of a pass | row tokens | predicted | measured | off by |", "|---|---|---|---|---|---|"]
    for point in found["points"]:
        sizes = f"{point['predicted_bytes'] / 2**30:.2f} GiB | {point['peak_bytes'] / 2**30:.2f} GiB | {point['off']:+.0%}".replace(
            "%", " %"
        )
        told.append(f"| {point['kind']} | {point['unique_tokens']:,} | {point['row_tokens']:,} | {sizes} |")
    return told


def start(found: dict[str, Any] | None) -> list[str]:
    """How long people wait."""
    if found is None:
        return [MISSING]
    told = ["| from the command to | Sapwood | the first time on a machine | the peer's script | peer into ours |", "|---|---|---|---|---|"]
    for kind, words, peer in (("train", "the first step", "TRL"), ("answer", "the first word", "transformers")):
        seconds = [f"{found[kind][name]['median_seconds']:.1f} s" for name in ("Sapwood", "Sapwood, the first time", peer)]
        told.append(f"| {words} | {' | '.join(seconds)} ({peer}) | {found[f'ratio_{kind}']:.2f} |")
    return told


def blocks() -> dict[str, list[str]]:
    """What stands between each pair of marks, from what is committed."""
    steps = lines({name: result_of(f"sft-{name}") for name in AIMS}, result_of("eval"))
    return {
        "steps": "\n".join(steps).strip().splitlines(),
        "growth": growth(result_of("growth")),
        "together": together(result_of("together")),
        "memory": memory(result_of("memory")),
        "start": start(result_of("start")),
    }


def main() -> None:
    """Write the blocks into the page."""
    write_blocks(PAGE, MODULE, blocks())


if __name__ == "__main__":
    main()
