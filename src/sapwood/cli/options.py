"""Flags from dataclasses, with "did you mean" for unknown ones; `--json`; how results leave."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson
import tyro

from sapwood.config import did_you_mean, known_keys
from sapwood.errors import ConfigError
from sapwood.recipes import Screen
from sapwood.run import write_atomic

C = TypeVar("C")

NAMES = {
    "ab report": "PLAN.yaml | TEST",
    "ab resume": "PLAN.yaml ARM",
    "ab size": "PLAN.yaml",
    "ab stop": "PLAN.yaml ARM",
    "chat": "[RUN | MODEL]",
    "compare": "A B …",
    "decide": "FILES | RUN …",
    "distill": "FILES | CONFIG.yaml | RUN",
    "doctor": "[FILES]",
    "dpo": "FILES | CONFIG.yaml | RUN",
    "eval": "FILES | RUN …",
    "eval init": "[FILES]",
    "export": "RUN …",
    "grpo": "FILES | CONFIG.yaml | RUN",
    "items build": "LOGS …",
    "plan": "FILES | CONFIG.yaml | RUN",
    "quickstart": "",
    "reason": "RECIPE.yaml",
    "review": "[RUN | FILE]",
    "review close": "BATCH …",
    "review export": "[BATCH …]",
    "runs": "[FOLDER]",
    "runs compare": "A B …",
    "runs delete": "RUN …",
    "runs prune": "[RUN …]",
    "runs show": "RUN",
    "serve": "[RUN | MODEL]",
    "sft": "FILES | CONFIG.yaml | RUN",
    "study": "RUN … | FILES",
    "sweep": "FILES | SWEEP",
    "template": "A [B]",
}
"""Verb → what stands between it and its options, for its help: the flag parser never sees them."""
WIDEST = 100
"""Columns of a help's sentences at most."""


@dataclasses.dataclass(frozen=True)
class Json:
    """Where a verb's result goes for machines: nowhere, standard output, or a file."""

    target: str | None

    def write(self, content: Mapping[str, Any]) -> None:
        """Write the result, if it was asked for."""
        if self.target is None:
            return
        data = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str) + b"\n"
        if self.target == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        else:
            write_atomic(Path(self.target), data)


def take_json(words: Sequence[str], *, any_name: bool = False) -> tuple[Json, list[str]]:
    """Split `--json` off: alone it means standard output; a following `-` or a name that ends in .json is its file.

    A verb that takes no names of its own accepts `any_name` there.
    """
    rest, target = [], None
    waiting = False
    for word in words:
        if word == "--json":
            target, waiting = "-", True
        elif word.startswith("--json="):
            target = word.removeprefix("--json=")
            _check_target(Path(target))
        elif waiting and (word == "-" or word.endswith(".json") or (any_name and not word.startswith("-"))):
            target, waiting = word, False
            _check_target(Path(word))
        else:
            rest.append(word)
            waiting = False
    return Json(target), rest


def _check_target(path: Path) -> None:
    """What would lose a result is said before the work: a missing folder, or a file of rows, which is never written over.

    `--json rows.json` is meant as "check rows.json"; results are objects on many lines.
    """
    if path.is_dir():
        raise ConfigError(f"--json {path}: this is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise ConfigError(f"--json {path}: there is no folder {path.parent}. Make it, or name another file.")
    if path.is_file() and path.stat().st_size and not path.read_bytes()[:3].startswith(b"{\n"):
        raise ConfigError(
            f"--json {path}: this file exists and holds no earlier result, so it is not written over. Name files of rows in front of "
            "all options, or another file for the result."
        )


def take_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names in front of the first flag, the rest)"""
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    return list(words[:first]), list(words[first:])


def parse(config: C, verb: str, words: Sequence[str], description: str) -> C:
    """Flags over defaults. Raises `ConfigError` for unknown flags and values that do not fit."""
    words = _with_values(words, config)
    asked, names = {"-h", "--help"} & {*words}, NAMES.get(verb, "")  # benches take options alone
    if asked:
        order = " Names come first, options after them." if names else ""
        print(_wrapped(f"{description}{order} --json [FILE.json] gives the result to machines.") + "\n")
    parsed, unknown = tyro.cli(
        type(config),
        prog=f"sapwood {verb} {names}".rstrip() if asked else f"sapwood {verb}",
        description="",
        default=config,
        args=words,
        return_unknown_args=True,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    )
    if unknown:
        if not unknown[0].startswith("-"):
            raise ConfigError(f"`{unknown[0]}` stands after an option. Files and names come first: sapwood {verb} {unknown[0]} --option …")
        known = [key.rsplit(".", 1)[-1].replace("_", "-") for key in known_keys(type(config))]
        word = unknown[0].lstrip("-").split("=")[0].rpartition(".")[2]  # rooms, as in a sweep's knobs, are left out
        suggestion = did_you_mean(word.replace("_", "-"), known)
        raise ConfigError(f"unknown option `{unknown[0]}`.{suggestion} All options: sapwood {verb} --help")
    return parsed


def _wrapped(text: str) -> str:
    """Sentences in lines that the terminal holds: the flag parser wraps what it says of options, and nothing else."""
    return textwrap.fill(text, max(20, min(shutil.get_terminal_size().columns, WIDEST)), break_long_words=False, break_on_hyphens=False)


def _with_values(words: Sequence[str], config: Any) -> list[str]:
    """`--full` alone means `--full True`, and `--shots ''` an empty list."""
    defaults = _defaults(config)
    filled: list[str] = []
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        before = defaults.get(filled[-1]) if filled else None
        if word == "" and isinstance(before, tuple):
            continue
        filled.append(word)
        if isinstance(defaults.get(word), bool) and after.startswith("-"):
            filled.append("True")
    return filled


def _defaults(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        found |= _defaults(value) if dataclasses.is_dataclass(value) else {f"--{field.name.replace('_', '-')}": value}
    return found


def screen_for(json: Json) -> Screen:
    """A terminal; it writes to standard error, so that standard output stays the machines'."""
    return Screen(quiet=json.target == "-" and not sys.stderr.isatty())
