"""Commands as pages of the documentation show them: found in a page, and parsed by their verbs without being run.

A command stands in a block, alone on its line or behind `$ `, up to a `#`. Words in capitals and paths stand for a reader's own; runs
and configs that are named are made here first. Each verb goes as far as its own parsing of the words, and is stopped there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sapwood.cli import options
from sapwood.cli.bench_verb import WORKLOADS, checkout
from sapwood.cli.main import VERBS
from sapwood.config import save_yaml
from sapwood.recipes import TuneConfig
from sapwood.recipes.decide import DecideConfig

FENCED = re.compile(r"^```(\S*).*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ *(?:\$ )?(sapwood .*)$", re.MULTILINE)
WITHOUT_OPTIONS = {"pull"}
"""Verbs that take names alone."""


def commands_of(text: str) -> list[str]:
    """The commands of a page, in order."""
    shells = [body for kind, body in FENCED.findall(text) if kind in ("", "sh", "bash", "console")]
    consoles = [re.sub(r"^[^$].*\n", "", body, flags=re.MULTILINE) if "$ " in body else body for body in shells]
    indented = "\n".join(re.findall(r"^ {4}(?:\$ )?sapwood .*$", FENCED.sub("", text), re.MULTILINE))
    return [found for part in (*consoles, indented) for found in COMMAND.findall(part)]


class UnderstoodError(Exception):
    """The verb has understood its words."""


def understood(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The config that a verb makes of a command's words. Raises what the verb would tell a user."""
    program, verb, *words = shlex.split(command, comments=True)
    assert program == "sapwood"
    assert verb in VERBS, f"there is no verb {verb!r}"
    names, flags = options.take_names(words)
    if verb in WITHOUT_OPTIONS:
        assert not flags
        return names
    _make(verb, names, place)
    monkeypatch.chdir(place)

    def stop(config: Any, name: str, given: Sequence[str], description: str) -> Any:
        raise UnderstoodError(options.parse(config, name, given, description))

    module = import_module(f"sapwood.cli.{verb}_verb")
    if verb == "bench":
        monkeypatch.syspath_prepend(str(checkout()))
        monkeypatch.setattr(import_module(f"bench.{WORKLOADS[names[0]][0]}"), "parse", stop)
    else:
        monkeypatch.setattr(module, "parse", stop)
    with pytest.raises(UnderstoodError) as caught:
        module.run(words)
    return caught.value.args[0]


def _make(verb: str, names: Sequence[str], place: Path) -> None:
    """Runs and configs that a command names."""
    for name in names:
        path = place / name
        if name.startswith("runs/"):
            path = path if path.suffix == ".yaml" else path / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_yaml(DecideConfig(data=("my.jsonl",)) if verb == "decide" else TuneConfig(data=("my.jsonl",)), path)
            if verb == "decide":
                (path.parent / "identity.json").write_text('{"kind": "decision"}')
