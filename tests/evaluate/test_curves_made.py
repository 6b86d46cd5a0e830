"""The reader of curves on curves made from a formula, where it is known what was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_curves import healthy_curves, made_curves

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


@pytest.mark.parametrize(("rises", "found"), [([0.1] * 6, ["overfitting"]), ([0.75, -0.05, 0.04, -0.03, 0.02, -0.13], [])])
def test_a_rise_that_one_part_of_the_rows_makes_is_not_one(rises: list[float], found: list[str]) -> None:
    """The held-out loss is the same in both: by its parts it is known how far it would vary with other rows."""
    records = made_curves(epochs=4, floor=0.6)
    for record in [record for record in records if record["kind"] == "eval"]:
        late = max(0.0, record["step"] / 60 - 0.5) * 2
        low = 0.5 + 2 * max(0.0, 0.5 - record["step"] / 60)
        record["parts"] = [low + 0.1 * place + late * (rise + 0.01 * place) for place, rise in enumerate(rises)]
        record["loss"] = float(np.mean(record["parts"]))
    for record in [record for record in records if record["kind"] == "train"]:
        record["loss"] = 1.5 - record["step"] / 60 + 0.01 * (-1) ** record["step"]
    assert [finding.name for finding in read_curves(records) if finding.alarm] == found


def test_a_spike_is_found_at_its_step() -> None:
    spikes = next(finding for finding in read_curves(made_curves(spike=33)) if finding.name == "spikes")
    assert spikes.step == 33
    assert spikes.evidence["count"] == 1


def test_a_loss_that_does_not_move_is_stuck_and_one_that_hardly_does_underfits() -> None:
    assert names(time=200.0) == ["stuck"]
    assert names(time=12.0) == ["underfitting"]


@given(st.integers(0, 10**6))
@settings(max_examples=150)
def test_what_is_said_is_a_function_of_what_is_recorded_and_harmless(seed: int) -> None:
    """Any healthy curve, with records cut away anywhere: never an error, and what is said names steps that there are."""
    rng = np.random.default_rng(seed)
    records = [record for record in healthy_curves(seed) if rng.random() < 0.9]
    for finding in read_curves(records):
        assert finding.step is None or finding.step in {record["step"] for record in records}
        assert read_curves(records)[0] == read_curves(list(records))[0]
        assert "nan" not in finding.line
        assert "inf" not in finding.line


@pytest.mark.parametrize("damage", [{"loss": None}, {"loss": "high"}, {"parts": [None]}, {"parts": "x"}, {"lr": None}, {"epoch": "two"}])
def test_damaged_records_are_left_out(damage: dict[str, object]) -> None:
    records = made_curves()
    for record in records[::3]:
        record |= damage
    assert not [finding for finding in read_curves(records) if finding.alarm]


@pytest.mark.slow
def test_false_alarms_on_three_thousand_healthy_runs() -> None:
    """docs/curves.md says this number."""
    alarmed = [seed for seed in range(3000) if any(finding.alarm for finding in read_curves(healthy_curves(seed)))]
    page = (Path(__file__).parents[2] / "docs" / "curves.md").read_text()
    assert f"**{len(alarmed)} of 3,000**" in page


@pytest.mark.parametrize(
    "planted", [{"rise": 0.8, "floor": 0.6, "evals": 9}, {"spike": 33}, {"time": 200.0}, {"time": 12.0}], ids=lambda planted: str(planted)
)
def test_planted_faults_are_found_whatever_the_noise(planted: dict[str, float]) -> None:
    name = {"rise": "overfitting", "spike": "spikes"}.get(next(iter(planted)), "stuck" if planted.get("time") == 200 else "underfitting")
    found = sum(name in names(seed=seed, noise=0.05, **planted) for seed in range(40))
    assert found >= 38
