"""docs/tools.md: its rows are read, its code runs and prints what the page says, its commands are understood."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from chat_folders import CHATML, write_folder

from sapwood.chat import named_template
from sapwood.chat.calls import STYLES

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"
BLOCK = re.compile(r"^```(\S+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sapwood.cli.options import parse, take_names
    from sapwood.recipes import TuneConfig

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "my-model", named_template("chatml", tmp_path))
    write_folder(tmp_path / "plain-model", CHATML)
    names: dict[str, Any] = {}
    printed, compared = "", 0
    for kind, file, body in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "jsonl":
            Path(file).write_text(body, encoding="utf-8")
        elif kind == "sh":
            program, verb, *words = shlex.split(body)
            assert (program, verb) == ("sapwood", "sft")
            files, flags = take_names(words)
            assert parse(TuneConfig(data=tuple(files)), verb, flags, "").tools_in_system
        elif kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(body, names)  # noqa: S102 - our own page
            printed += out.getvalue()
        else:
            assert kind == "text", kind
            assert printed == body
            printed, compared = "", compared + 1
    assert (printed, compared) == ("", 4)


def test_the_page_names_every_style() -> None:
    text = PAGE.read_text(encoding="utf-8")
    others = {"tool prompt", "LFM2 without escapes", "Python in code tags"}  # said in words
    assert all(style.name in text for style in STYLES if style.name not in others)
