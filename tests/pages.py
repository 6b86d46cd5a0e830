"""Runs a page of the documentation: its files are written, its code and commands run, and what they print must be what it shows.

    ```jsonl my.jsonl     a file that the page's commands read (any kind with a name behind it)
    ```python             code; all blocks of a page share their names; a ```text block behind it is what it prints
    ```console            `$ command` lines with their output, standard error included; `…` alone on a line stands for any lines.
                          A `$ sapwood …` line runs in this process, anything else in a shell

`python tests/pages.py docs/PAGE.md` writes the real output into the page.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from sapwood.cli.main import main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\S+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY = "…"
CLOCK = re.compile(r"  \d+:\d\d$", re.MULTILINE)
"""The time behind a heading, which no page can promise."""


def played(page: Path, place: Path) -> str:
    """The page with the real output of everything in it; `place` is an empty folder to work in."""
    names: dict[str, object] = {}
    printed: list[str] = []

    def block(match: re.Match[str]) -> str:
        kind, file, body = match.groups()
        if file:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(body, encoding="utf-8")
        elif kind == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.chdir(place):
                exec(body, names)  # noqa: S102 - our own page
            printed.append(out.getvalue())
        elif kind == "text" and printed:
            body = printed.pop()
        elif kind == "console":
            body = "".join(_ran(body, place))
        return f"```{kind}{' ' * bool(file)}{file}\n{body}```"

    text = BLOCK.sub(block, page.read_text(encoding="utf-8"))
    assert not any(printed), f"{page}: all that its code prints is shown in it"
    return text


def _ran(body: str, place: Path) -> Iterator[str]:
    """Each command of a console block and what it printed; where the page shows `…`, the page's own lines, if they fit."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    terminal = {"PATH": path, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    for part in re.split(r"^(?=\$ )", body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        words = shlex.split(command[2:])
        with contextlib.chdir(place), mock.patch.dict(os.environ, terminal):
            printed = _here(words[1:]) if words[0] == "sapwood" and not {"|", ">", "&&"} & set(words) else _in_a_shell(command[2:])
        real = CLOCK.sub("", printed.replace(str(Path.home()), "~"))
        real = "".join(f"{line.rstrip()}\n" for line in real.splitlines())
        yield f"{command}\n{shown if _fits(shown, real) else real}"


def _here(words: list[str]) -> str:
    """What a verb prints, both streams in one."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(words)
    return out.buffer.getvalue().decode()  # type: ignore[attr-defined]


def _in_a_shell(command: str) -> str:
    return subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, check=False
    ).stdout


def _fits(shown: str, real: str) -> bool:
    """Whether the real output is what is shown, `…` lines standing for any number of lines."""
    parts = [re.escape(part) for part in re.split(rf"^{ANY}\n", shown, flags=re.MULTILINE)]
    return re.fullmatch("(?:.*\n)*?".join(parts), real) is not None


def assert_true(page: Path, place: Path) -> None:
    """Fail with a difference where the page shows anything but what really happens."""
    assert played(page, place).splitlines() == page.read_text(encoding="utf-8").splitlines(), f"write it anew: python tests/pages.py {page}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            text = played(Path(name), Path(folder))
        Path(name).write_text(text, encoding="utf-8")
