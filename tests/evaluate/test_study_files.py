"""A study's files: that they agree, hide what they should, cannot be broken by hostile text, and are read by others' tools."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import made_study
import pytest
from made_study import HOSTILE, write

from sapwood.errors import ConfigError
from sapwood.evaluate.costs import own_cost
from sapwood.evaluate.experiment import ArmScore
from sapwood.evaluate.scatter import scatter
from sapwood.evaluate.several_answers import several_answers
from sapwood.evaluate.spending import Purse, announcement, break_evens, costs_of, pareto
from sapwood.evaluate.study_files import file_names
from sapwood.evaluate.study_page import render_study
from sapwood.evaluate.study_text import markdown
from sapwood.requirements import Prices
from sapwood.run import read_json, read_records


def test_every_file_says_the_same(tmp_path: Path) -> None:
    record = write(tmp_path / "study", 200)
    assert record["answer"] == "ship"
    assert read_json(tmp_path / "study" / "ship.json") == json.loads(json.dumps({"schema": 1, **record}))
    page, text = ((tmp_path / "study" / name).read_text() for name in ("report.html", "report.md"))
    assert "Ship it" in page
    assert text.startswith("# refunds: ship\n\nShip tuned: +")
    for check in record["checks"]:
        assert check["text"] in text
        assert check["name"] in page
    suite = ElementTree.parse(tmp_path / "study" / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(record["checks"])), "0")


def test_the_worst_regressions_come_first_weighed_by_severity(tmp_path: Path) -> None:
    record = write(tmp_path / "study", rude=True)
    assert record["answer"] == "don't ship"
    with (tmp_path / "study" / "items.csv").open() as file:
        rows = list(csv.DictReader(file))
    hurts = [float(row["hurt"] or 0) for row in rows]
    assert hurts == sorted(hurts, reverse=True)
    assert len(rows) == 60
    suite = ElementTree.parse(tmp_path / "study" / "junit.xml").getroot()
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["veto: rude"]


def test_a_spreadsheet_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_study, "HOSTILE", "=cmd|' /C calc'!A0")
    write(tmp_path / "study")
    with (tmp_path / "study" / "items.csv").open() as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any("cmd|" in cell for cell in cells)
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)


def test_without_texts_none_is_in_any_report(tmp_path: Path) -> None:
    write(tmp_path / "study", texts=False)
    for name in ("report.html", "report.md", "items.csv", "junit.xml", "ship.json"):
        text = (tmp_path / "study" / name).read_text()
        for secret in ("How much is refund", "euros", "mails.jsonl", "onerror"):
            assert secret not in text, (name, secret)
    assert not (tmp_path / "study" / "lm-eval").exists()
    write(tmp_path / "open")
    assert "How much is refund" in (tmp_path / "open" / "report.html").read_text()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    write(tmp_path / "study", about=HOSTILE)
    page = (tmp_path / "study" / "report.html").read_text()
    assert "<img" not in page
    assert page.count("</script>") == 2, "the data and the program, nothing else"
    assert "<img" not in (tmp_path / "study" / "report.md").read_text()


def test_samples_in_lm_evals_form(tmp_path: Path) -> None:
    write(tmp_path / "study")
    files = sorted((tmp_path / "study" / "lm-eval").iterdir())
    assert [file.name for file in files] == [f"samples_items_{arm}.jsonl" for arm in ("few-shot-4", "plain-prompt", "tuned")]
    records = read_records(files[-1])
    wanted = {
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "filter",
        "metrics",
        "doc_hash",
        "prompt_hash",
        "target_hash",
    }
    assert len(records) == 60
    for record in records:
        assert wanted <= set(record)
        assert record["right"] in (0.0, 1.0)
        assert record["metrics"] == ["right"]
    assert [record["doc_id"] for record in records] == list(range(60))


def test_a_plan_that_came_late_is_told(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "scores.jsonl").write_text('{"arm": "tuned"}\n')
    (tmp_path / "study" / "run.json").write_text('{"schema": 1}')
    record = write(tmp_path / "study")
    assert record["caveats"][0].startswith("The plan was declared AFTER")
    assert "AFTER answers were seen" in (tmp_path / "study" / "report.md").read_text()


def scored(arm: str, rate: float, seconds: float, read: int = 100, written: int = 10) -> list[ArmScore]:
    return [ArmScore(arm, f"i{k}", None, float(k < 10 * rate), "", "", "", "stop", read, written, seconds) for k in range(10)]


def test_the_pareto_line_holds_what_nothing_beats() -> None:
    scores = [*scored("cheap", 0.3, 1), *scored("bad", 0.2, 2), *scored("good", 0.9, 5), *scored("dear", 0.8, 9)]
    costs = costs_of(scores, Prices(machine_hour=1.0))
    assert pareto(costs) == ("cheap", "good")
    assert pareto(costs_of(scores, Prices())) == ("cheap", "good"), "in seconds where no price is known"
    assert costs["good"] == own_cost("good", scored("good", 0.9, 5), Prices(machine_hour=1.0))
    evens = break_evens("cheap", costs, 3600.0, Prices(machine_hour=1.0))
    assert evens["good"].queries == pytest.approx(1000 * 1.0 / (costs["good"].a_thousand - costs["cheap"].a_thousand))  # type: ignore[operator]
    arms = [{"name": name, "rate": cost.rate, "pareto": name in pareto(costs), "cost": cost.to_dict()} for name, cost in costs.items()]
    drawn = scatter(arms, "cheap")
    assert drawn.count("<circle") == 4
    assert drawn.count('class="pareto"') == 1
    assert scatter(arms[:1], "cheap") == ""


def test_a_purse_stops_before_it_is_empty() -> None:
    items = made_study.made(4)
    purse = Purse(Prices(hosted_in=1000.0, hosted_out=1000.0), 100, limit=0.5)
    assert purse.affords(items[:1])
    purse.pay(scored("hosted model", 1.0, 0, 20, 20))
    assert purse.spent == pytest.approx(0.4)
    assert not purse.affords(items)
    assert "stopped at max_cost 0.5: 0.4 was spent" in purse.stopped
    assert Purse(Prices(), 100, limit=None).affords(items)
    for prices, limit in ((Prices(), 1.0), (Prices(hosted_in=1, hosted_out=1), 0.0)):
        with pytest.raises(ConfigError, match="max_cost"):
            Purse(prices, 100, limit=limit)


def test_what_leaves_the_machine_is_said_before() -> None:
    said = " ".join(announcement("http://far/v1", "big", made_study.made(4), 2, Purse(Prices(hosted_in=2.0, hosted_out=6.0), 50, 1.0)))
    for words in ("http://far/v1", "(model big)", "4 questions, 2 times", "not its reference", "at most 400 come back", "it stops at 1"):
        assert words in said
    unknown = " ".join(announcement("http://far/v1", "big", made_study.made(4), 1, Purse(Prices(), 50, None)))
    assert "no cost is counted" in unknown


def test_no_two_arms_share_a_file() -> None:
    assert file_names(["few-shot 4", "tuned"]) == ["few-shot-4", "tuned"]
    alike = ["a b", "a-b", "a-b-1", "A/B"]
    assert file_names(alike) == ["a-b-1", "a-b-2", "a-b-1-3", "A-B-4"]
    assert len({name.casefold() for name in file_names(["run", "RUN"])}) == 2, "where the disk does not tell cases apart"


def test_what_people_and_their_judge_say_stands_in_the_report(tmp_path: Path) -> None:
    assert "What people say" not in (write(tmp_path / "study") and (tmp_path / "study" / "report.html").read_text())
    rate = {"name": "tuned", "against": "plain prompt", "mean": 0.8, "low": 0.7, "high": 0.9, "votes": 40}
    people = {"votes": 40, "raters": 2, "cases": 20, "alpha": 0.5, "alpha_interval": [0.2, 0.8], "kind": "pair", "rates": [rate]}
    judge = {"cases": 20, "same": 15, "share": 0.75, "low": 0.5, "high": 0.9}
    (tmp_path / "study" / "people.json").write_text(json.dumps(people | {"judge": judge, "judge_card": "tiny: agrees on 40%"}))
    write(tmp_path / "study")
    page = " ".join((tmp_path / "study" / "report.html").read_text().split())
    assert "40 blind votes of 2 on 20 cases. They agree with α 0.50 [0.20, 0.80]" in page
    assert "70.0 – 90.0 %" in page
    assert "The judge tiny: agrees on 40%." in page


def test_the_queries_as_they_were_logged(tmp_path: Path) -> None:
    """One item stands for nearly all queries: what it gained is what people meet, whatever the other items say."""
    assert write(tmp_path / "even")["as_logged"] is None
    plain = write(tmp_path / "ones", counts=lambda place: 1)["as_logged"]
    even = write(tmp_path / "again")["difference"]
    assert plain["mean"] == pytest.approx(even["mean"])
    assert plain["low"] == pytest.approx(even["low"], abs=0.05)
    found = write(tmp_path / "one", counts=lambda place: 10_000 if place == 0 else 1 if place < 30 else None)["as_logged"]
    assert (found["n"], found["queries"]) == (30, 10_029)
    assert found["mean"] in (pytest.approx(-1, abs=0.01), pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert "Over the queries as they were logged (30 items that stand for 10,029)" in (tmp_path / "one" / "report.md").read_text()
    assert "that stand for 10,029)" in (tmp_path / "one" / "report.html").read_text().replace("\u202f", ",")


def test_several_answers_to_each_item(tmp_path: Path) -> None:
    record = write(tmp_path / "once")
    assert record["several"] == []
    marks = {"a": (1, 1, 0), "b": (0, 0, 0), "c": (1, 1, 1), "d": (1, None, 1)}
    scores = [
        ArmScore("tuned", item, None, value, str(n % 2) if item == "a" else "x", "", f"it is {n}", "stop", 1, 1, 0.1, sample=n)
        for item, values in marks.items()
        for n, value in enumerate(values)
    ]
    found = several_answers(scores, "tuned")
    assert found is not None
    assert (found["k"], found["items"], found["left_out"]) == (3, 3, 1), "what could not be judged is no answer that is wrong"
    assert [found[key]["rate"] for key in ("any", "all")] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert found["majority"]["rate"] == pytest.approx((0.5 + 0 + 1) / 3), (
        "of a's answers 0, 1, 0 the commonest is right once and wrong once"
    )
    assert found["distinct"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    assert several_answers(scores, "plain") is None
    several = [dataclasses.replace(score, arm="plain") for score in scores] + scores
    page = render_study({**record, "several": [several_answers(several, arm) for arm in ("plain", "tuned")]}, [])
    assert "One of them right (pass@3)" in page
    assert "## 3 answers to each item" in markdown({**record, "several": [found]})
