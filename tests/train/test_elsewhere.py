"""A run that goes on under other circumstances, rows that do not fit into memory, and memory that runs out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pytest
import torch

from sapwood.errors import TrainingError
from sapwood.model import LoraConfig
from sapwood.records import FACT, Example, Facts, fact_of
from sapwood.train import SftConfig, StepReport
from sapwood.train import step as step_file
from sapwood.train.step import accumulate
from train.tiny_training import random_examples, tiny_lm, train, trained_steps

CONFIG = SftConfig(batch=2, epochs=3, budget=1000, save_every=4, lora=LoraConfig(r=4))


class StopError(Exception):
    """Somebody pulled the plug."""


def stop(done: StepReport) -> None:
    if done.step == 3:
        raise StopError


@pytest.fixture
def rows_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The places of the examples of each step, as they come."""
    found: list[list[str]] = []
    loop: Any = sys.modules["sapwood.train.sft"]
    original = loop.accumulate

    def listening(model: Any, examples: Sequence[Example], *rest: Any, **more: Any) -> Any:
        found.append([example.where for example in examples])
        return original(model, examples, *rest, **more)

    monkeypatch.setattr(loop, "accumulate", listening)
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_another_number_of_threads_and_another_budget_train_the_same_rows(tmp_path: Path, rows_of_steps: list[list[str]]) -> None:
    torch.set_num_threads(1)
    train(tmp_path / "whole", CONFIG)
    expected = list(rows_of_steps)
    rows_of_steps.clear()
    with pytest.raises(StopError):
        train(tmp_path / "stopped", CONFIG, report=stop)
    torch.set_num_threads(2)
    said: list[str] = []
    train(tmp_path / "stopped", replace(CONFIG, budget=40), say=said.append)
    assert rows_of_steps == expected
    assert len(expected) == 9
    assert any("threads (1 then, 2 now)" in sentence and "on the same rows" in sentence for sentence in said)
    losses = [[record["loss"] for record in trained_steps(tmp_path / name)] for name in ("whole", "stopped")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


class OnDisk(Sequence[Example]):
    """Examples that are made when they are asked for, with facts that are known before."""

    def __init__(self, count: int) -> None:
        self._few = random_examples(7)
        self._count = count
        self.asked = 0
        facts = np.array([fact_of(example) for example in self._few], dtype=FACT)
        self.facts = Facts(np.resize(facts, count))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Any:
        assert isinstance(index, int | np.integer), "nobody slices all of them"
        self.asked += 1
        return self._few[index % 7]

    def __iter__(self) -> Iterator[Example]:
        raise AssertionError("nobody goes through all of them")


def test_many_rows_are_trained_on_without_being_read(tmp_path: Path) -> None:
    asked = []
    for count in (5_000, 200_000):
        examples = OnDisk(count)
        train(tmp_path / str(count), replace(CONFIG, max_steps=4), examples=examples)
        asked.append(examples.asked)
    assert asked[1] < 5_000
    assert asked[0] == asked[1], "what is read does not grow with the rows"


@pytest.mark.parametrize(
    ("examples", "advice"),
    [
        (
            random_examples(4),
            r"pass over (\d+) tokens \(made\.jsonl:\d among them\) does not fit into memory\. Give --budget \d+, which takes",
        ),
        (random_examples(1), r"holds one example, which is not cut: give --checkpointing True"),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you asked for 9 bytes"), MemoryError()])
def test_memory_that_runs_out_is_told_with_what_would_fit(
    monkeypatch: pytest.MonkeyPatch, examples: list[Example], advice: str, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(step_file, "supervised", full)
    with pytest.raises(TrainingError, match=advice):
        accumulate(tiny_lm(), examples, 10_000)


def test_another_error_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(step_file, "supervised", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        accumulate(tiny_lm(), random_examples(2), 10_000)
    assert not isinstance(caught.value, TrainingError)
