"""Scorer of mathematical answers: equal in value, however written. By math-verify (sympy underneath), which reads LaTeX and plain text."""

from __future__ import annotations

import re
import threading
from typing import Any

from sapwood.evaluate.extras import needed
from sapwood.evaluate.scorers import Scorer, guarded, references_of, spoken
from sapwood.records import Completion, Item, Score

SECONDS = 5
"""For reading and for comparing one answer. It is kept by a signal, so only in the main thread; elsewhere there is no bound."""

_BARE = 200
"""Letters of a text that may be one expression without any prose."""


def maths() -> Scorer:
    """1 where the last expression of the answer (a boxed one before all) equals one of the references in value.

    `\\frac{1}{2}`, `0.5` and `50\\%` agree; so do `x+1` and `1+x`, intervals, sets and equations. A reference that holds no
    expression gives a score without a value. Raises `ConfigError` where math-verify is not installed.
    """
    library = needed("math_verify", "The scorer `maths`")

    def score(item: Item, completion: Completion) -> Score:
        bound = SECONDS if threading.current_thread() is threading.main_thread() else None
        golds = [
            gold
            for entry in references_of(item.reference)
            if entry is not None and (gold := _read(library, str(entry), bound, strict=True))
        ]
        if not golds:
            return Score(None, None, f"the reference {str(item.reference)[:80]!r} holds no mathematical expression")
        answer = _read(library, spoken(completion), bound, strict=False)
        if not answer:
            return Score(0.0, None, "no mathematical expression in the answer")
        right = any(library.verify(gold, answer, timeout_seconds=bound, raise_on_error=True) for gold in golds)
        return Score(float(right), str(answer[-1]), "" if right else f"expected {golds[0][-1]}, got {answer[-1]}")

    return guarded(score)


def _read(library: Any, text: str, bound: int | None, *, strict: bool) -> list[Any]:
    """What math-verify reads; a bare expression, which it takes for prose, is read as LaTeX. `strict`: what breaks it is raised."""
    bare = text.strip()
    found = library.parse(bare, parsing_timeout=bound, raise_on_error=strict)
    if not found and len(bare) < _BARE and "$" not in bare and not re.search(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}", bare):
        found = library.parse(f"${bare}$", parsing_timeout=bound, raise_on_error=strict)
    return list(found)
