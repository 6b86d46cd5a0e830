"""`sapwood bench eval --against lm-eval`: multiple-choice questions with a few-shot block, by Sapwood and by lm-eval's own backend.

Both are the same `LM` interface of lm-eval 0.4.13, the same requests, the same weights in fp32, one process, one number of threads;
rounds alternate. lm-eval sorts its requests by length and batches them; its batch sizes are tried first, and the fastest is what counts.
Questions and options are made of common words drawn at random: the work does not depend on what they say. With `--questions mmlu-slice`
they are MMLU's own, whose options are letters: of one token each, so that lm-eval too computes a question once for all four.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.rounds import alternate, at_least, ratio, summary
from bench.setting import commit, machine
from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.chat import Chat
from sapwood.cli.options import Json, parse, screen_for
from sapwood.evaluate.benchmark_sets import choose
from sapwood.model import load_model
from sapwood.recipes.harness import ForestLM

OURS, THEIRS = "sapwood", "lm-eval"
_COMMON = "time people way water day part sound work place year back thing name sentence line right boy form land light"


@dataclass(frozen=True, kw_only=True)
class EvalBench:
    """Scoring of multiple-choice questions."""

    against: Literal["lm-eval"] = "lm-eval"
    """The peer."""
    model: str = DEFAULT_MODEL
    """A name or a folder."""
    questions: Literal["words", "mmlu-slice"] = "words"
    """What is asked: random words with options of several tokens, or MMLU's questions with letters as options."""
    items: int = 100
    """Questions."""
    shots: int = 5
    """Examples before each, the same for all."""
    words: int = 30
    """Words of a question."""
    options: int = 4
    """Options of each question."""
    option_words: int = 4
    """Words of an option, which is several tokens."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Batch sizes of the peer that are tried on a tenth of the questions; the fastest is taken."""
    rounds: int = 1
    """Rounds of A B."""
    threads: int | None = None
    """Threads of torch; all that it takes by itself where not given."""

    def __post_init__(self) -> None:
        at_least(1, items=self.items, words=self.words, option_words=self.option_words, rounds=self.rounds)
        at_least(2, options=self.options)


def requests(config: EvalBench) -> list[Instance]:
    """One request an option, as lm-eval's own multiple-choice task makes them."""
    if config.questions != "words":
        return _from_benchmark(config)
    draw = random.Random(0)
    common = _COMMON.split()

    def some(count: int) -> str:
        return " ".join(draw.choices(common, k=count))

    examples = "".join(f"Question: {some(config.words)}?\nAnswer: {some(config.option_words)}\n\n" for _ in range(config.shots))
    made = []
    for document in range(config.items):
        context = f"{examples}Question: {some(config.words)}?\nAnswer:"
        for place in range(config.options):
            pair = (context, f" {some(config.option_words)}")
            made.append(Instance("loglikelihood", {}, pair, place, ("bench", document, 1)))
    return made


def _from_benchmark(config: EvalBench) -> list[Instance]:
    chosen = choose(config.questions, shots=config.shots, limit=config.items)
    examples = "".join(f"{one.query}{one.choices[one.gold]}\n\n" for one in chosen.examples)
    return [
        Instance("loglikelihood", {}, (examples + question.query, option), place, ("bench", document, 1))
        for document, question in enumerate(chosen.asked)
        for place, option in enumerate(question.choices)
    ]


def run(words: list[str], json: Json) -> None:
    """Measure, show, write."""
    config = parse(EvalBench(), "bench eval", words, "Multiple-choice questions, by Sapwood's scorer and by lm-eval's own backend.")
    screen = screen_for(json)
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = resolve_model(config.model)
    asked = requests(config)
    ours = ForestLM(load_model(folder, "fp32", device="cpu"), Chat.load(folder))
    theirs, batch = _peer(folder, config, asked, screen.say)
    answers: dict[str, Any] = {}

    def timed(name: str, lm: Any) -> float:
        began = time.perf_counter()
        answers[name] = lm.loglikelihood(asked, disable_tqdm=True)
        return time.perf_counter() - began

    work = {OURS: lambda: timed(OURS, ours), THEIRS: lambda: timed(THEIRS, theirs)}
    times = alternate(work, config.rounds, lambda number, name, took: screen.say(f"round {number + 1}, {name}: {took:.1f} s"))
    found = ratio(times[THEIRS], times[OURS])
    difference = max(abs(mine[0] - other[0]) for mine, other in zip(answers[OURS], answers[THEIRS], strict=True))
    same = sum(mine[1] == other[1] for mine, other in zip(answers[OURS], answers[THEIRS], strict=True))
    screen.say(f"{config.items} questions, {config.shots}-shot: {found:.1f} times as fast as {THEIRS}", "bold")
    screen.say(f"largest difference of an option's log-likelihood: {difference:.2g} nats; {same} of {len(asked)} are called greedy alike")
    json.write(
        {
            "workload": "eval",
            "settings": asdict(config),
            "peer_batch": batch,
            "commit": commit(),
            "machine": machine(),
            "ratio": found,
            "times": {name: summary(taken, len(asked)) for name, taken in times.items()},
            "largest_difference_nats": difference,
            "greedy_alike": same,
            "requests": len(asked),
        }
    )


def _peer(folder: Path, config: EvalBench, asked: list[Instance], say: Any) -> tuple[Any, int]:
    """lm-eval's backend with the batch size that is fastest here."""
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    part = asked[: max(config.options, len(asked) // 10)]
    tried = []
    for batch in config.batches:
        lm = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=batch, device="cpu")
        began = time.perf_counter()
        lm.loglikelihood(part, disable_tqdm=True)
        tried.append((time.perf_counter() - began, batch))
        say(f"{THEIRS} with batches of {batch}: {tried[-1][0]:.1f} s for {len(part)} options")
    best = min(tried)[1]
    return HFLM(pretrained=module, tokenizer=tokenizer, batch_size=best, device="cpu"), best
