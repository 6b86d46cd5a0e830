"""docs/tools.md: its rows are read, its code runs and prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_folders import CHATML, write_folder

import pages
from sapwood.chat import named_template
from sapwood.chat.calls import STYLES

PAGE = pages.ROOT / "docs" / "tools.md"


def test_the_page_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "my-model", named_template("chatml", tmp_path))
    write_folder(tmp_path / "plain-model", CHATML)
    pages.assert_true(PAGE, tmp_path)


def test_the_page_names_every_style() -> None:
    text = PAGE.read_text(encoding="utf-8")
    others = {"tool prompt", "LFM2 without escapes", "Python in code tags"}  # said in words
    assert all(style.name in text for style in STYLES if style.name not in others)
