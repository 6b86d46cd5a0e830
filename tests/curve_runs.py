"""Tiny models that are really trained, healthy and with a fault planted in each: the curves that the reader of curves is held to.

`python tests/curve_runs.py` trains them all (a minute) and writes tests/evaluate/curves/; tests read those files, so that they
are quick and the same on every machine, and train one or two of them anew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sapwood.model import LanguageModel, LoraConfig
from sapwood.records import Example, Row, Source
from sapwood.run import step_records
from sapwood.train import OptimConfig, SftConfig, StepReport
from sapwood.train.order import step_examples
from train.tiny_training import tiny_lm, train

FOLDER = Path(__file__).parent / "evaluate" / "curves"
KEPT = ("kind", "step", "loss", "grad_norm", "lr", "epoch", "parts")
"""What of a record the reader reads."""
SYMBOLS = 40
"""Tokens of the small languages."""

Records = list[dict[str, Any]]
Tune = Callable[..., Records]


def language(count: int, *, seed: int, chain: int = 0, length: tuple[int, int] = (6, 14)) -> list[Example]:
    """Texts of a Markov chain: each token has a few likely successors, so that a loss of some 1.2 nats is the lowest there is."""
    rng = np.random.default_rng([chain, 1])
    next_SS = rng.dirichlet(np.full(SYMBOLS, 0.06), SYMBOLS)
    rng = np.random.default_rng([chain, 2, seed])
    return [_example(line, _walk(next_SS, rng, int(rng.integers(*length)) + 2), 2) for line in range(count)]


def _walk(next_SS: Any, rng: np.random.Generator, length: int) -> Any:
    token, path = int(rng.integers(SYMBOLS)), []
    for _ in range(length):
        path.append(token + 2)
        token = int(rng.choice(SYMBOLS, p=next_SS[token]))
    return np.array(path)


def sums(count: int, *, seed: int, wrong: float = 0.0) -> list[Example]:
    """Two symbols in, their sum by the clock out: a rule that holds for rows that were never seen. A share of the answers is wrong."""
    rng = np.random.default_rng([seed, 3])
    found = []
    for line in range(count):
        a, b = rng.integers(SYMBOLS, size=2)
        answer = rng.integers(SYMBOLS) if rng.random() < wrong else min(a, b)
        found.append(_example(line, np.array([a + 2, 60, b + 2, 61, answer + 2, 1]), 4))
    return found


def labels(count: int, *, seed: int) -> list[Example]:
    """One of five answers, by the kind of the third token."""
    rng = np.random.default_rng([seed, 4])
    texts = [rng.integers(SYMBOLS, size=6) for _ in range(count)]
    return [_example(line, np.concatenate([text + 2, [50 + int(text[2]) % 5, 1]]), 6) for line, text in enumerate(texts)]


def noise(count: int, *, seed: int) -> list[Example]:
    """Rows in which nothing leads to anything."""
    rng = np.random.default_rng([seed, 5])
    return [_example(line, rng.integers(45, 96, size=12), 2) for line in range(count)]


def _example(line: int, tokens: Any, prompt: int) -> Example:
    completion = tokens[prompt:]
    return Example((Row(tokens[:prompt], completion, np.ones(len(completion), dtype=np.float32)),), Source("made.jsonl", line + 1))


FULL = SftConfig(full=True, batch=8, budget=4000, optim=OptimConfig(lr=3e-3))


def tuned(config: SftConfig, examples: Sequence[Example], held_out: Sequence[Example], *, model: LanguageModel | None = None) -> Records:
    """The metrics of a run."""
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), config, examples=examples, held_out=held_out, model=model)
        return kept(Path(folder))


def resumed(config: SftConfig, examples: Sequence[Example], held_out: Sequence[Example], stops: Sequence[int]) -> Records:
    """The same of a run that is stopped at some steps, and goes on each time."""
    with tempfile.TemporaryDirectory() as name:
        for stop in stops:

            def report(done: StepReport, stop: int = stop) -> None:
                if done.step == stop:
                    raise KeyboardInterrupt

            with suppress(KeyboardInterrupt):
                train(Path(name), config, examples=examples, held_out=held_out, report=report)
        train(Path(name), config, examples=examples, held_out=held_out)
        return kept(Path(name))


def kept(folder: Path) -> Records:
    """What the reader reads of a run's metrics, to six digits."""
    return [_rounded({key: record[key] for key in KEPT if key in record}) for record in step_records(folder / "metrics.jsonl")]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def speaker() -> LanguageModel:
    """A model that speaks one small language already, as a base model does; what is tuned is an adapter that teaches another."""
    model = tiny_lm()
    model.module.load_state_dict(_spoken())
    return model


