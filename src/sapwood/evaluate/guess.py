"""Which scorer fits a user's own data: a guess from the references, with a sentence that says why.

Left out on purpose: judging long free text. There only bits per token are measured, and the sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.errors import DataError
from sapwood.evaluate.function_calls import expected_calls, function_call
from sapwood.evaluate.scorers import Scorer, exact, last_number, number

SHARE = 0.95
"""Share of the references that must be of a kind for its scorer to be taken."""

LABEL_WORDS, LABEL_LETTERS = 5, 60
"""An answer up to this long is compared as a whole; longer ones can be right in many wordings."""


@dataclass(frozen=True, slots=True)
class Guess:
    """`scorer` is None where nothing but bits per token can be measured."""

    scorer: Scorer | None
    name: str
    why: str


def pick_scorer(references: Sequence[Any]) -> Guess:
    """Guess the scorer for these references: calls, numbers, short labels, or none for free text."""
    if not references:
        return Guess(None, "none", "There are no references, so nothing can be scored.")
    kinds = (
        (_is_call, function_call(), "function call", "are function calls in JSON, so name and arguments are compared"),
        (_is_number, number(), "number", "are numbers, so the last number of an answer is compared"),
        (
            _is_label,
            exact(casefold=True),
            "exact",
            f"are at most {LABEL_WORDS} words long, so answers are compared as a whole, without regard to case",
        ),
    )
    for fits, scorer, name, reason in kinds:
        count = sum(map(fits, references))
        if count >= SHARE * len(references):
            return Guess(scorer, name, f"{count} of {len(references)} references {reason}.")
    return Guess(
        None,
        "none",
        f"{len(references)} references are free text, which can be right in many wordings: no scorer is guessed, and only bits "
        "per token are measured. Name a scorer to have answers judged.",
    )


def _is_call(reference: Any) -> bool:
    try:
        return bool(expected_calls(reference))
    except DataError:
        return False


def _is_number(reference: Any) -> bool:
    if not isinstance(reference, str):
        return last_number(reference) is not None
    if "####" in reference:
        return last_number(reference) is not None
    text = reference.strip().strip("$€£%").replace(",", "").replace("−", "-")
    try:
        float(text)
    except ValueError:
        return False
    return last_number(reference) is not None


def _is_label(reference: Any) -> bool:
    if not isinstance(reference, str) or "\n" in reference.strip():
        return False
    return len(reference.split()) <= LABEL_WORDS and len(reference) <= LABEL_LETTERS
