"""Scorers: what is right, what differs, and that failures are never a 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import ConfigError
from sapwood.evaluate import Scorer, exact, guarded, number, pick_scorer, regex, set_f1
from sapwood.evaluate.scorers import last_number
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, Score


def item(reference: object) -> Item:
    return Item(Conversation((Message("user", "?"),)), reference)


def said(text: str, ended: Ended = Ended.STOP) -> Completion:
    return Completion(Prompt((), (), ""), (), text, ended, error="out of memory" if ended is Ended.ERROR else None)


def value(scorer: Scorer, reference: object, text: str) -> float | None:
    return scorer(item(reference), said(text)).value


def test_exact() -> None:
    assert value(exact(), "Yes", " Yes\n") == 1
    assert value(exact(), "Yes", "yes") == 0
    assert value(exact(casefold=True), "Straße", "STRASSE") == 1
    assert value(exact(strip=False), "Yes", " Yes") == 0
    assert value(exact(), ["Yes", "Y"], "Y") == 1
    assert value(exact(), "Yes", "<think>No? Rather not.</think>\nYes") == 1
    assert "expected 'Yes', got 'No'" in exact()(item("Yes"), said("No")).explanation
    assert exact()(item("Yes"), said("No ")).answer == "No"


@pytest.mark.parametrize("scorer", [exact(), number(), regex(r"(\d+)")])
def test_a_thought_that_never_ended_is_no_answer(scorer: Scorer) -> None:
    thinking = Message("assistant", reasoning="It may be 4")
    cut = Completion(Prompt((), (), ""), (), "It may be 4", Ended.LENGTH, message=thinking)
    assert scorer(item("4"), cut).value == 0
    assert scorer(item("4"), replace(cut, message=Message("assistant", "4", reasoning="It may be 4"))).value == 1


def test_set_f1() -> None:
    assert value(set_f1(), "a, b", "B,a") == 1
    assert value(set_f1(), "a, b", "a, c") == 0.5
    assert value(set_f1(";"), ["a", "b"], "a") == pytest.approx(2 / 3)
    assert value(set_f1(), "", " ") == 1
    assert value(set_f1(), "", "a") == 0
    assert set_f1()(item("a, b"), said("a, c")).explanation == "missing b; too many c"


def test_regex() -> None:
    assert value(regex(r"answer: (\w+)"), "B", "answer: A, no, answer: B") == 1
    assert value(regex(r"answer: (\w+)"), "A", "answer: A, no, answer: B") == 0
    assert value(regex(r"\d{4}"), None, "in 1984") == 1
    assert value(regex(r"\d{4}"), None, "in 84") == 0
    assert value(regex(r"x(a)|y(b)"), "b", "yb") == 1
    with pytest.raises(ConfigError, match="not a regular expression"):
        regex("(")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 3 + 4 = 7.", 7),
        ("#### 42", 42),
        ("#### 1,234\nthat was step 3", 1234),
        ("it costs $1,234.50", 1234.5),
        ("−5 degrees", -5),
        ("-$12", -12),
        ("pages 3-4", 4),
        ("a, b, 1,2,3", 3),
        ("about .5", 0.5),
        ("6.02e23", 6.02e23),
        ("v2 of CO2 has 9 parts", 9),
        ("+8", 8),
        ("1,234,567", 1234567),
        ("1,2345", 2345),
        (12, 12),
        ("no digits", None),
        ("1e999", None),
        (True, None),
        (None, None),
    ],
)
def test_last_number(text: object, expected: float | None) -> None:
    assert last_number(text) == expected


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "so it is {}.", "#### {:,}", "1 and then {} apples"]))
def test_every_integer_is_read_back(n: int, form: str) -> None:
    assert value(number(0), n, form.format(n)) == 1
    assert value(number(0), n, form.format(n + 1)) == 0


def test_number_tolerance_and_unreadable_reference() -> None:
    assert value(number(0.01), 100, "100.9") == 1
    assert value(number(0.01), 100, "102") == 0
    assert value(number(0.01), 0.001, "0.01") == 1, "below 1 the tolerance is absolute"
    assert value(number(), 3, "none") == 0
    assert value(number(), "many", "3") is None


@pytest.mark.parametrize("scorer", [exact(), set_f1(), regex("a"), number()])
def test_a_failed_completion_is_not_scored(scorer: Scorer) -> None:
    score = scorer(item("1"), said("", Ended.ERROR))
    assert score.value is None
    assert "out of memory" in score.explanation


def test_a_scorer_that_raises_or_leaves_the_range_is_not_a_zero() -> None:
    def broken(item: Item, completion: Completion) -> Score:
        raise KeyError("column")

    score = guarded(broken)(item("1"), said("1"))
    assert score.value is None
    assert "KeyError" in score.explanation
    assert guarded(lambda item, completion: Score(2.0))(item("1"), said("1")).value is None
    assert guarded(lambda item, completion: Score(float("nan")))(item("1"), said("1")).value is None


@pytest.mark.parametrize(
    ("references", "name"),
    [
        (["yes", "no", "yes"], "exact"),
        (["12", "-3.5", "1,000"], "number"),
        ([1, 2.5], "number"),
        (["He has 3.\nSo\n#### 3", "#### 4"], "number"),
        (['{"name": "f", "arguments": {"a": 1}}'], "function call"),
        ([{"f": {"a": [1, ""]}}, [{"name": "g", "arguments": {}}]], "function call"),
        (["A long answer that could be worded in many other ways as well."] * 3, "none"),
        (["yes"] * 9 + ["Well, that depends on what you mean by yes."], "none"),
        ([], "none"),
    ],
)
def test_guess(references: list[object], name: str) -> None:
    guess = pick_scorer(references)
    assert guess.name == name
    assert (guess.scorer is None) == (name == "none")
    assert guess.why.endswith(".")
    if guess.scorer is not None:
        for reference in references:
            text = reference if isinstance(reference, str) else str(reference)
            assert guess.scorer(item(reference), said(text)).explanation.startswith("the reference") is False
