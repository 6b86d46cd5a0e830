"""Calls against their schemas, and results against calls."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.chat import check_conversation, schema_of, validate_calls
from sapwood.records import Message, ToolCall


def tool(name: str, properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required or [], **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


GROW = tool(
    "grow_tree",
    {
        "kind": {"type": "string", "enum": ["oak", "ash"]},
        "rings": {"type": "integer", "minimum": 0},
        "site": {"type": "object", "properties": {"at": {"type": "array", "items": {"type": "number"}}}, "required": ["at"]},
        "note": {"type": "string", "nullable": True},
    },
    ["kind"],
)


def said(**arguments: Any) -> list[str]:
    return validate_calls(Message("assistant", tool_calls=(ToolCall("grow_tree", arguments),)), [GROW])


def test_a_right_call_has_nothing_to_say() -> None:
    assert said(kind="oak", rings=3, site={"at": [1, 2.5]}, note=None) == []
    assert said(kind="ash") == []
    assert validate_calls(Message("assistant", tool_calls=(ToolCall("grow_tree", {"kind": "oak"}),)), [GROW["function"]]) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "`kind` is missing"),
        ({"kind": "elm"}, '`kind`: "elm" is not one of ["oak", "ash"]'),
        ({"kind": "oak", "rings": "3"}, '`rings`: expected integer, found "3"'),
        ({"kind": "oak", "rings": True}, "`rings`: expected integer, found true"),
        ({"kind": "oak", "rings": -1}, "`rings`: -1 is less than the minimum"),
        ({"kind": "oak", "ring": 3}, "`ring` is no argument of it. Did you mean 'rings'? Known: kind, note, rings, site."),
        ({"kind": "oak", "site": {"at": [1, "x"]}}, '`site.at[1]`: expected number, found "x"'),
        ({"kind": "oak", "site": {}}, "`site`: `at` is missing"),
        ({"kind": None}, '`kind`: null is not one of ["oak", "ash"]'),
    ],
)
def test_a_wrong_call_is_told_with_the_path(arguments: dict[str, Any], words: str) -> None:
    sentences = said(**arguments)
    assert any(sentence.startswith("call 1 (grow_tree)") and words in sentence for sentence in sentences), sentences


def test_an_unknown_function_is_told_with_the_nearest() -> None:
    (sentence,) = validate_calls(Message("assistant", tool_calls=(ToolCall("grow_trees", {}),)), [GROW])
    assert sentence == "call 1 (grow_trees): unknown function. Did you mean 'grow_tree'? Offered: grow_tree."


def test_schemas_of_functions_fit_their_calls() -> None:
    def find(kind: str, near: list[float] | None = None, way: dict[str, int] | None = None) -> None: ...

    calls = (ToolCall("find", {"kind": "oak", "near": None, "way": {"a": 1}}),)
    assert validate_calls(Message("assistant", tool_calls=calls), [schema_of(find)]) == []
    (sentence,) = validate_calls(Message("assistant", tool_calls=(ToolCall("find", {"kind": "a", "way": {"a": "b"}}),)), [schema_of(find)])
    assert "`way.a`: expected integer" in sentence


def test_open_schemas_take_more() -> None:
    free = tool("free", {"a": {}}, additionalProperties=True)
    closed = tool("closed", {"a": {}}, additionalProperties=False)
    assert validate_calls(Message("assistant", tool_calls=(ToolCall("free", {"b": 1}),)), [free]) == []
    assert len(validate_calls(Message("assistant", tool_calls=(ToolCall("closed", {"b": 1}),)), [closed])) == 1


def test_broken_schemas_are_told_once_and_nothing_is_fetched() -> None:
    broken = tool("broken", {"a": {"type": "strnig"}})
    away = tool("away", {"a": {"$ref": "http://127.0.0.1:9/schema.json"}})
    messages = [
        Message("user", "?"),
        Message("assistant", tool_calls=(ToolCall("broken", {"a": 1}), ToolCall("away", {"a": 1}))),
    ]
    kinds = [(found.kind, found.sentence) for found in check_conversation(messages, [broken, away, away])]
    assert [kind for kind, _ in kinds] == ["a tool's schema is broken"] * 3
    assert "'broken' are no JSON Schema: $" in kinds[0][1]
    assert "offered twice" in kinds[1][1]
    assert "cannot be followed" in kinds[2][1]


A, B = ToolCall("grow_tree", {"kind": "oak"}, "a"), ToolCall("fell", {}, "b")


def results(*messages: Message) -> list[tuple[str, int]]:
    return [(found.kind, found.index) for found in check_conversation([Message("user", "?"), *messages], [])]


def test_results_that_answer_their_calls_in_order_have_nothing_to_say() -> None:
    asked = Message("assistant", tool_calls=(A, B))
    by_id = (Message("tool", "1", tool_call_id="a"), Message("tool", "2", tool_call_id="b"))
    by_name = (Message("tool", "1", name="grow_tree"), Message("tool", "2", name="fell"))
    for answers in (by_id, by_name, (Message("tool", "1"), Message("tool", "2"))):
        assert results(asked, *answers, Message("assistant", "done")) == []
    assert results(asked) == []  # the conversation ends in calls: their results are yet to come


def test_results_that_do_not_are_told() -> None:
    asked, done = Message("assistant", tool_calls=(A, B)), Message("assistant", "done")
    wrong_order = (Message("tool", "2", tool_call_id="b"), Message("tool", "1", tool_call_id="a"))
    assert results(asked, *wrong_order, done) == [("tool results are in another order than their calls", 2)]
    assert results(asked, Message("tool", "1", tool_call_id="a"), done) == [("a tool call has no result, and the conversation goes on", 1)]
    assert results(asked, done) == [("a tool call has no result, and the conversation goes on", 1)]
    stray = Message("tool", "1", tool_call_id="z")
    assert results(asked, stray) == [("a tool result answers no call", 2)]
    assert results(Message("assistant", "x"), stray) == [("a tool result answers no call", 2)]
    assert results(asked, Message("tool", "1", name="plant")) == [("a tool result answers no call", 2)]
    three = (*(Message("tool", str(n), tool_call_id=n) for n in "ab"), Message("tool", "3", tool_call_id="a"))
    assert results(asked, *three) == [("a tool result answers no call", 4)]
