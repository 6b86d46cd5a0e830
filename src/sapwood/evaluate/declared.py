"""What a study will decide by, said before its first answer: a plan in, plan.json out, written once and hashed.

The plan holds the requirements whole, the arms, the candidate, what it is compared with, and the hash of the items. A directory that
holds a plan goes on only with the same one: a rule that moves after the numbers were seen is no rule.
Left out on purpose: changing a plan. Another plan is another study, in another directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import orjson

from sapwood.config import to_dict
from sapwood.errors import CheckpointError
from sapwood.records import Item
from sapwood.requirements import Requirements
from sapwood.run import Run, read_json
from sapwood.stats import minimum_detectable

DIFFERING = 0.2
"""Share of items that one of two arms alone gets right, for what a study can show before anything is known."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A set of items, by the hash of their ids."""

    name: str
    hash: str
    count: int
    clusters: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a verdict depends on but the answers."""

    requirements: Requirements
    candidate: str
    """The arm that may be shipped."""
    arms: tuple[str, ...]
    alternatives: tuple[str, ...]
    """The arms that the candidate must beat: the best of them, whichever that is."""
    base: str
    """The arm whose general skills must not be lost."""
    items: Questions
    general: tuple[Questions, ...] = ()
    samples: int = 1
    scorers: tuple[str, ...] = ()
    """By which the metrics are judged, in their order, each with what it is made of."""

    @cached_property
    def hash(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(orjson.dumps(to_dict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def lines_for_people(self) -> list[str]:
        """The rule in sentences, and what this study can show at all."""
        needs, rule = self.requirements, self.requirements.decision
        said = [
            f"Ship {self.candidate!r} if, at {100 * rule.level:.0f} %, `{needs.primary.name}` gains more than {100 * rule.gain:.1f} points "
            f"over the best of {', '.join(self.alternatives)}, and every other condition holds."
        ]
        said += [f"`{one.name}` reaches {100 * one.at_least:.0f} %." for one in needs.metrics if one.at_least is not None]
        said += [f"`{one.name}` loses at most {100 * one.margin:.1f} points." for one in needs.metrics if one.margin is not None]
        said += [f"In {one.name}, it reaches {100 * one.at_least:.0f} %." for one in needs.slices if one.at_least is not None]
        said += [f"In {one.name}, it loses at most {100 * one.margin:.1f} points." for one in needs.slices if one.margin is not None]
        said += [f"No {one.name!r} is seen." for one in needs.vetoes]
        said += [f"{one.name!r} in at most {100 * one.at_most:.1f} % of answers." for one in needs.errors if one.at_most is not None]
        said += [f"{one.name} loses at most {100 * one.margin:.1f} points against {self.base!r}." for one in needs.general]
        smallest = 100 * minimum_detectable(max(1, self.items.clusters), DIFFERING, rule.power, rule.level)
        units = f"{self.items.count} items" + (f" in {self.items.clusters} clusters" if self.items.clusters < self.items.count else "")
        said.append(
            f"{units}: where a fifth of them differ between two arms, a true difference of {smallest:.1f} points is shown "
            f"{100 * rule.power:.0f} % of the time."
        )
        return said


@dataclass(frozen=True)
class Declared:
    """A plan that stands in a directory."""

    plan: Plan
    when: str
    """UTC, when it was written."""
    before: bool
    """Whether nothing had been answered by then."""


def questions(name: str, items: Sequence[Item]) -> Questions:
    """The items of a plan; the hash does not depend on their order."""
    ids = sorted(item.id for item in items)
    clusters = {item.cluster if item.cluster is not None else ("item", item.id) for item in items}
    return Questions(name=name, hash=hash_of_ids(ids), count=len(ids), clusters=len(clusters))


def hash_of_ids(ids: Iterable[str]) -> str:
    """16 hex digits of ids in any order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def declare(run: Run, plan: Plan) -> Declared:
    """Write plan.json, or find the same one there. Raises `CheckpointError` that says what differs from the plan that stands there."""
    before = read_json(run.path / "plan.json")
    if not before:
        first = not run.read("scores")
        when = datetime.now(UTC).isoformat(timespec="seconds")
        run.write_json("plan", {"hash": plan.hash, "declared": when, "before_any_answer": first, **to_dict(plan)})
        return Declared(plan, when, first)
    if before.get("hash") != plan.hash:
        now = orjson.loads(orjson.dumps(to_dict(plan)))
        changed = [key for key in _leaves(now) if _leaves(before).get(key) != _leaves(now)[key]] or ["what was taken away"]
        raise CheckpointError(
            f"{run.path}/plan.json declares another plan; {', '.join(changed[:5])} {'differs' if len(changed) == 1 else 'differ'} now. "
            "A plan does not change once it is declared: put that back, or choose another folder with --out."
        )
    return Declared(plan, str(before.get("declared", "")), bool(before.get("before_any_answer")))


def _leaves(record: Any, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key."""
    if isinstance(record, dict) and record:
        return {name: value for key, entry in record.items() for name, value in _leaves(entry, f"{prefix}{key}.").items()}
    if isinstance(record, list) and record:
        return {name: value for place, entry in enumerate(record) for name, value in _leaves(entry, f"{prefix}{place}.").items()}
    return {prefix.rstrip("."): record}
