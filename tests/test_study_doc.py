"""The requirements that docs/study.md shows are requirements, and the example is whole."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from sapwood.requirements import read_requirements

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "study.md").read_text(encoding="utf-8")


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
