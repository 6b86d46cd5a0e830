"""docs/data.md: every file in it is read, every piece of code runs and prints what the page says, every command reads rows."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import pages
from commands import commands_of, understood
from sapwood.data.formats import FORMATS
from sapwood.data.lines import ROWS
from sapwood.recipes.prepare import scan_files

PAGE = pages.ROOT / "docs" / "data.md"


def test_the_page_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    pages.assert_true(PAGE, tmp_path)
    (tmp_path / "data").mkdir()  # stands for the folder and the pattern of the page
    for number in (1, 2):
        (tmp_path / "data" / f"train-{number}.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "q", "completion": "a"}\n'))
    for command in commands_of(PAGE.read_text(encoding="utf-8")):
        config = understood(command, tmp_path, monkeypatch)
        if not any("owner/name" in name for name in config.data):  # those would ask the hub
            assert scan_files(config.data, config.rows, lambda *_: None).total > 0, command


def test_the_page_names_every_format_and_every_kind_of_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [form for form in FORMATS if f"`{form}`" not in text] == []
    assert [suffix for suffix in ROWS if f"`{suffix}`" not in text] == []
