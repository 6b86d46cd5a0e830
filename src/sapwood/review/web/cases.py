"""A case as pages draw it: what was asked and the answers, by side, with names covered while the batch is open.

In: a row of a case, its batch, which answer stands left. Out: `CaseView`, in which no arm's name stands.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from markupsafe import Markup
from sqlalchemy import Row

from sapwood.review.batch import Batch, text_of
from sapwood.review.diffs import changes
from sapwood.review.masking import Mask
from sapwood.review.rendering import Turn, turn_of, turns_of

IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}
LARGEST_IMAGE = 16 * 2**20


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One answer."""

    side: str
    """a | b, which of the two stored ones it is; says nothing about its arm."""
    label: str
    turn: Turn
    name: str
    """The arm's name; empty while the batch is open."""


@dataclass(frozen=True, slots=True)
class CaseView:
    """One case."""

    id: int
    system: Sequence[Turn]
    asked: Sequence[Turn]
    tools: str
    """The tools on offer, as JSON; empty without any."""
    answers: Sequence[AnswerView]
    reference: str


def view_of(case: Row[Any], batch: Batch, left: str) -> CaseView:
    """A case with its answers from left to right."""
    mask = batch.mask if batch.open else NOTHING_COVERED
    turns = turns_of(case.asked, mask, functools.partial(_link, case.id, "asked"))
    sides = [left, "b" if left == "a" else "a"] if case.arm_b is not None else ["a"]
    labels = ("Left", "Right") if case.arm_b is not None else ("Answer",)
    answers = []
    for side, label in zip(sides, labels, strict=True):
        arm = case.arm_a if side == "a" else case.arm_b
        turn = turn_of(case.answers[arm], mask, functools.partial(_link, case.id, side, 0))
        answers.append(AnswerView(side, label, turn, "" if batch.open else arm))
    return CaseView(
        id=case.id,
        system=[turn for turn in turns if turn.role in ("system", "developer")],
        asked=[turn for turn in turns if turn.role not in ("system", "developer")],
        tools=mask(_as_text(case.tools)) if case.tools else "",
        answers=answers,
        reference=mask(_as_text(case.reference)),
    )


class _NothingCovered(Mask):
    def cover(self, text: str) -> tuple[str, list[str]]:
        return text, []


NOTHING_COVERED = _NothingCovered()
"""For batches that are closed."""


def excerpt(asked: Sequence[Mapping[str, Any]], batch: Batch, most: int = 140) -> str:
    """The last thing that a user asked, in a line."""
    text = next((text_of(message) for message in reversed(asked) if message.get("role") == "user"), "")
    line = " ".join(text.split())
    line = batch.mask(line[: 4 * most]) if batch.open else line
    return line if len(line) <= most else line[: most - 1] + "…"


def difference(before: str, after: str) -> Markup:
    """Two texts as one, with what is gone and what is new marked in words as well as in colour."""
    forms = {"same": Markup("{}"), "gone": Markup("<del>{}</del>"), "new": Markup("<ins>{}</ins>")}
    return Markup("").join(forms[kind].format(text) for kind, text in changes(before, after))


def medium_of(case: Row[Any], part: str, message: int, number: int, folder: Path | None) -> tuple[bytes, str] | None:
    """(bytes, type) of an image that an item names and that lies below `folder`; None for anything else.

    The address that asks for it names a place in the item, never a path.
    """
    arm = {"a": case.arm_a, "b": case.arm_b}.get(part)
    messages = case.asked if part == "asked" else [case.answers[arm]] if arm is not None else []
    if folder is None or not 0 <= message < len(messages):
        return None
    content = messages[message].get("content")
    media = [entry for entry in content if entry.get("type") != "text"] if isinstance(content, list) else []
    if not 0 <= number < len(media):
        return None
    path = (folder / str(media[number].get("uri") or "")).resolve()
    kind = IMAGES.get(path.suffix.lower())
    if kind is None or not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > LARGEST_IMAGE:
        return None
    return path.read_bytes(), kind


def _link(case: int, part: str, message: int, number: int) -> str:
    return f"/media/{case}/{part}/{message}/{number}"


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
