"""The reader of curves on curves made from a formula, where it is known what was planted."""

from __future__ import annotations

import pytest
from made_curves import made_curves

from sapwood.evaluate.curves import read_curves


def names(**made: object) -> list[str]:
    return [finding.name for finding in read_curves(made_curves(**made))]  # type: ignore[arg-type]


def test_a_healthy_run_converges() -> None:
    [finding] = read_curves(made_curves())
    assert finding.name == "converged"
    assert not finding.alarm
    assert finding.remedy == ""


def test_nothing_is_said_of_nothing() -> None:
    assert read_curves([]) == []
    assert read_curves(made_curves(steps=1, evals=2)) == []


@pytest.mark.parametrize("steps", [8, 60, 400])
def test_overfitting_is_found_where_it_begins(steps: int) -> None:
    [finding] = read_curves(made_curves(steps=steps, rise=0.8, floor=0.6, evals=9))
    assert finding.name == "overfitting"
    assert finding.alarm
    assert finding.step is not None
    assert steps / 4 <= finding.step <= 3 * steps / 4
    assert "--epochs" in finding.remedy


def test_a_spike_is_found_at_its_step() -> None:
    spikes = next(finding for finding in read_curves(made_curves(spike=33)) if finding.name == "spikes")
    assert spikes.step == 33
    assert spikes.evidence["count"] == 1


def test_a_loss_that_does_not_move_is_stuck_and_one_that_hardly_does_underfits() -> None:
    assert names(time=200.0) == ["stuck"]
    assert names(time=12.0) == ["underfitting"]
