"""Safe mends: each does one thing and says so; what needs no mending is not touched; mending twice changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.data.mending import mended

ASK, TELL = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Below the bark."}
CALL = '{"name": "find", "arguments": "{\\"kind\\": \\"oak\\"}"}'


def messages(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


@pytest.mark.parametrize(
    ("row", "wanted", "words"),
    {
        "a slip": (messages({"role": "usr", "content": "Where?"}, TELL), messages(ASK, TELL), "role spelt 'user'"),
        "two places changed": (messages(ASK, {**TELL, "role": "assitsant"}), messages(ASK, TELL), "role spelt 'assistant'"),
        "case and marks": (messages({**ASK, "role": " <|User|>: "}, TELL), messages(ASK, TELL), "role spelt 'user'"),
        "text of messages": ({"messages": '[{"role": "user", "content": "Where?"}]'}, messages(ASK), "JSON text parsed"),
        "text of tools": (messages(ASK, TELL, tools='[{"name": "f"}]'), messages(ASK, TELL, tools=[{"name": "f"}]), "JSON text parsed"),
        "a mark": (messages({**ASK, "content": "\ufeffWhere?\u200b"}, TELL), messages(ASK, TELL), "invisible letters"),
        "an empty system turn": (messages({"role": "system", "content": " "}, ASK, TELL), messages(ASK, TELL), "empty system turn"),
        "an idle end": (messages(ASK, TELL, ASK), messages(ASK, TELL), "1 turn at the end"),
        "an empty end": (messages(ASK, TELL, ASK, {**TELL, "content": " "}), messages(ASK, TELL), "2 turns at the end"),
    }.values(),
)
def test_each_mend(row: dict[str, Any], wanted: dict[str, Any], words: str) -> None:
    before = copy.deepcopy(row)
    found, changes = mended(row, "messages", {})
    assert found == wanted
    assert len(changes) == 1
    assert words in changes[0].what
    assert row == before, "the row itself stays as it was"


def test_arguments_that_were_made_text_twice_lose_one_of_the_two() -> None:
    call = {"function": {"name": "find", "arguments": '"{\\"kind\\": \\"oak\\"}"'}}
    found, changes = mended(messages(ASK, {"role": "assistant", "tool_calls": [call]}), "messages", {})
    assert found["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"kind": "oak"}'
    assert "JSON text twice" in changes[0].what


@pytest.mark.parametrize(
    "row",
    [
        messages(ASK, TELL),
        messages(ASK, {"role": "assistant", "content": " Lima \n"}),
        messages({**ASK, "content": "naÃ¯ve 👩‍🌾 می‌خواهم"}, TELL),
        messages({"role": "moderator", "content": "a"}, TELL),
        messages({"role": "human", "content": ""}, ASK, TELL),
        messages(ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}),
        messages(ASK, {"role": "assistant", "content": ""}),
        {"messages": "no JSON"},
        {"messages": None},
        {"messages": [1, None, "a", {"role": 5}]},
    ],
)
def test_what_has_two_meanings_or_needs_nothing_is_left_alone(row: dict[str, Any]) -> None:
    assert mended(row, "messages", {}) == (row, [])


def test_other_formats_keep_their_columns() -> None:
    row = {"prompt": "\ufeffWhere?", "completion": "Here.", "id": "\ufeff7"}
    assert mended(row, "prompt-completion", {})[0] == {"prompt": "Where?", "completion": "Here.", "id": "\ufeff7"}
    row = {"prompt": [{"role": "usr", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    assert mended(row, "prompt-completion", {})[0]["prompt"] == [{"role": "user", "content": "a"}]
    assert (
        mended({"frage": "a\ufeff", "antwort": "b"}, "prompt-completion", {"prompt": "frage", "completion": "antwort"})[0]["frage"] == "a"
    )
    shared = {"conversations": [{"from": "humn", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]}
    assert mended(shared, "sharegpt", {})[0] == {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=8)
    | st.sampled_from(["user", "usr", "assistant", "\ufeff", CALL, "[]"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "from", "content", "value", "tool_calls", "arguments", "function", "name"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["messages", "conversations", "prompt", "completion", "tools", "id"]), JSON, max_size=4), st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_anything_is_mended_without_a_crash_and_only_once(row: dict[str, Any], shared: bool) -> None:
    form = "sharegpt" if shared else "messages"
    once, changes = mended(row, form, {})
    assert (once == row) == (not changes)
    assert once.keys() == row.keys()
    assert once.get("id") == row.get("id")
    twice, again = mended(once, form, {})
    assert len(again) <= len(changes), "text inside text takes another turn, and nothing else does"
    if not any("JSON text" in change.what for change in changes):
        assert (twice, again) == (once, [])
