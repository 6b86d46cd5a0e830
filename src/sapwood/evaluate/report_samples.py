"""Sample questions over time: records of samples.jsonl in, each question with its answers before, during and after training out.

What an answer has that the one before it had not is marked, so that a reader sees at once where training changed it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sapwood.evaluate.report_files import Record, number, text_of
from sapwood.evaluate.report_items import shortened

MOST_QUESTIONS = 60
"""Questions that the page lists; the rest is counted and named."""
COMPARED = 400
"""Words of two answers that are compared one by one; of longer ones all is marked from the first that differs."""
FILE = "samples.jsonl"


@dataclass(frozen=True)
class Answered:
    """One answer to a sample question."""

    when: str
    pieces: list[tuple[str, bool]]
    """(text, whether the answer before had other words here)"""
    right: bool | None
    """None where nobody judged, or the score lies between right and wrong."""
    score: str
    """Such a score, in per cent; else empty."""

    @property
    def answer(self) -> str:
        """The whole text."""
        return "".join(text for text, _ in self.pieces)


@dataclass(frozen=True)
class Question:
    """A sample question with its answers in the order of training."""

    question: str
    reference: str
    answers: list[Answered]


@dataclass(frozen=True)
class SamplesView:
    """Sample questions; `left_out` of them are only in samples.jsonl."""

    questions: list[Question]
    left_out: int


def samples_view(samples: list[Record]) -> SamplesView:
    """Questions in the order they were first asked, each with its answers in the order they were given."""
    grouped: dict[tuple[str, str, str], list[Record]] = {}
    for record in samples:
        item = text_of(record.get("item"))
        grouped.setdefault((item, text_of(record.get("question")), text_of(record.get("reference"))), []).append(record)
    questions = [
        Question(shortened(question, FILE), shortened(reference, FILE), _answers(records))
        for (_, question, reference), records in list(grouped.items())[:MOST_QUESTIONS]
    ]
    return SamplesView(questions, len(grouped) - len(questions))


def _answers(records: Sequence[Record]) -> list[Answered]:
    found, before = [], None
    for record in records:
        answer = shortened(text_of(record.get("answer")), FILE)
        right = record.get("right")
        value = float(right) if isinstance(right, bool) else number(right)
        between = value is not None and 0 < value < 1
        found.append(
            Answered(
                text_of(record.get("when")),
                changed(before, answer),
                None if value is None or between else value >= 1,
                f"{value:.0%}" if between else "",
            )
        )
        before = answer
    return found


def changed(before: str | None, answer: str) -> list[tuple[str, bool]]:
    """The answer in pieces, those marked that the one `before` did not have there; nothing is marked in a first answer."""
    if before is None or before == answer:
        return [(answer, False)]
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, answer))
    if max(len(old), len(new)) > COMPARED:
        same = next((place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new)))
        pieces = [("".join(new[:same]), False), ("".join(new[same:]), True)]
    else:
        steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        pieces = [("".join(new[first:last]), kind != "equal") for kind, _, _, first, last in steps]
    return [piece for piece in pieces if piece[0]]
