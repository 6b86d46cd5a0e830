"""Calls in plain text: what is written is read back, and nothing else is taken for a call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.chat import call_text, parse_call, tool_prompt
from sapwood.records import ToolCall

VALUES = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), lambda v: st.lists(v, max_size=2), max_leaves=4)
CALLS = st.lists(st.builds(ToolCall, st.text(min_size=1, max_size=6), st.dictionaries(st.text(max_size=4), VALUES, max_size=3)), max_size=3)


@given(CALLS, st.sampled_from(["", " ", "\n\t"]))
def test_written_calls_are_read_back(calls: list[ToolCall], space: str) -> None:
    assert parse_call(space + call_text(calls) + space) == calls


@given(CALLS.filter(bool), st.sampled_from(["", "\n"]))
def test_tagged_calls_are_read_back(calls: list[ToolCall], space: str) -> None:
    text = "\n".join(f"<tool_call>{space}{call_text([call])}{space}</tool_call>" for call in calls)
    if not any("</tool_call>" in call_text([call]) for call in calls):
        assert parse_call(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "42",
        'Sure! {"name": "f", "arguments": {}}',
        '{"name": "f", "arguments": {}} done',
        '{"name": "f"}',
        '{"name": "", "arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": {}, "parameters": {}}',
        '{"name": "f", "arguments": {}, "note": 1}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '[{"name": "f", "arguments": {}}, 3]',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call> there',
        '<tool_call>{"name": "f", "arguments": {}}',
    ],
)
def test_anything_else_is_no_call(text: str) -> None:
    assert parse_call(text) is None


def test_other_spellings_of_arguments() -> None:
    assert parse_call('{"name": "f", "parameters": {"x": 1}}') == [ToolCall("f", {"x": 1})]
    assert parse_call('{"id": "c1", "name": "f", "arguments": "{\\"x\\": 1}"}') == [ToolCall("f", {"x": 1}, "c1")]


def test_the_prompt_has_one_line_a_function() -> None:
    wrapped = {"type": "function", "function": {"name": "find", "description": "Finds.\nTrees.", "parameters": {"type": "object"}}}
    bare = {"name": "grow", "parameters": {"type": "object"}}
    lines = tool_prompt([wrapped, bare]).splitlines()
    assert lines[1] == '{"name":"find","description":"Finds.\\nTrees.","parameters":{"type":"object"}}'
    assert lines[2] == '{"name":"grow","parameters":{"type":"object"}}'
    assert len(lines) == 4
