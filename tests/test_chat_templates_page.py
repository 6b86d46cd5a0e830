"""docs/chat-templates.md: what a newcomer is shown is what they will see."""

from __future__ import annotations

from pathlib import Path

import pytest

import pages


@pytest.mark.slow
def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    pages.assert_true(pages.ROOT / "docs" / "chat-templates.md", tmp_path)
