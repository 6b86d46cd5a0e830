"""`sapwood ab`: the report in the terminal, as JSON and as a page; switches; and what people get wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ab.trial import PLAN, Clock, Trial, plan_with, trial
from sapwood.ab.plan import Arm, Plan
from sapwood.cli.main import main
from sapwood.config import save_yaml

HOSTILE = '<script>alert(1)</script>"'


def experiment(folder: Path, plan: Plan, n: int = 60) -> Path:
    save_yaml(plan, folder / "plan.yaml")
    running = trial(plan, folder / "plan.db")
    running.crowd(n, (0.2, 0.9), seconds=(5, 5))
    running.book.close()
    return folder / "plan.yaml"


def test_a_report_in_words_and_numbers_and_as_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "verdict.json").write_text(json.dumps({"difference": {"mean": 0.1, "low": 0.05, "high": 0.15}}))
    plan = plan_with(arms=(PLAN.arms[0], Arm(name=HOSTILE, share=0.5)), offline=folder / "run")
    path = experiment(folder, replace(plan, guardrails=()), 120)
    assert main(["ab", "report", str(path), "--out", str(folder / "out.html"), "--json", str(folder / "out.json")]) == 0
    told, found = capsys.readouterr().err, json.loads((folder / "out.json").read_text())
    assert told.lstrip().startswith("Ship")
    assert "The split is as planned" in told
    assert "Offline predicted +0.1 [+0.05, +0.15], online shows" in told
    assert "more than was predicted" in found["predicted"]["line"]
    assert found["decision"] == "ship"
    assert found["comparisons"][0]["primary"]["n"] == 120
    assert len(found["comparisons"][0]["over_time"]) > 20
    page = (folder / "out.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'class="curve"' in page


def test_a_report_without_units_and_one_of_a_changed_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment(folder, PLAN, 0)
    save_yaml(replace(PLAN, effect=0.07), path)
    assert main(["ab", "report", str(path), "--out", str(folder / "out.html")]) == 0
    told = capsys.readouterr().err
    assert "Keep running" in told
    assert "The plan has changed since the test began (effect)" in told


def test_a_broken_split_shows_no_gain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_with(arms=(PLAN.arms[0], Arm(name="b", share=0.5)))
    save_yaml(plan, folder / "plan.yaml")
    running = LossyTrial(plan, (made := trial(plan, folder / "plan.db")).book, made.clock)
    running.crowd(160, (0.2, 0.9))
    running.book.close()
    assert main(["ab", "report", str(folder / "plan.yaml"), "--out", str(folder / "out.html")]) == 0
    told = capsys.readouterr().err
    assert "Split broken" in told
    assert "gain (positive" not in told
    assert "Not shown: the split is broken." in (folder / "out.html").read_text()


class LossyTrial(Trial):
    """Every unit of the control is lost on the way but one in eight."""

    def crowd(self, n: int, rates: tuple[float, ...], seed: int = 0, prefix: str = "u", seconds: tuple[float, ...] = ()) -> None:
        from sapwood.ab.assign import unit_of

        for number in range(n):
            unit = unit_of(self.plan, f"u{number}")
            if self.book.look(unit, None).arm == 1 or number % 8 == 0:
                self.book.expose(unit, None, f"e{number}")


def test_arms_are_switched_by_hand_and_the_report_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment(folder, PLAN, 10)
    assert main(["ab", "stop", str(path), "short", "--why", "users wrote in", "--json", str(folder / "out.json")]) == 0
    assert json.loads((folder / "out.json").read_text()) == {"arm": "short", "on": False, "changed": True}
    running = trial(PLAN, folder / "plan.db", Clock())
    running.asked = 1000
    assert {running.ask(f"new{number}") for number in range(20)} == {0}
    running.book.close()
    assert main(["ab", "report", "short", "--records", str(folder / "plan.db")]) == 0
    assert "switched off: users wrote in" in capsys.readouterr().err
    assert main(["ab", "resume", str(path), "short"]) == 0
    assert main(["ab", "resume", str(path), "short"]) == 0
    assert "short is on already" in capsys.readouterr().err


def test_an_arm_that_does_harm_is_not_resumed_in_vain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, fallback in (("falls-back", True), ("stays", False)):
        plan = plan_with(name=name, fallback=fallback)
        path = folder / f"{name}.yaml"
        save_yaml(plan, path)
        running = trial(plan, path.with_suffix(".db"))
        running.crowd(400, (0.9, 0.2), seconds=(5, 5))
        running.book.switch(1, False, "harm")
        running.book.close()
        assert main(["ab", "resume", str(path), "short"]) == (2 if fallback else 0)
        assert ("short stays off: short is worse" in capsys.readouterr().err) is fallback


def test_sizes_follow_what_is_expected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_yaml(PLAN, folder / "plan.yaml")
    needed = []
    for flags in ([], ["--rate", "0.1"], ["--power", "0.5"]):
        assert main(["ab", "size", str(folder / "plan.yaml"), *flags, "--json", str(folder / "out.json")]) == 0
        needed.append(json.loads((folder / "out.json").read_text())["needed"])
    assert needed[0] > max(needed[1:])
    assert f"write `units: {needed[0]}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["rport"], 2, "Did you mean 'report'"),
        ([], 2, "Name an action"),
        (["report"], 2, "Name the plan's file"),
        (["report", "none.yaml"], 2, "no such file"),
        (["report", "plan.yaml"], 1, "no such file"),
        (["report", "a", "b"], 2, "one plan"),
        (["report", "x", "--records", "mysql://h/d"], 2, "not in 'mysql'"),
        (["stop", "plan.yaml"], 2, "and one arm"),
        (["size"], 2, "one plan"),
        (["size", "plan.yaml", "--rate", "1.5"], 2, "between 0 and 1"),
        (["report", "plan.yaml", "--recods", "x"], 2, "Did you mean 'records'"),
    ],
)
def test_what_people_get_wrong_is_said(
    words: list[str], code: int, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    save_yaml(PLAN, folder / "plan.yaml")
    assert main(["ab", *words]) == code
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_an_arm_that_is_not_there_cannot_be_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment(folder, PLAN, 0)
    assert main(["ab", "stop", str(path), "shrt"]) == 2
    assert "Did you mean 'short'" in capsys.readouterr().err