@cache
def _spoken() -> dict[str, Any]:
    model = tiny_lm()
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), replace(FULL, max_steps=150), examples=language(600, seed=7, chain=1), model=model)
    return {name: tensor.detach().clone() for name, tensor in model.module.state_dict().items()}


def _with(config: SftConfig, lr: float | None = None, schedule: str = "cosine", **knobs: Any) -> SftConfig:
    optim = OptimConfig(lr=lr or config.optim.lr, schedule=schedule)  # type: ignore[arg-type]
    return replace(config, optim=optim, **knobs)


ADAPTER = SftConfig(batch=8, budget=4000, lora=LoraConfig(r=8), optim=OptimConfig(lr=5e-3))
HEALTHY: dict[str, Callable[[], Records]] = {
    "one epoch": lambda: tuned(_with(FULL), language(640, seed=0), language(48, seed=1)),
    "one epoch of noisy batches": lambda: tuned(_with(FULL, lr=1.5e-3, batch=2, seed=1), language(300, seed=2), language(48, seed=3)),
    "eight steps": lambda: tuned(_with(FULL, lr=6e-3, max_steps=8), language(200, seed=4), language(48, seed=5)),
    "warm-up, stable, decay": lambda: tuned(_with(FULL, schedule="wsd", max_steps=90), language(800, seed=6), language(48, seed=7)),
    "four held-out rows": lambda: tuned(_with(FULL, max_steps=60), language(500, seed=8), language(4, seed=9)),
    "resumed": lambda: resumed(_with(FULL, max_steps=60, save_every=15), language(500, seed=10), language(40, seed=11), (22, 41)),
    "nothing held out": lambda: tuned(_with(FULL, schedule="constant", max_steps=80), labels(700, seed=12), []),
    "a rule, two epochs": lambda: tuned(_with(FULL, epochs=2, batch=16, lr=6e-3), labels(800, seed=13), labels(60, seed=14)),
    "answers of which some are wrong": lambda: tuned(
        _with(FULL, batch=16, max_steps=80), sums(1300, seed=15, wrong=0.2), sums(80, seed=16)
    ),
    "an adapter": lambda: tuned(_with(ADAPTER, max_steps=90), language(700, seed=17), language(48, seed=18), model=speaker()),
}
FAULTY: dict[str, Callable[[], Records]] = {
    "overfitting": lambda: tuned(_with(FULL, epochs=40, eval_every=30), language(48, seed=20), language(48, seed=21)),
    "memorisation": lambda: tuned(_with(FULL, epochs=80), language(8, seed=22), language(40, seed=23)),
    "underfitting": lambda: tuned(_with(FULL, lr=2e-4, max_steps=60), language(480, seed=24), language(48, seed=25)),
    "stuck": lambda: tuned(_with(FULL, lr=1e-6, max_steps=60), language(480, seed=26), language(48, seed=27)),
    "diverging": lambda: tuned(_with(ADAPTER, lr=1.0, max_steps=60), language(480, seed=35), language(48, seed=29), model=speaker()),
    "made worse": lambda: tuned(
        _with(ADAPTER, lr=0.3, schedule="constant", max_steps=60),
        language(480, seed=33, chain=1),
        language(48, seed=34, chain=1),
        model=speaker(),
    ),
    "spikes": lambda: spiked(),
}
PLANTED = {
    "overfitting": {"overfitting", "memorisation"},
    "memorisation": {"overfitting", "memorisation"},
    "underfitting": {"underfitting"},
    "stuck": {"stuck"},
    "diverging": {"diverging"},
    "made worse": {"diverging"},
    "spikes": {"spikes"},
}
"""What the reader says of each."""


def spiked() -> Records:
    """One batch in the middle of the run holds rows of noise."""
    config, examples = _with(FULL, max_steps=60), language(480, seed=30)
    for place, row in zip(step_examples(36, num_examples=480, batch=8, epochs=1.0, seed=0), noise(8, seed=31), strict=True):
        examples[int(place)] = row
    return tuned(config, examples, language(48, seed=32))


def path_of(name: str) -> Path:
    """The file of a run."""
    return FOLDER / f"{name.replace(' ', '-').replace(',', '')}.jsonl"


def read(name: str) -> Records:
    """A committed run."""
    return [orjson.loads(line) for line in path_of(name).read_bytes().splitlines()]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make in {**HEALTHY, **FAULTY}.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            path_of(name).write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in make()))
            print(name)
