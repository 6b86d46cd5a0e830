"""docs/data.md: every file in it is read, every piece of code runs, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCK = re.compile(r"^```(\S+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed, compared = "", 0
    for kind, file, body in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "jsonl":
            Path(file).write_text(body, encoding="utf-8")
        elif kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(body, names)  # noqa: S102 - our own page
            printed = out.getvalue()
        else:
            assert kind == "text", kind
            assert printed == body
            printed, compared = "", compared + 1
    assert printed == "", "all that the page's code prints is shown in it"
    assert compared == 4
