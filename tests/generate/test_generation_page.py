"""What docs/generation.md shows and claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from generate.parity_table import EXACT, parity, table
from generate.prompts_and_engines import rounding
from sapwood.chat import Chat
from sapwood.model import load_model
from sapwood.records.sampling import ConstraintKind
from tiny.folder import write_model
from tiny.models import ARCHITECTURES

PAGE = Path(__file__).parents[2] / "docs" / "generation.md"


def test_the_table_of_the_page_is_what_is_measured() -> None:
    lines = PAGE.read_text().splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("| architecture"))
    assert lines[begin : begin + 2 + len(ARCHITECTURES)] == table()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_differs(name: str) -> None:
    found = parity(name)
    assert found.compared > 100
    assert found.different == 0
    assert found.largest_wide <= EXACT
    assert found.largest <= rounding(name)


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    folder = write_model(tmp_path / "model")
    names = {"model": load_model(folder, "fp32"), "chat": Chat.load(folder), "streamed": []}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102
    assert names["streamed"]
    assert {"yes", "no"} & set(capsys.readouterr().out.split())


def test_every_kind_of_constraint_is_in_the_table() -> None:
    assert re.findall(r"^\| `([a-z_ ]+)` \|", PAGE.read_text(), re.MULTILINE) == list(get_args(ConstraintKind))
