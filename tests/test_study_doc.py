"""The requirements that docs/study.md shows are requirements, and its figures are those of docs/results/study-bfcl."""

from __future__ import annotations

import json
import re
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
    row = next(row for row in found["benchmarks"] if row["arm"] == "tuned")
    assert f"{row['change']['n']} questions" in TEXT
    assert told(row["change"]) in TEXT
    assert found["difference"]["n"] >= 100


def test_the_judge_that_was_tried_is_of_no_use() -> None:
    card = results("judge-card")
    assert f"{100 * card['agreement']:.0f} % of {card['labels']} pairs" in TEXT
    assert f"α {card['alpha']:.2f} [{card['alpha_low']:.2f}, {card['alpha_high']:.2f}]".replace("-", "−") in TEXT
    assert f"{100 * card['flips']:.0f} % of its verdicts followed the order" in TEXT
    assert card["alpha_low"] <= 0, "not shown to be better than guessing"
