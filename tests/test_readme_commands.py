"""Every command that README and the pages of docs/ show is understood by its verb: it exists, and so do its options, with such values."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from commands import commands_of, understood
from sapwood.cli.main import VERBS
from sapwood.errors import ConfigError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [(page.name, command) for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_of_the_docs_is_understood(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    understood(command, tmp_path, monkeypatch)


def test_commands_are_found_wherever_they_stand() -> None:
    page = "    sapwood a  # one\n\n```sh\nsapwood b\n```\n```console\n$ sapwood c\nsapwood c: printed\n```\n"
    page += "```text\nsapwood d\n```\nsapwood e\n"
    assert commands_of(page) == ["sapwood b", "sapwood c", "sapwood a  # one"]
    assert {"README.md", "data.md", "chat-templates.md"} <= {page for page, _ in COMMANDS}


WRONG = ("stf my.jsonl", "sft my.jsonl --epoch 2", "export RUN --as gguff", "sft --lr x", "doctor rows.jsonl --show", "eval a.jsonl --full")


@pytest.mark.parametrize("words", WRONG)
def test_what_no_verb_understands_fails(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((ConfigError, SystemExit, AssertionError)):
        understood(f"sapwood {words}", tmp_path, monkeypatch)


def test_every_verb_is_shown() -> None:
    shown = {(page, shlex.split(command, comments=True)[1]) for page, command in COMMANDS}
    assert {verb for _, verb in shown} >= set(VERBS) - {"quickstart"}
    assert {verb for page, verb in shown if page == "README.md"} >= set(VERBS) - {"quickstart", "bench"}
