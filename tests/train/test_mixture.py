"""Mixtures: each source as often as its weight says, no example before the others have come, and all of it a function of the step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import CheckpointError
from sapwood.records import Mixture, mixture_of
from sapwood.train import SftConfig, StepReport
from sapwood.train.order import epoch_length, num_steps, step_examples
from train.tiny_training import random_examples, train, trained_steps


def mixture(sizes: list[int], weights: list[float]) -> Mixture:
    source_B = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return Mixture(tuple(f"{name}.jsonl" for name in "abc"[: len(sizes)]), tuple(weights), source_B)


def line(mix: Mixture, batch: int, epochs: float, seed: int) -> list[int]:
    count = len(mix.source_B)
    steps = num_steps(epoch_length(count, mix), batch, epochs)
    kinds: dict[str, Any] = {"num_examples": count, "batch": batch, "epochs": epochs, "seed": seed, "mixture": mix}
    return [int(example) for step in range(steps) for example in step_examples(step, **kinds)]


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=3)
WEIGHTS = st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 3.7])


@given(sizes=SIZES, data=st.data(), batch=st.integers(1, 9), epochs=st.integers(1, 5), seed=st.integers(0, 2**63 - 1))
def test_each_epoch_holds_each_source_as_often_as_its_weight_says(
    sizes: list[int], data: st.DataObject, batch: int, epochs: int, seed: int
) -> None:
    mix = mixture(sizes, [data.draw(WEIGHTS) for _ in sizes])
    whole = line(mix, batch, epochs, seed)
    length = epoch_length(len(mix.source_B), mix)
    assert len(whole) == length * epochs
    for epoch in range(epochs):
        held = Counter(int(mix.source_B[example]) for example in whole[epoch * length : (epoch + 1) * length])
        expected = [max(1, round(size * weight)) for size, weight in zip(sizes, mix.weights, strict=True)]
        assert [held[source] for source in range(len(sizes))] == expected
    times = Counter(whole)
    for source in range(len(sizes)):
        of_it = [times[int(example)] for example in np.flatnonzero(mix.source_B == source)]
        assert max(of_it) - min(of_it) <= 1, "all of a source comes before one of it comes again"


def test_a_step_needs_no_other_step() -> None:
    mix = mixture([5, 7], [2.0, 0.5])
    kinds: dict[str, Any] = {"num_examples": 12, "batch": 4, "seed": 3, "mixture": mix}
    forwards = [step_examples(step, epochs=30, **kinds).tolist() for step in range(60)]
    backwards = [step_examples(step, epochs=50, **kinds).tolist() for step in reversed(range(60))][::-1]
    assert forwards == backwards
    assert forwards != [step_examples(step, epochs=30, **{**kinds, "seed": 4}).tolist() for step in range(60)]


def test_sources_are_stirred_together() -> None:
    mix = mixture([40, 40], [1.0, 2.0])
    sources = mix.source_B[line(mix, 8, 1, 0)]
    firsts = [int((sources[start : start + 30] == 0).sum()) for start in range(0, 120, 30)]
    assert all(4 <= number <= 16 for number in firsts)


def test_weights_of_one_are_no_mixture() -> None:
    assert mixture_of(["a", "b"], [1.0, 1.0], np.zeros(3, np.int64)) is None
    assert mixture_of(["a", "b"], [1.0, 2.0], np.zeros(3, np.int64)) is not None


class StopError(Exception):
    """Somebody pulled the plug."""


def test_a_run_on_a_mixture_goes_on_to_the_bit_and_only_with_it(tmp_path: Path) -> None:
    examples, config = random_examples(6), SftConfig(batch=2, epochs=2, budget=1000, save_every=2)
    mix = Mixture(("a", "b"), (2.0, 0.5), np.array([0, 0, 1, 1, 1, 1]))

    def stop(done: StepReport) -> None:
        if done.step == 3:
            raise StopError

    train(tmp_path / "whole", config, examples=examples, mixture=mix)
    assert len(trained_steps(tmp_path / "whole")) == 6, "two examples twice and two of four, twice, two a step"
    with pytest.raises(StopError):
        train(tmp_path / "stopped", config, examples=examples, mixture=mix, report=stop)
    for other in (None, Mixture(("a", "b"), (2.0, 1.0), mix.source_B), Mixture(("a", "b"), (2.0, 0.5), mix.source_B[::-1])):
        with pytest.raises(CheckpointError, match="on other rows"):
            train(tmp_path / "stopped", config, examples=examples, mixture=other)
    train(tmp_path / "stopped", config, examples=examples, mixture=mix)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
