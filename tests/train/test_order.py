"""Which examples a step holds, and at which learning rate: pure functions of the step."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import ConfigError
from sapwood.records import Example, Row
from sapwood.train import OptimConfig
from sapwood.train.optimizer import learning_rate
from sapwood.train.order import Kin, kin_of, num_steps, step_examples


def whole_run(count: int, batch: int, epochs: float, seed: int) -> list[list[int]]:
    steps = num_steps(count, batch, epochs)
    return [step_examples(step, num_examples=count, batch=batch, epochs=epochs, seed=seed).tolist() for step in range(steps)]


@given(count=st.integers(1, 60), batch=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 2**63))
def test_each_example_is_trained_once_an_epoch_and_epochs_follow_each_other(count: int, batch: int, epochs: int, seed: int) -> None:
    steps = whole_run(count, batch, epochs, seed)
    assert all(len(step) == batch for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= batch
    line = [example for step in steps for example in step]
    assert [sorted(line[start : start + count]) for start in range(0, len(line), count)] == [list(range(count))] * epochs


@given(count=st.integers(1, 60), batch=st.integers(1, 20), epochs=st.floats(0.01, 3), seed=st.integers(0, 1000))
def test_a_part_of_an_epoch_differs_by_one_time_at_most(count: int, batch: int, epochs: float, seed: int) -> None:
    times = Counter(example for step in whole_run(count, batch, epochs, seed) for example in step)
    assert sum(times.values()) == max(1, round(count * epochs))
    counts = [times[example] for example in range(count)]
    assert max(counts) - min(counts) <= 1


@given(step=st.integers(0, 40), seed=st.integers(0, 1000))
def test_a_step_needs_no_other_step(step: int, seed: int) -> None:
    """Asked first or last, for a short run or a long one, a step holds the same."""
    kinds = {"num_examples": 7, "batch": 3, "seed": seed}
    alone = step_examples(step, epochs=20, **kinds)
    later = [step_examples(s, epochs=25, **kinds) for s in reversed(range(41))][40 - step]
    assert alone.tolist() == later.tolist()


@given(
    count=st.integers(1, 60),
    families=st.integers(1, 9),
    batch=st.integers(1, 12),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_families_fill_steps_and_every_epoch_trains_what_it_would_have(
    count: int, families: int, batch: int, epochs: int, seed: int
) -> None:
    family_B = np.random.default_rng(seed).integers(0, families, count)
    kinds: dict[str, Any] = {"num_examples": count, "batch": batch, "epochs": epochs, "seed": seed, "kin": Kin(family_B)}
    line = [example for step in range(num_steps(count, batch, epochs)) for example in step_examples(step, **kinds).tolist()]
    for start in range(0, len(line), count):
        epoch = line[start : start + count]
        assert sorted(epoch) == list(range(count))
        steps = [epoch[place : place + batch] for place in range(0, count, batch)]
        alone = sum(len(step) == batch and len(set(family_B[step])) == 1 for step in steps)
        assert alone >= sum(int(members) // batch for members in np.bincount(family_B))


def test_who_is_kin() -> None:
    def example(*ids: int) -> Example:
        return Example((Row(np.array(ids), np.array([7]), np.ones(1, np.float32)),))

    examples = [example(1, 2, 3), example(1, 2, 4), example(2, 2, 3), example(1, 2), example(1, 2)]
    assert kin_of(examples, 0) is None
    families = [kin.family_B.tolist() for tokens in (2, 3) if (kin := kin_of(examples, tokens)) is not None]
    assert families[0] == [0, 0, 1, 0, 0]
    assert len(set(families[1])) == 5  # what is shorter is of no family, though it is alike


def test_a_late_step_costs_what_an_early_one_does() -> None:
    far = step_examples(10**12, num_examples=10, batch=4, epochs=10**13, seed=3)
    assert sorted({*far.tolist()} | set(range(10))) == list(range(10))


def test_seeds_and_epochs_are_shuffled_apart() -> None:
    orders = {tuple(np.concatenate(whole_run(50, 10, 1, seed)).astype(int)) for seed in range(20)}
    assert len(orders) == 20
    epochs = np.concatenate(whole_run(50, 10, 3, 0)).reshape(3, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@given(steps=st.integers(3, 300), warmup=st.floats(0, 0.9), final=st.floats(0, 1), decay=st.floats(0, 0.1))
def test_the_schedule_is_the_closed_form(schedule: str, steps: int, warmup: float, final: float, decay: float) -> None:
    read: dict[str, Any] = {"final": final} if schedule != "constant" else {}
    config = OptimConfig(lr=0.5, schedule=schedule, warmup=warmup, **read, **({"decay": decay} if schedule == "wsd" else {}))  # type: ignore[arg-type]
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    rising = max(1, round(warmup * steps)) if warmup else 0
    late = round(decay * steps)
    for step, rate in enumerate(rates):
        if step < rising:
            assert rate == pytest.approx(0.5 * (step + 1) / rising, abs=1e-12)
            continue
        progress = (step - rising) / max(1, steps - 1 - rising)
        falling = {
            "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
            "linear": 1 - progress,
            "constant": 1.0,
            "wsd": 1.0 if step < steps - late else 1 - (step - (steps - 1 - late)) / late,
        }[schedule]
        expected = 0.5 * falling if schedule == "constant" else 0.5 * (final + (1 - final) * falling)
        assert rate == pytest.approx(expected, abs=1e-12)
    assert max(rates) <= 0.5 + 1e-12
    if steps - 1 - rising >= 1 and (schedule in ("cosine", "linear") or (schedule == "wsd" and late)):
        assert rates[-1] == pytest.approx(0.5 * final, abs=1e-12)


def test_a_late_fall_keeps_the_peak_until_then() -> None:
    config = OptimConfig(lr=1.0, schedule="wsd", warmup=0.1, decay=0.3, final=0.0)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[1:14] == [1.0] * 13
    assert rates[13:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"schedule": "constant", "final": 0.5}, "optim.final is 0.5, but optim.schedule constant"),
        ({"decay": 0.5}, "optim.decay is 0.5, but optim.schedule cosine"),
        ({"optimizer": "adafactor", "beta1": 0.5}, "optim.beta1 is 0.5, but optim.optimizer adafactor"),
        ({"optimizer": "adafactor", "eps": 1e-6}, "optim.eps is 1e-06, but optim.optimizer adafactor"),
        ({"schedule": "wsd", "warmup": 0.5, "decay": 0.6}, "together they are at most 1"),
    ],
)
def test_a_knob_that_nothing_would_read_is_refused(knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        OptimConfig(**knobs)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_or_two_steps_trains_at_the_peak(steps: int) -> None:
    assert learning_rate(OptimConfig(lr=0.5), 0, steps) == 0.5


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("warmup", -0.1),
        ("decay", -0.1),
        ("b_ratio", 0.0),
        ("warmup", math.nan),
        ("final", 1.1),
        ("weight_decay", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("eps", -1e-8),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
    ],
)
def test_a_knob_out_of_range_is_named(knob: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"optim.{knob} is {value}"):
        OptimConfig(**{knob: value})
