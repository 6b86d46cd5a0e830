"""Function calls: name, arguments, types, optional ones, nesting, several at once."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.evaluate import function_call
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, Score, ToolCall


def judge(reference: Any, calls: Any) -> Score:
    text = calls if isinstance(calls, str) else orjson.dumps(calls).decode()
    item = Item(Conversation((Message("user", "?"),)), reference)
    return function_call()(item, Completion(Prompt((), (), ""), (), text, Ended.STOP))


def test_calls_of_the_message_go_before_the_text() -> None:
    """They are read in the way of the model's template; a text that looks like a call counts where the message has none."""
    item = Item(Conversation((Message("user", "?"),)), {"name": "f", "arguments": {"x": 1}})
    right, wrong = (Message("assistant", "I look.", tool_calls=(ToolCall("f", {"x": value}),)) for value in (1, 2))
    text = orjson.dumps(call(x=1)).decode()
    for message, said, value in [
        (right, "<tool_call>…", 1.0),
        (wrong, text, 0.0),
        (Message("assistant", text), "", 1.0),
        (Message("assistant", "no"), text, 0.0),
    ]:
        assert function_call()(item, Completion(Prompt((), (), ""), (), said, Ended.STOP, message=message)).value == value


def call(name: str = "f", /, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("allowed", "given", "right"),
    [
        ([7890], 7890, True),
        ([2], 2.0, True),
        ([2.0], 2, True),
        ([2], "2", False),
        (["2"], 2, False),
        ([1], True, False),
        ([True], 1, False),
        ([False], False, True),
        (["New York, NY"], "new york ny", True),
        (["April 1, 2024"], "April 1 2024", True),
        (["it's"], 'it"s', True),
        (["km", "kilometers"], "Kilometers", True),
        (["km"], "miles", False),
        ([None], None, True),
        ([None], 0, False),
        ([["A", "b"]], ["a", "B"], True),
        ([["a", "b"]], ["b", "a"], False),
        ([["a", "b"]], ["a"], False),
        ([[[1, 2], ["X"]]], [[1.0, 2], ["x"]], True),
        ([{"city": ["Rome"], "zip": ["", "00100"]}], {"city": "rome"}, True),
        ([{"city": ["Rome"], "zip": ["00100"]}], {"city": "rome"}, False),
        ([{"city": ["Rome"]}], {"city": "rome", "more": 1}, False),
        ([[{"k": [1]}, {"k": [2]}]], [{"k": 1}, {"k": 2}], True),
        ([[{"k": [1]}]], [{"k": "1"}], False),
    ],
)
def test_values(allowed: list[Any], given: Any, right: bool) -> None:
    score = judge({"f": {"x": allowed}}, call(x=given))
    assert score.value == float(right)
    assert score.answer is not None
    assert ("argument `x`" in score.explanation) != right


def test_what_differs_is_said() -> None:
    possible = {"f": {"x": [1], "unit": ["km", ""]}}
    assert judge(possible, call(x=1)).value == 1, "an argument with '' among its values may be left out"
    assert judge(possible, call(x=1, unit="KM")).value == 1
    assert "argument `x` is missing" in judge(possible, call(unit="km")).explanation
    assert "argument `y` is unknown" in judge(possible, call(x=1, y=2)).explanation
    assert judge(possible, call(x=1, unit="mi")).explanation == 'argument `unit`: expected "km", got "mi"'
    assert judge(possible, call("g", x=1)).explanation == "function: expected 'f', got 'g'"
    assert "no function call" in judge(possible, 'I would call {"name": "f"}').explanation
    assert "expected one call, got 2 calls" in judge(possible, [call(x=1), call(x=1)]).explanation


def test_several_calls_in_any_order_each_used_once() -> None:
    reference = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}]
    assert judge(reference, [call(x=1), call(x=2)]).value == 1, "the first reference must leave 1 to the second"
    assert judge(reference, [call(x=2), call(x=1)]).value == 1
    assert judge(reference, [call(x=2), call(x=2)]).value == 0
    assert judge(reference, [call(x=1)]).value == 0


def test_forms_of_references_and_answers() -> None:
    reference = call(x=[1, {"k": "V"}])
    for form in (reference, [reference], orjson.dumps(reference).decode(), {"type": "function", "function": reference}):
        assert judge(form, reference).value == 1, form
    for text in ('```json\n{"name": "f", "arguments": {"x": 1}}\n```', '<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>'):
        assert judge(call(x=1), text).value == 1, text
    assert judge({"find": {"name": ["Ann"]}}, call("find", name="ann")).value == 1, "an argument may be called name"
    assert judge(call(x=1), call(x=1, y=1)).value == 0
    for arguments in ({"k": "V", "more": 1}, {}):
        assert judge(reference, call(x=[1, arguments])).value == 0, "objects inside have no more and no fewer keys"
    assert judge([], "There is nothing to call.").value == 1
    assert judge([], call(x=1)).value == 0


@pytest.mark.parametrize("reference", ["free text", {"f": 3}, 7, {"a": {}, "b": {}}])
def test_an_unreadable_reference_is_not_a_zero(reference: Any) -> None:
    score = judge(reference, call(x=1))
    assert score.value is None
    assert "reference" in score.explanation


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text("abc XY", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("kl", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text("pqr", min_size=1, max_size=3), plain, max_size=3), st.data())
def test_a_call_meets_itself_and_no_other_arguments(arguments: dict[str, Any], data: st.DataObject) -> None:
    assert judge(call(**arguments), call(**arguments)).value == 1
    if arguments:
        name = data.draw(st.sampled_from(sorted(arguments)))
        assert judge(call(**arguments), call(**{**arguments, name: "something else"})).value == 0
        assert judge(call(**arguments), call(**{key: entry for key, entry in arguments.items() if key != name})).value == 0
