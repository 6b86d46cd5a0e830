"""What docs/chat.md shows."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from sapwood.cli.chat_verb import COMMANDS, ChatConfig
from sapwood.recipes.functions import functions_of
from sapwood.recipes.talk import CALLS

PAGE = (Path(__file__).parent.parent / "docs" / "chat.md").read_text()


def test_the_functions_of_the_page_can_be_called(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_tools.py").write_text(code)
    tools, [schema] = functions_of(tmp_path / "my_tools.py")
    assert tools["weather"](city="Rome") == "18 degrees and rain in Rome"
    assert schema["function"]["parameters"]["required"] == ["city"]


def test_options_and_commands_of_the_page_are_there() -> None:
    known = {"--" + field.name.replace("_", "-") for field in fields(ChatConfig)} | {"--json", "--tools-in-system"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
    assert all(command in PAGE for command in re.findall(r"/[a-z]+", COMMANDS))
    assert CALLS == 8
    assert "eight rounds" in PAGE
