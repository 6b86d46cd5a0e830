"""`sapwood eval init`: rows in, a requirements.yaml out that says what was found in them, and asks what only a person knows.

What is proposed is read off the data: the scorer from the answers, slices from tags, tasks from the column `task`. What is not there is
left to the person: names of errors that hurt, prices, what a gain must be. On a terminal it asks; elsewhere flags say it.
Left out on purpose: a model that writes requirements. Whoever pays for the errors knows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sapwood.config import from_dict
from sapwood.data import read
from sapwood.errors import ConfigError
from sapwood.evaluate import Guess, items_from, pick_scorer
from sapwood.evaluate.declared import DIFFERING
from sapwood.records import Item
from sapwood.requirements import Requirements
from sapwood.run import write_atomic
from sapwood.stats import items_needed

Ask = Callable[[str, str], str]
"""(question, what is taken if nothing is said) → what was said."""

FEWEST_OF_A_SLICE = 10
"""Items below which a tag is not proposed as a slice."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What is asked of a person, as flags."""

    data: tuple[str, ...] = ()
    """Files of rows, such as those that will be trained on; without any, the file says only what the flags say."""
    out: Path = Path("requirements.yaml")
    """The file to write."""
    name: str | None = None
    """Of the use case; that of the first file where not given."""
    about: str = ""
    """One sentence on it."""
    scorer: str | None = None
    """How answers are judged; guessed from the answers where not given."""
    at_least: float | None = None
    """The share of right answers to reach."""
    gain: float = 0.02
    """What tuning must gain, as a share: 0.02 is two points."""
    errors: tuple[str, ...] = ()
    """Errors that hurt, as NAME:SEVERITY, with `:veto` behind it where a single one forbids to ship: `'wrong amount:5:veto' rude:2`."""
    skills: tuple[str, ...] = ("mmlu-slice",)
    """General skills that must not drop."""
    yes: bool = False
    """Ask nothing, also on a terminal."""
    overwrite: bool = False
    """Write over a file that is there."""


@dataclass(frozen=True)
class Proposal:
    """What was written, and why."""

    path: Path
    requirements: Requirements
    notes: tuple[str, ...]


def propose(config: InitConfig, ask: Ask | None = None) -> Proposal:
    """Write requirements.yaml. `ask` is a person where one can answer. Raises `ConfigError` for a file that is there, or odd flags."""
    if config.out.exists() and not config.overwrite:
        raise ConfigError(f"{config.out} is there and is not written over. Name another with --out, or say --overwrite.")
    items = items_from(read([Path(name) for name in config.data]).conversations) if config.data else []
    guess = pick_scorer([item.reference for item in items]) if items else None
    scorer, notes = _scorer(config, guess)
    said = _said(config, ask)
    content = {
        "name": said["name"],
        "about": said["about"],
        "tasks": [{"name": name, "about": ""} for name in _tasks(items)],
        "metrics": [{"name": "right", "scorer": scorer, "primary": True} | ({"at_least": config.at_least} if config.at_least else {})],
        "slices": [{"name": tag, "tags": [tag], "margin": 0.1} for tag in _slices(items)],
        "errors": [
            {"name": "wrong", "found_by": "wrong", "severity": 1.0},
            {"name": "cut", "found_by": "cut", "severity": 2.0},
            *[_error(text) for text in (*config.errors, *said["errors"])],
        ],
        "rubric": [
            {"name": "helpful", "question": "Would this answer have helped the one who asked?", "anchors": ["no", "in part", "yes"]},
            {"name": "faithful", "question": "Does it say only what is so?", "anchors": ["no", "mostly", "yes"]},
        ],
        "general": [{"name": name, "items": 200, "margin": 0.05} for name in config.skills],
        "prices": {},
        "decision": {"gain": said["gain"]},
    }
    content = {key: value for key, value in content.items() if value not in ([], "")}
    made = from_dict(Requirements, content, "the proposal")
    write_atomic(config.out, _text(content, len(items)).encode())
    return Proposal(config.out, made, (*notes, *_size(items, made)))


