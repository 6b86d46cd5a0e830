"""The page of a decision: what decision.json says stands on it, its chart is drawn to scale, and no damage keeps it from opening."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest

from sapwood.evaluate.report import html_fragment, write_report
from sapwood.evaluate.report_decision import decision_view
from sapwood.evaluate.report_files import read_run


def estimate(middle: float, low: float, high: float) -> dict[str, Any]:
    return {"middle": middle, "low": low, "high": high}


LINE = [{"rows": rows, "rate": estimate(rate, rate - 0.1, rate + 0.1)} for rows, rate in ((50, 0.3), (200, 0.5), (800, 0.6), (5000, 0.7))]
RECORD: dict[str, Any] = {
    "schema": 1,
    "answer": "yes",
    "why": "tuning on all 800 rows <b>helps</b>.",
    "next_steps": ["Train."],
    "reasons": [
        {"name": "performance", "holds": True, "line": "it gains <script>"},
        {"name": "cost", "holds": None, "line": "not weighed"},
    ],
    "rows": 800,
    "items": 40,
    "scorer": "exact",
    "gain": 0.05,
    "wish": 0.9,
    "best_without_tuning": "plain prompt",
    "arms": {"plain prompt": {"rate": 0.2, "low": 0.1, "high": 0.3}, "tuned on 200 rows": {"rate": 0.5, "low": 0.4, "high": 0.6}},
    "pilot": [{"arm": "tuned on 200 rows", "rows": 200, "seed": 0, "rate": 0.5}],
    "forms": {"name": "numbers", "arms": {"plain prompt": {"share": 0.35}}},
    "costs": {"plain prompt": {"rate": 0.2, "dollars_a_thousand": 0.5, "dollars_a_right_answer": 0.0025, "tokens_in": 120, "seconds": 0.3}},
    "break_even": {"dollars_once": 100, "saved_a_thousand": 2, "queries": 50_000, "months": 5},
    "curve": {
        "level": 0.9,
        "all_rows": {"rows": 800, "rate": estimate(0.6, 0.5, 0.7)},
        "line": LINE,
        "rows_for": {"wish": {"rate": 0.9, "rows": {"middle": None, "low": 7_654, "high": None}}},
    },
}


def page(folder: Path, record: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("data: [my.jsonl]\n")
    (folder / "decision.json").write_bytes(orjson.dumps(record))
    return write_report(folder).read_text()


def test_the_page_says_what_was_decided(tmp_path: Path) -> None:
    shown = page(tmp_path / "run", RECORD)
    for words in (
        "Should you fine-tune?",
        "Tuning on all 800 rows &lt;b&gt;helps&lt;/b&gt;. Train.",
        "it gains &lt;script&gt;",
        "expected to give 60 %, between 50 and 70",
        "7,700 to never",
        "$0.50",
        "$2.50",
        "35 %",
        "Even after 50,000 queries or 5.0 months",
        "How many rows does it take?",
    ):
        assert words in shown, words
    assert "Did fine-tuning help?" not in shown
    assert "General skill" not in shown
    assert shown.count("<title>Yes") == 1
    assert "Tuning on all 800 rows" in html_fragment(tmp_path / "run")


def test_the_chart_is_drawn_to_scale(tmp_path: Path) -> None:
    page(tmp_path / "run", RECORD)
    view = decision_view(read_run(tmp_path / "run"))
    assert view is not None
    chart = ElementTree.fromstring(str(view.chart))
    looks = {path.get("class"): path.get("d", "") for path in chart.iter("path")}
    x, y = map(float, re.findall(r"M([\d.]+) ([\d.]+)h0", looks["ink dots"])[0])
    assert (x, y) == (pytest.approx(30.10, abs=0.01), 50), "200 is a factor 4 of 100 from 50 to 5,000: log 4 / log 100"
    assert looks["other"] == "M0 80.00H100"
    assert looks["wish"] == "M0 10.00H100"
    assert looks["mark"].startswith("M60.21 "), "log 16 / log 100"
    ticks = [span.text for span in chart.iter("span") if span.get("class") == "x"]
    assert ticks == ["50", "100", "200", "500", "800", "2,000", "5,000"]
    assert looks["band"].count("L") == 2 * len(LINE) - 1


def places(record: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = record.keys() if isinstance(record, dict) else range(len(record)) if isinstance(record, list) else ()
    return [path, *(deeper for key in keys for deeper in places(record[key], (*path, key)))]


@pytest.mark.parametrize("value", [None, "text", -7.5, [], {}, [3]])
def test_no_damage_keeps_the_page_from_opening(tmp_path: Path, value: Any) -> None:
    for number, path in enumerate(place for place in places(RECORD) if place and place[-1] != "schema"):
        record = copy.deepcopy(RECORD)
        holder = record
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.yaml").write_text("data: [my.jsonl]\n")
        (tmp_path / "run" / "decision.json").write_bytes(orjson.dumps(record))
        try:
            decision_view(read_run(tmp_path / "run"))
            if number % 20 == 0:
                write_report(tmp_path / "run")
        except Exception as error:
            raise AssertionError(f"{path} = {value!r}") from error
