"""The requirements that docs/study.md shows are requirements, and the example is whole."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

from sapwood.requirements import read_requirements

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "study.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.replace("\n> ", " ").split())


def test_the_requirements_of_the_example_can_be_read() -> None:
    found = read_requirements(Path(__file__).parents[1] / "examples" / "study_bfcl.yaml")
    assert [skill.name for skill in found.general] == ["mmlu-slice", "reasoning-gym:chain_sum"]
    assert found.decision.gain == 0.05


def test_the_requirements_that_are_shown_can_be_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "requirements.yaml").write_text(block)
    found = read_requirements(tmp_path / "requirements.yaml")
    assert found.primary.name == "right"
    assert [error.name for error in found.vetoes] == ["wrong amount"]


def test_the_page_shows_what_the_example_types() -> None:
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "study_bfcl.py"))
    root = str(Path(__file__).parents[1]) + "/"
    typed = [" ".join(["sapwood", *words]).replace(root, "") for words in example["commands"](Path("runs/bfcl"))]
    assert len(typed) == 4
    for line in typed:
        assert f"    {line}\n" in PAGE, line


def results(name: str) -> dict[str, Any]:
    return dict(json.loads((DOCS / "results" / "study-bfcl" / f"{name}.json").read_text(encoding="utf-8")))


def plain(value: float) -> str:
    """Points, with a true minus."""
    return f"{100 * value:+.1f}".replace("-", "−")


def told(found: dict[str, Any]) -> str:
    return f"{plain(found['mean'])} [{plain(found['low'])}, {plain(found['high'])}]"


def test_the_study_on_the_default_model_says_what_was_found() -> None:
    found, plan = results("summary"), results("plan")
    assert found["command"] in PAGE
    assert found["line"] in TEXT
    assert (plan["hash"], plan["before_any_answer"]) == (found["plan"]["hash"], True)
    assert found["plan"]["hash"] in (DOCS / "results" / "study-bfcl" / "report.md").read_text(encoding="utf-8")
    for arm in found["arms"]:
        name = f"**{arm['name']}**" if arm["name"] == found["candidate"] else arm["name"]
        against = "" if arm["against"] is None else told(arm["against"])
        assert f"| {name} | {100 * arm['rate']:.1f} % | {against} | {arm['cut']} |" in PAGE
    assert f"{found['difference']['n']} items in {found['difference']['clusters']} families" in TEXT
    for name, change in found["general"].items():
        assert f"{name} {told(change)}" in TEXT
    assert found["difference"]["n"] >= 100
    (row,) = [row for row in found["benchmarks"] if row["arm"] == "tuned"]
    assert f"{row['change']['n']} questions give {told(row['change'])}" in TEXT
    assert all(change["n"] == 300 for change in found["general"].values())
    for arm, words in (("plain prompt", "paid back after {} queries"), ("retrieved 4", "against retrieved examples after {},")):
        assert words.format(f"{found['break_even'][arm]['queries']:,.0f}") in TEXT
    card = results("judge-card")
    assert f"in {card['flips'] * card['labels']:.0f} of {card['labels']} pairs the verdict followed the order" in TEXT
