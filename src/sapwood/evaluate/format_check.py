"""Whether answers have the form that is needed, whatever they say: a reason of its own for fine-tuning.

In: the scorer's name and the references; scores of an arm. Out: the share of valid answers.
Left out on purpose: schemas of one's own, and forms that no rule can tell (tone, layout).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from sapwood.evaluate.experiment import ArmScore
from sapwood.evaluate.items import answer_text
from sapwood.records import Item
from sapwood.stats import Interval, mean_interval

ROWS_A_LABEL = 3
"""Where answers recur at least this often on average, they are labels of a list."""
_THOUGHT = "</think>"


@dataclass(frozen=True, slots=True)
class Form:
    """`name` completes "answers that are …"; `valid` looks at one scored answer."""

    name: str
    valid: Callable[[ArmScore], bool]


@dataclass(frozen=True, slots=True)
class FormShare:
    """How many answers of an arm are valid."""

    share: float
    interval: Interval

    def to_dict(self) -> dict[str, float]:
        """{share, low, high}"""
        return {"share": self.share, "low": self.interval.low, "high": self.interval.high}


def form_of(scorer: str, train_items: Sequence[Item], items: Sequence[Item]) -> Form | None:
    """The form that the references have: calls, numbers, labels of a list, or JSON. None where no rule tells."""
    if scorer in ("function call", "function-call"):
        return Form("function calls in JSON", lambda score: score.answer is not None)
    if scorer == "number":
        return Form("numbers", lambda score: score.answer is not None)
    answers = [_plain(answer_text(item)) for item in train_items]
    known = set(answers) | {_plain(item.reference) for item in items if isinstance(item.reference, str)}
    if answers and len(answers) >= ROWS_A_LABEL * len(known):
        return Form(f"one of the {len(known)} labels", lambda score: _plain(_said(score)) in known)
    if answers and all(_is_json(answer) for answer in answers):
        return Form("JSON", lambda score: _is_json(_said(score)))
    return None


def form_share(form: Form, scores: Sequence[ArmScore]) -> FormShare | None:
    """Of the answers that came at all, how many are valid. None where none came."""
    counted = [score for score in scores if score.ended != "error"]
    if not counted:
        return None
    values = [float(form.valid(score)) for score in counted]
    named = any(score.cluster is not None for score in counted)
    clusters = [score.cluster if score.cluster is not None else ("item", score.item) for score in counted] if named else None
    return FormShare(sum(values) / len(values), mean_interval(values, clusters))


def _said(score: ArmScore) -> str:
    return score.text.rsplit(_THOUGHT, 1)[-1]


def _plain(text: Any) -> str:
    return str(text).strip().casefold()


def _is_json(text: str) -> bool:
    """An object or a list: a bare word or number is no format that anybody asked for."""
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False
