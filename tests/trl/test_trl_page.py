"""docs/from-trl.md: its code prints what it shows, and its tables are what the code says."""

from __future__ import annotations

from pathlib import Path

from pages import assert_true
from trl_table import PAGE, documented, page


def test_its_code_prints_what_it_shows(tmp_path: Path) -> None:
    assert_true(PAGE, tmp_path)


def test_its_tables_are_what_the_code_says() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "make them anew: python tests/trl_table.py"
    assert len(documented()) > 40


def test_its_examples_are_there() -> None:
    for word in PAGE.read_text(encoding="utf-8").split("`"):
        if word.startswith("examples/"):
            assert (PAGE.parents[1] / word).is_file(), word
