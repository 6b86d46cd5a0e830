"""Scorers: functions (item, completion) → `Score`, made by small factories. The same functions are rewards.

Each score says what was taken to be the answer and, where it is wrong, what differed. A completion that failed, a
reference that cannot be read and a scorer that raises give a score without a value, never a 0.
Left out on purpose: judges (models that score), and scores outside of 0..1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from sapwood.errors import ConfigError
from sapwood.records import Completion, Ended, Item, Score

Scorer = Callable[[Item, Completion], Score]

NO_REFERENCE = "the item has no reference to compare with"

_THOUGHT = "</think>"
_NUMBER = re.compile(r"(?<![\w.])[-+−]?[$€£]?[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_MARKED = re.compile(r"####\s*(.+)")


def guarded(scorer: Scorer) -> Scorer:
    """`scorer`, with failures as recorded outcomes: a failed completion, an exception, a value outside of 0..1."""

    def score(item: Item, completion: Completion) -> Score:
        if completion.ended is Ended.ERROR:
            return Score(None, None, f"no answer to score: {completion.error or 'generation failed'}")
        try:
            result = scorer(item, completion)
        except Exception as error:  # noqa: BLE001  one item that breaks a scorer must neither stop a run nor count as wrong
            return Score(None, None, f"the scorer failed: {type(error).__name__}: {error}")
        if result.value is not None and not 0 <= result.value <= 1:
            return Score(None, result.answer, f"the scorer gave {result.value}, and a score lies in 0..1")
        return result

    return score


def spoken(completion: Completion) -> str:
    """What was said to the user: the message's content, else the text behind the reasoning; nothing where the thought never ended."""
    message = completion.message
    if message is not None and message.reasoning and not message.content:
        return ""
    said = message.content if message is not None else ""
    return (said or completion.text).rsplit(_THOUGHT, 1)[-1]


def exact(*, casefold: bool = False, strip: bool = True) -> Scorer:
    """1 where the text equals the reference, or one of a list of references.

    `casefold` ignores case, `strip` ignores white space around the text.
    """

    def normal(text: str) -> str:
        text = text.strip() if strip else text
        return text.casefold() if casefold else text

    def score(item: Item, completion: Completion) -> Score:
        allowed = [str(entry) for entry in references_of(item.reference) if entry is not None]
        if not allowed:
            return Score(None, None, NO_REFERENCE)
        answer = spoken(completion)
        right = normal(answer) in {normal(entry) for entry in allowed}
        return Score(float(right), normal(answer), "" if right else f"expected {_either(allowed)}, got {_short(answer)}")

    return guarded(score)


def set_f1(sep: str = ",") -> Scorer:
    """F1 between two sets of entries, divided by `sep` (or a list as the reference), without regard to case and order.

    Two empty sets agree (1).
    """

    def entries(value: Any) -> set[str]:
        parts = value.split(sep) if isinstance(value, str) else [str(entry) for entry in references_of(value)]
        return {part.strip().casefold() for part in parts} - {""}

    def score(item: Item, completion: Completion) -> Score:
        if item.reference is None:
            return Score(None, None, NO_REFERENCE)
        answer, expected = entries(spoken(completion)), entries(item.reference)
        both = len(answer & expected)
        value = 2 * both / (len(answer) + len(expected)) if answer or expected else 1.0
        differs = [f"missing {_listed(expected - answer)}"] * bool(expected - answer)
        differs += [f"too many {_listed(answer - expected)}"] * bool(answer - expected)
        return Score(value, sep.join(sorted(answer)), "; ".join(differs))

    return guarded(score)


def regex(pattern: str) -> Scorer:
    """1 where the last match of `pattern` equals the reference; where the reference is None, where it matches at all.

    The answer is the pattern's first group that took part, else the whole match. Raises `ConfigError` for a bad pattern.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"The pattern {pattern!r} is not a regular expression ({error}). Mend it and try again.") from None

    def score(item: Item, completion: Completion) -> Score:
        matches = list(compiled.finditer(spoken(completion)))
        if not matches:
            return Score(0.0, None, f"nothing matches {pattern!r}")
        answer = next((group for group in matches[-1].groups() if group is not None), matches[-1].group())
        if item.reference is None:
            return Score(1.0, answer)
        allowed = [str(entry) for entry in references_of(item.reference)]
        right = answer.strip() in {entry.strip() for entry in allowed}
        return Score(float(right), answer, "" if right else f"expected {_either(allowed)}, got {_short(answer)}")

    return guarded(score)


def number(tolerance: float = 1e-6) -> Scorer:
    """1 where the last number of the text equals the reference's, within `tolerance` times the larger of 1 and it.

    Reads signs, currency signs, thousands separators (1,234.5), exponents, and `#### 42`, which goes before all else.
    A reference without a number gives a score without a value.
    """

    def score(item: Item, completion: Completion) -> Score:
        expected = last_number(item.reference)
        if expected is None:
            return Score(None, None, f"the reference {_short(str(item.reference))} holds no number")
        answer = last_number(spoken(completion))
        if answer is None:
            return Score(0.0, None, f"no number in the answer; expected {expected:g}")
        right = abs(answer - expected) <= tolerance * max(1.0, abs(expected))
        return Score(float(right), f"{answer:.15g}", "" if right else f"expected {expected:.15g}, got {answer:.15g}")

    return guarded(score)


def last_number(value: Any) -> float | None:
    """The number that a text ends in, as `number` reads it; None if there is none or it is not finite."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    text = str(value)
    marked = _MARKED.findall(text)
    found = _NUMBER.findall(marked[-1] if marked else text)
    if not found:
        return None
    plain = float(re.sub(r"[,$€£]", "", found[-1]).replace("−", "-"))
    return plain if math.isfinite(plain) else None


def references_of(reference: Any) -> list[Any]:
    """All answers that a reference allows: a list's entries, else the reference itself."""
    return list(reference) if isinstance(reference, list | tuple | set) else [reference]


def _either(allowed: list[str]) -> str:
    return " or ".join(_short(entry) for entry in allowed)


def _listed(entries: set[str]) -> str:
    return ", ".join(sorted(entries))


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
