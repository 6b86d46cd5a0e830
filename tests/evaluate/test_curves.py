"""The reader of curves on runs that were really trained: each planted fault is found, and no healthy run gives an alarm."""

from __future__ import annotations

from typing import Any

import pytest

from curve_pictures import PICTURES, SHOWN, drawn
from curve_pictures import path_of as picture_of
from curve_runs import FAULTY, HEALTHY, PLANTED, Records, path_of, read
from sapwood.evaluate.curves import CurveFinding, read_curves


def alarms(records: Records, **more: Any) -> list[CurveFinding]:
    return [finding for finding in read_curves(records, **more) if finding.alarm]


def test_every_run_is_committed() -> None:
    names = {path_of(name).name for name in {**HEALTHY, **FAULTY}}
    assert names == {path.name for path in path_of("stuck").parent.iterdir()}
    assert len(HEALTHY) == 10


@pytest.mark.parametrize("name", HEALTHY)
def test_no_alarm_on_a_healthy_run(name: str) -> None:
    records = read(name)
    assert alarms(records) == []
    steps = max(record["step"] for record in records)
    for share in (0.25, 0.5, 0.75):  # nor while it is under way
        assert alarms([record for record in records if record["step"] <= share * steps]) == []


@pytest.mark.parametrize("name", FAULTY)
def test_a_planted_fault_is_found_and_nothing_else(name: str) -> None:
    found = alarms(read(name))
    assert {finding.name for finding in found} == PLANTED[name]
    for finding in found:
        assert finding.text[-1] == "."
        assert "--" in finding.remedy, "a remedy names the flag to change"
        assert finding.line.startswith(finding.name[0].upper() + finding.name[1:] + ": ")
        assert finding.to_dict()["alarm"] is True


def test_the_evidence_is_the_curve_s_own() -> None:
    records = read("overfitting")
    held_out = {record["step"]: record["loss"] for record in records if record["kind"] == "eval"}
    best = min(held_out, key=lambda step: held_out[step])
    finding = next(finding for finding in alarms(records) if finding.name == "overfitting")
    assert finding.step == best
    assert (finding.evidence["best"], finding.evidence["last"]) == (held_out[best], held_out[max(held_out)])
    assert f"lowest at step {best} ({held_out[best]:.3f})" in finding.text
    trained = next(record["epoch"] for record in records if record["kind"] == "train" and record["step"] == best)
    assert f"--epochs {trained:.1f}" in finding.remedy
    [spike] = alarms(read("spikes"))
    assert spike.step == 37
    [stuck] = alarms(read("stuck"))
    assert "--lr 1.0e-05" in stuck.remedy, "ten times the run's rate"


def test_where_the_best_state_is_the_result_the_rise_behind_it_is_no_alarm() -> None:
    records = read("overfitting")
    best, end = 60, 240
    records.append({"kind": "chosen", "step": end, "chosen": best, "loss": 4.381, "last_loss": 5.742})
    found = read_curves(records)
    assert [finding.name for finding in found if finding.alarm] == []
    assert next(finding for finding in found if finding.name == "overfitting").remedy == (
        "The result is the state of that step, so none of it is lost."
    )


def test_a_run_of_an_older_version_is_read_with_more_doubt() -> None:
    """Without the losses of parts, and without epochs, only what is plain is said."""
    for name in {**HEALTHY, **FAULTY}:
        old = [{key: value for key, value in record.items() if key not in ("parts", "epoch")} for record in read(name)]
        found = {finding.name for finding in alarms(old)}
        assert found <= PLANTED.get(name, set())
        if name == "overfitting":
            assert found == {"overfitting"}


def sample(step: int, answer: str = "blue", reference: Any = "blue", ended: str | None = "stop") -> dict[str, Any]:
    return {"step": step, "answer": answer, "reference": reference, "ended": ended, "right": None}


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([sample(8, ended="length")] * 3, "3 of 3 sample answers at step 8 run to the limit without an end."),
        ([sample(8, ended="length")] * 2 + [sample(8)], "2 of 3 sample answers at step 8 run to"),
        ([sample(8, ended="length")] + [sample(8)] * 2, ""),
        ([sample(0, ended="length")] * 3, ""),
        ([sample(0, ended="length")] * 3 + [sample(8)] * 3, ""),
        ([sample(8, "a call", {"name": "f"})] * 3, "3 of 3 sample answers at step 8 are not JSON, as the references are."),
        ([sample(8, '{"name": "f"}', '{"name": "g"}')] * 3, ""),
        ([sample(8, "blue", '{"name": "g"}')] * 2 + [sample(8, "blue", "a word")], ""),
        ([sample(8, ended=None)] * 3, ""),
        ([], ""),
    ],
)
def test_answers_that_do_not_end_or_lack_the_form(samples: list[dict[str, Any]], said: str) -> None:
    found = [finding for finding in alarms(read("eight steps"), samples=samples) if finding.name == "format not learned"]
    assert [finding.text.startswith(said) for finding in found] == [True] * bool(said)


@pytest.mark.parametrize(("asked", "right", "said"), [(20, 0.0, True), (20, 0.5, False), (19, 0.0, False), (96, 30.0, False)])
def test_a_model_that_answers_nothing_right_is_no_healthy_one(asked: int, right: float, said: bool) -> None:
    verdict = {"tuned": "tuned", "arms": {"tuned": {"n": asked, "right": right}, "plain": {"n": asked, "right": 0}}}
    found = alarms(read("a rule, two epochs"), verdict=verdict)
    assert [finding.text for finding in found] == [f"none of {asked} held-out answers is right after training."] * said


@pytest.mark.parametrize("verdict", [{"arms": 3, "tuned": "x"}, {"arms": {"x": []}, "tuned": "x"}, {"arms": {}, "tuned": None}, {}])
def test_a_verdict_without_such_an_arm_says_nothing(verdict: dict[str, Any]) -> None:
    assert alarms(read("a rule, two epochs"), verdict=verdict) == []


@pytest.mark.parametrize("name", FAULTY)
def test_the_same_faults_trained_anew(name: str) -> None:
    assert {finding.name for finding in alarms(FAULTY[name]())} == PLANTED[name]


def flat(text: str) -> str:
    """A page's text without its line breaks and marks of quotation."""
    return " ".join(text.replace("\n>", "\n").split())


@pytest.mark.parametrize("name", SHOWN)
def test_the_page_shows_the_runs_as_they_are_read(name: str) -> None:
    page = flat((PICTURES.parent / "curves.md").read_text())
    assert f"pictures/{picture_of(name).name}" in page
    assert picture_of(name).read_text() == drawn(name), "draw them again: python tests/curve_pictures.py"
    main = read_curves(read(name))
    assert any(flat(finding.line) in page for finding in main)
    if name in FAULTY:
        assert all(flat(finding.line) in page for finding in main if finding.alarm and finding.name == name)
