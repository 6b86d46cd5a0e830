"""docs/data.md: every file in it is read, every piece of code runs and prints what the page says, every command is understood."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from sapwood.cli.options import parse, take_names
from sapwood.data.formats import FORMATS
from sapwood.data.lines import ROWS
from sapwood.recipes import TuneConfig
from sapwood.recipes.prepare import scan_files

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCK = re.compile(r"^```(\S+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def understood(line: str) -> int:
    """Rows that a command of the page reads; the words of those that would ask the hub are only parsed."""
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("sapwood", "sft")
    names, flags = take_names(words)
    config = parse(TuneConfig(data=tuple(names)), verb, flags, "")
    if any("owner/name" in name for name in names):
        return 1
    return scan_files(names, config.rows, lambda *_: None).total


def test_the_page_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    names: dict[str, object] = {}
    printed, compared, commands = "", 0, 0
    for kind, file, body in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind in ("jsonl", "csv"):
            Path(file).write_text(body, encoding="utf-8")
            if file == "tickets.csv":  # stands for the folder and the pattern of the page, too
                (tmp_path / "data" / "train-1.jsonl.gz").write_text('{"prompt": "q", "completion": "a"}\n')
                (tmp_path / "data" / "train-2.jsonl.gz").write_text('{"prompt": "r", "completion": "b"}\n')
        elif kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(body, names)  # noqa: S102 - our own page
            printed += out.getvalue()
        elif kind == "sh":
            for line in body.splitlines():
                assert understood(line) > 0
                commands += 1
        else:
            assert kind == "text", kind
            assert printed == body
            printed, compared = "", compared + 1
    assert printed == "", "all that the page's code prints is shown in it"
    assert (compared, commands) == (7, 8)


def test_the_page_names_every_format_and_every_kind_of_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [form for form in FORMATS if f"`{form}`" not in text] == []
    assert [suffix for suffix in ROWS if f"`{suffix}`" not in text] == []
