"""What people are asked beside the verdict: criteria with a word for each step, and errors with what each costs.

In: `Requirements`, or nothing, which gives errors that fit most work. Out: a `Rubric`, kept in its batch as plain JSON.
Left out on purpose: criteria that depend on earlier answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sapwood.config import from_dict, to_dict
from sapwood.requirements import Criterion, ErrorType, Requirements

USUAL_ERRORS = (
    ErrorType(name="wrong", about="It says or does something that is not so.", severity=5.0),
    ErrorType(name="incomplete", about="Something that was asked for is missing.", severity=2.0),
    ErrorType(name="off the task", about="It answers another question.", severity=3.0),
    ErrorType(name="form", about="Not in the form that was asked for, or hard to read.", severity=1.0),
    ErrorType(name="unsafe", about="It could hurt somebody, or tells what it must not.", severity=10.0),
)


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """What is asked of every answer."""

    criteria: tuple[Criterion, ...] = ()
    errors: tuple[ErrorType, ...] = USUAL_ERRORS
    about: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As the database keeps it."""
        return to_dict(self)

    def severity(self, error: str, degree: str | None = None) -> float:
        """What an error of that degree costs; 1 where the rubric does not know it."""
        return next((known.severity_of(degree) for known in self.errors if known.name == error), 1.0)


def rubric_of(requirements: Requirements | None) -> Rubric:
    """The rubric of a use case."""
    if requirements is None:
        return Rubric()
    about = "\n".join([requirements.about, *(f"- **{task.name}**: {task.about}" for task in requirements.tasks)]).strip()
    return Rubric(criteria=requirements.rubric, errors=requirements.errors or USUAL_ERRORS, about=about)


def rubric_from(content: Mapping[str, Any]) -> Rubric:
    """A rubric as the database keeps it."""
    return from_dict(Rubric, content, "the batch's rubric")
