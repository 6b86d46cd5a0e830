"""`sapwood compare A B …`: what `sapwood runs compare` does, under the name that people look for."""

from __future__ import annotations

from sapwood.cli import runs_verb
from sapwood.cli.options import parse, take_json, take_names


def run(words: list[str]) -> None:
    """Lay runs, evaluations or studies side by side."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(runs_verb.CompareConfig(), "compare", flags, runs_verb.DESCRIPTIONS["compare"])
    runs_verb.compare(names, config, json)