def _scorer(config: InitConfig, guess: Guess | None) -> tuple[str, list[str]]:
    if config.scorer is not None:
        return config.scorer, []
    if guess is None:
        return "auto", ["No data was given, so the scorer is guessed when there is some."]
    if guess.scorer is None:
        return "auto", [f"{guess.why} Name a scorer under metrics, or let people judge by the rubric."]
    return guess.name, [guess.why]


def _said(config: InitConfig, ask: Ask | None) -> dict[str, Any]:
    """Flags, or what a person says on a terminal."""
    name = config.name or (Path(config.data[0]).stem if config.data else "my-use-case")
    if ask is None or config.yes:
        return {"name": name, "about": config.about, "gain": config.gain, "errors": ()}
    name = ask("What is the use case called?", name)
    about = ask("What must an answer do, in one sentence?", config.about)
    gain = ask("How many points must it gain over the best prompt to be worth it?", f"{100 * config.gain:g}")
    try:
        share = float(gain) / 100
    except ValueError:
        raise ConfigError(f"{gain!r} is no number of points; give one such as 2.") from None
    errors = []
    while error := ask("An error that hurts, as NAME:SEVERITY or NAME:SEVERITY:veto (nothing ends the list)", ""):
        _error(error)  # refuses what cannot be read while the person is there
        errors.append(error)
    return {"name": name, "about": about, "gain": share, "errors": tuple(errors)}


def _error(text: str) -> dict[str, object]:
    parts = [part.strip() for part in text.split(":")]
    veto = parts[-1] == "veto"
    parts = parts[:-1] if veto else parts
    try:
        severity = float(parts[1]) if len(parts) > 1 else 1.0
    except ValueError:
        severity = -1.0
    if len(parts) > 2 or not parts[0] or severity <= 0:
        raise ConfigError(f"{text!r} is no error type; give NAME:SEVERITY, such as 'wrong amount:5', or 'wrong amount:5:veto'.")
    return {"name": parts[0], "severity": severity, "found_by": "people", **({"veto": True} if veto else {})}


def _tasks(items: list[Item]) -> list[str]:
    return list(dict.fromkeys(tag.removeprefix("task:") for item in items for tag in item.tags if tag.startswith("task:")))[:20]


def _slices(items: list[Item]) -> list[str]:
    counts = Counter(tag for item in items for tag in item.tags if not tag.startswith("task:"))
    return [tag for tag, count in counts.most_common(12) if FEWEST_OF_A_SLICE <= count < len(items)]


def _size(items: list[Item], made: Requirements) -> list[str]:
    gain = made.decision.gain
    if not items or not 0 < 2 * gain <= DIFFERING:
        return []
    twice, thrice = (items_needed(times * gain, DIFFERING) for times in (1, 2))
    return [
        f"To show more than {100 * gain:g} points takes about {twice:,} items that were not trained on where the true gain is "
        f"{200 * gain:g}, and {thrice:,} where it is {300 * gain:g}, if a fifth of the items differ."
    ]


def _text(content: dict[str, object], items: int) -> str:
    """YAML with a word above each part."""
    heads = {
        "name": f"What the use case needs. Read off {items:,} rows; change what is not yours." if items else "What the use case needs.",
        "tasks": "What is done, in words; reviewers read it.",
        "metrics": "How answers are judged by machine. One is primary: the decision rests on it.",
        "slices": "Parts of the items, by tags; margin is what may be lost there, as a share.",
        "errors": "What goes wrong. Severity is in units of the lightest; a veto forbids to ship. found_by: wrong, no answer, cut, "
        "matches:REGEX, people.",
        "rubric": "What people judge, worst step first.",
        "general": "Skills that tuning must not cost, each with what it may lose.",
        "prices": "machine_hour, hosted_in, hosted_out (a million tokens), setup, queries_a_month",
        "decision": "What must be gained over the best arm that needs no training, as a share.",
    }
    parts = []
    for key, value in content.items():
        comment = f"\n# {heads[key]}\n" if key in heads else ""
        parts.append(comment + yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=120))
    return "".join(parts).lstrip("\n")
