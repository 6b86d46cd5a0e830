"""Prices, costs, break-even, the form of answers, and a hosted model's answers from a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.errors import ConfigError, DataError
from sapwood.evaluate import ArmScore, exact
from sapwood.evaluate.costs import break_even, hosted_cost, own_cost, prices_from
from sapwood.evaluate.format_check import form_of, form_share
from sapwood.evaluate.hosted import HOSTED, hosted_arm, read_answers
from sapwood.records import Conversation, Item, Message
from sapwood.requirements import Prices
from sapwood.stats import mean_interval

PRICE = st.floats(0.01, 1e3)


def score(text: str = "", value: float | None = 1.0, answer: str | None = None, ended: str = "stop", **more: Any) -> ArmScore:
    given = {"tokens_in": 100, "tokens_out": 10, "seconds": 2.0, "cluster": None, **more}
    return ArmScore(arm="a", item=f"{text}{value}", value=value, answer=answer, explanation="", text=text, ended=ended, **given)


def item(question: str, answer: str) -> Item:
    return Item(Conversation((Message("user", question),)), answer, meta={"answer": Message("assistant", answer)})


@given(PRICE, PRICE, st.integers(1, 20), st.integers(0, 20))
def test_own_cost_is_time_by_price_and_a_right_answer_costs_its_share(hour: float, seconds: float, right: int, wrong: int) -> None:
    scores = [score("r", seconds=seconds)] * right + [score("w", 0.0, seconds=seconds)] * wrong
    cost = own_cost("arm", scores, Prices(machine_hour=hour))
    assert cost.a_thousand == pytest.approx(1000 * seconds * hour / 3600)
    assert cost.right is not None
    assert cost.right * right == pytest.approx((right + wrong) * seconds * hour / 3600), "all that is paid, by the right ones"
    assert cost.right_range is not None
    assert cost.right_range[0] <= cost.right * (1 + 1e-9)
    assert cost.right <= cost.right_range[1] * (1 + 1e-9)


def test_nothing_right_costs_without_end_and_no_price_is_no_cost() -> None:
    cost = own_cost("arm", [score("w", 0.0)], Prices(machine_hour=1))
    assert cost.right == math.inf
    assert cost.to_dict()["dollars_a_right_answer"] is None
    free = own_cost("arm", [score()], Prices())
    assert (free.a_thousand, free.right) == (None, None)
    assert free.seconds == 2.0


@given(PRICE, PRICE, st.floats(1, 5000), st.floats(1, 5000))
def test_a_hosted_query_costs_its_tokens(price_in: float, price_out: float, tokens_in: float, tokens_out: float) -> None:
    prices = Prices(hosted_in=price_in, hosted_out=price_out)
    cost = hosted_cost(HOSTED, 0.5, mean_interval([0, 1]), tokens_in, tokens_out, prices)
    assert cost.a_thousand == pytest.approx(1000 * (tokens_in * price_in + tokens_out * price_out) / 1e6)
    assert cost.right == pytest.approx(cost.a_thousand / 500)


@given(PRICE, PRICE, PRICE, st.floats(0, 1e5))
def test_at_break_even_both_ways_have_cost_the_same(hour: float, price: float, setup: float, training: float) -> None:
    prices = Prices(machine_hour=hour, hosted_in=price, hosted_out=price, setup=setup, queries_a_month=100)
    tuned = own_cost("tuned", [score()], prices)
    hosted = hosted_cost(HOSTED, 1.0, None, 100, 10, prices)
    found = break_even(tuned, hosted, training, prices)
    assert found is not None
    assert tuned.a_thousand is not None
    assert hosted.a_thousand is not None
    if hosted.a_thousand <= tuned.a_thousand:
        assert found.queries == math.inf
        assert found.to_dict()["queries"] is None
    else:
        own = setup + training / 3600 * hour + found.queries * tuned.a_thousand / 1000
        assert own == pytest.approx(found.queries * hosted.a_thousand / 1000, rel=1e-6)
        assert found.months == pytest.approx(found.queries / 100)
    assert break_even(tuned, hosted, training, Prices(hosted_in=1, hosted_out=1)) is None


def test_flags_go_before_the_file_and_bad_prices_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("hosted_in: 3\nhosted_out: 15\nmachine_hour: 2\n")
    assert prices_from(file, Prices(machine_hour=0.5)) == Prices(hosted_in=3, hosted_out=15, machine_hour=0.5)
    assert prices_from(None, Prices(setup=5)) == Prices(setup=5)
    assert prices_from(file, Prices(hosted_in=4.0)).hosted_in == 4.0, "the other price may stand in the file"
    with pytest.raises(ConfigError, match="two prices"):
        prices_from(None, Prices(hosted_in=3.0))
    file.write_text("hosted_inn: 3\n")
    with pytest.raises(ConfigError, match="hosted_in"):
        prices_from(file, Prices())
    for bad in ({"machine_hour": -1.0}, {"machine_hour": math.nan}, {"hosted_rate": 90.0}):
        with pytest.raises(ConfigError):
            Prices(**bad)


def test_the_form_is_found_from_the_references() -> None:
    labels = [item(f"q{n}", ("Yes", "No")[n % 2]) for n in range(12)]
    form = form_of("exact", labels, labels[:2])
    assert form is not None
    assert form.name == "one of the 2 labels"
    said = [score("yes"), score(" NO\n"), score("maybe", 0.0), score("<think>no, yes</think>yes"), score("", None, ended="error")]
    share = form_share(form, said)
    assert share is not None
    assert share.share == 0.75, "what failed says nothing of the form"
    assert form_share(form, [score("", None, ended="error")]) is None
    texts = [item(f"q{n}", f"answer {n}") for n in range(12)]
    assert form_of("exact", texts, texts) is None
    objects = [item(f"q{n}", '{"n": %d}' % n) for n in range(12)]  # noqa: UP031
    form = form_of("exact", objects, objects)
    assert form is not None
    assert form.name == "JSON"
    assert [form.valid(score(text)) for text in ('{"n": 7}', "[1]", "7", "{n: 7}", "Sure: {}")] == [True, True, False, False, False]
    for scorer, name in (("function call", "function calls in JSON"), ("number", "numbers")):
        form = form_of(scorer, texts, texts)
        assert form is not None
        assert form.name == name
        assert form.valid(score("x", answer="7"))
        assert not form.valid(score("x", 0.0))


def test_hosted_answers_are_scored_like_all_others(tmp_path: Path) -> None:
    items = [item("one", "1"), item("two", "2"), item("three", "3")]
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps({"item": one.id, "answer": "1", "tokens_in": 7}) for one in items[:2]) + b"\n\n")
    scores = hosted_arm(read_answers(file, items), items, exact())
    assert [(one.item, one.value, one.tokens_in, one.tokens_out) for one in scores] == [(items[0].id, 1.0, 7, 0), (items[1].id, 0.0, 7, 0)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "answers.jsonl:2: not JSON"),
        ('{"item": "?", "answer": "1"}', "answers.jsonl:2: item '\\?' is not asked"),
        ('{"item": 1}', "answers.jsonl:2: each line is one object"),
        ('{"item": "ID", "answer": "1"}', "answers.jsonl:2: item '.*' is answered a second time"),
        ('{"item": "ID", "answer": "1", "tokens_in": -1}', "answers.jsonl:2: `tokens_in` is -1"),
    ],
)
def test_a_bad_line_is_named_with_its_place(tmp_path: Path, line: str, words: str) -> None:
    items = [item("one", "1"), item("two", "2")]
    first = orjson.dumps({"item": items[0].id, "answer": "1"}).decode()
    (tmp_path / "answers.jsonl").write_text(f"{first}\n{line.replace('ID', items[0].id)}\n")
    with pytest.raises(DataError, match=words):
        read_answers(tmp_path / "answers.jsonl", items)


def test_an_absent_file_of_answers_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "answers.jsonl", [])
