"""Rows in the four formats → conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sapwood.data import Reading, columns_from, read
from sapwood.errors import DataError
from sapwood.records import Conversation, Message, Source, ToolCall


def write(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*turns: Any, **columns: Any) -> dict[str, Any]:
    """A `messages` row; a turn is (role, content) or a whole message."""
    return {"messages": [turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns], **columns}


def one(folder: Path, row: Any, **how: Any) -> Conversation:
    reading = read([write(folder, row)], **how)
    assert not reading.refused, reading.refused
    assert reading.total == 1
    return reading.conversations[0]


def why(folder: Path, row: Any) -> str:
    """Why the row is refused, read among good rows of the same file."""
    good = chat(("user", "q"), ("assistant", "a"))
    reading = read([write(folder, *[good] * 30, row)])
    assert [refusal.source for refusal in reading.refused] == [Source(str(folder / "rows.jsonl"), 31)]
    assert len(reading.conversations) == 30
    assert reading.total == 31
    refusal = reading.refused[0]
    assert refusal.fix, "every refusal names a fix"
    return f"{refusal.reason} | {refusal.fix}"


# ------------------------------------------------------------------ the same conversations in every format

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
JSON_VALUES = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=4)
TOOLS = st.lists(st.builds(lambda name: {"type": "function", "function": {"name": name, "parameters": {}}}, TEXT), max_size=2)
EXTRA = st.dictionaries(st.sampled_from(["id", "topic", "page"]), JSON_VALUES, max_size=2)
CALLS = st.lists(st.builds(ToolCall, TEXT, st.dictionaries(TEXT, JSON_VALUES, max_size=2), st.none() | TEXT), max_size=2).map(tuple)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Pairs of turns, an optional system message, tool calls: what all chat formats can say."""
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(TEXT)))
        calls = draw(CALLS)
        for call in calls:
            messages.append(Message("assistant", tool_calls=(call,), reasoning=draw(st.none() | TEXT)))
            messages.append(Message("tool", draw(TEXT), tool_call_id=call.id, name=call.name))
        messages.append(Message("assistant", draw(TEXT), reasoning=draw(st.none() | TEXT)))
    return Conversation(tuple(messages), tuple(draw(TOOLS)), meta=draw(EXTRA))


def spelt(message: Message, roles: dict[str, str], keys: tuple[str, str]) -> dict[str, Any]:
    out = message.for_template()
    role, content = out.pop("role"), out.pop("content")
    for call in out.get("tool_calls", ()):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])  # both spellings occur; this is the harder
    return {keys[0]: roles.get(role, role), keys[1]: content, **out}


def row_of(conversation: Conversation, columns: dict[str, Any]) -> dict[str, Any]:
    tools = {"tools": list(conversation.tools)} if conversation.tools else {}
    return {**columns, **tools, **conversation.meta}


def as_messages(c: Conversation) -> dict[str, Any]:
    return row_of(c, {"messages": [spelt(m, {}, ("role", "content")) for m in c.messages]})


def as_sharegpt(c: Conversation) -> dict[str, Any]:
    roles = {"user": "human", "assistant": "gpt", "tool": "observation"}
    return row_of(c, {"conversations": [spelt(m, roles, ("from", "value")) for m in c.messages]})


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(reading: Reading, expected: list[Conversation]) -> None:
    assert reading.refused == []
    assert reading.total == len(expected)
    for number, (found, wanted) in enumerate(zip(reading.conversations, expected, strict=True), 1):
        assert found.messages == wanted.messages
        assert found.tools == wanted.tools
        assert found.meta == wanted.meta
        assert found.source is not None
        assert found.source.line == number


@QUICK
@given(st.lists(conversations(), min_size=1, max_size=4))
def test_messages_and_sharegpt_round_trip(tmp_path: Path, expected: list[Conversation]) -> None:
    same(read([write(tmp_path, *map(as_messages, expected))]), expected)
    same(read([write(tmp_path, *map(as_sharegpt, expected))]), expected)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([as_messages(c) for c in expected], indent=1))
    same(read([path]), expected)


@QUICK
@given(st.lists(conversations(), min_size=1, max_size=4))
def test_lists_of_messages_as_prompt_and_completion_round_trip(tmp_path: Path, expected: list[Conversation]) -> None:
    rows, context = [], []
    for c in expected:
        spelling = [spelt(m, {}, ("role", "content")) for m in c.messages]
        rows.append(row_of(c, {"prompt": spelling[:-1], "completion": spelling[-1:]}))
        before = tuple(  # what a prompt says is context: its assistant turns are not trained
            Message(m.role, m.content, m.reasoning, m.tool_calls, m.tool_call_id, m.name, 0.0 if m.role == "assistant" else 1.0)
            for m in c.messages[:-1]
        )
        context.append(Conversation((*before, c.messages[-1]), c.tools, meta=c.meta))
    same(read([write(tmp_path, *rows)]), context)


@QUICK
@given(st.lists(st.tuples(st.none() | TEXT, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), EXTRA), min_size=1, max_size=4))
def test_alpaca_and_plain_pairs_round_trip(tmp_path: Path, rows: list[tuple[str | None, list[tuple[str, str]], dict[str, Any]]]) -> None:
    expected, alpaca = [], []
    for system, pairs, extra in rows:
        turns = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
        expected.append(Conversation((*([Message("system", system)] if system else []), *turns), meta=extra))
        (asked, answer), history = pairs[-1], [list(pair) for pair in pairs[:-1]]
        alpaca.append({"instruction": asked, "input": "", "output": answer, "system": system, "history": history, **extra})
    same(read([write(tmp_path, *alpaca)]), expected)
    short = [Conversation(c.messages[-2:], meta=c.meta) for c in expected]
    plain = [{"prompt": c.messages[0].content, "completion": c.messages[1].content, **c.meta} for c in short]
    same(read([write(tmp_path, *plain)]), short)


def test_alpaca_input_follows_the_instruction(tmp_path: Path) -> None:
    found = one(tmp_path, {"instruction": "Translate.", "input": "Hallo", "output": "Hello"})
    assert found.messages == (Message("user", "Translate.\n\nHallo"), Message("assistant", "Hello"))


# ------------------------------------------------------------------ one spelling for everything


ROLE_SPELLINGS = {
    "user": ["human", "User", "prompter"],
    "assistant": ["gpt", "bot", "model", "GPT", "ASSISTANT:", "claude"],
    "tool": ["function", "observation", "ipython", "FUNCTION RESPONSE", "tool-result", "tool_output"],
    "system": [" SYSTEM "],
    "developer": ["developer"],
}


@pytest.mark.parametrize(("role", "spelling"), [(role, word) for role, words in ROLE_SPELLINGS.items() for word in words])
def test_role_names(tmp_path: Path, role: str, spelling: str) -> None:
    assert one(tmp_path, chat((spelling, "x"), ("assistant", "a"))).messages[0].role == role


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"x": 1}}},
        {"id": "c1", "function": {"name": "add", "arguments": '{"x": 1}'}},
        {"id": "c1", "name": "add", "arguments": {"x": 1}},
        {"id": "c1", "tool": "add", "parameters": {"x": 1}},
        {"id": "c1", "tool_name": "add", "parameters": '{"x":1}'},
        {"id": "c1", "function": "add", "args": {"x": 1}},
    ],
)
def test_spellings_of_a_tool_call(tmp_path: Path, call: dict[str, Any]) -> None:
    turns = [("user", "1?"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "tool_name": "add", "tool_call_id": "c1", "content": {"sum": 1}}, ("assistant", "1")]
    found = one(tmp_path, chat(*turns)).messages
    assert found[1] == Message("assistant", "", tool_calls=(ToolCall("add", {"x": 1}, "c1"),))
    assert found[2] == Message("tool", '{"sum":1}', tool_call_id="c1", name="add")


def test_calls_as_sharegpt_roles_and_in_openais_first_form(tmp_path: Path) -> None:
    call = json.dumps({"name": "add", "arguments": {"x": 1}})
    turns = [{"from": "human", "value": "1?"}, {"from": "function_call", "value": call}, {"from": "observation", "value": "1"}]
    found = one(tmp_path, {"conversations": turns, "system": "Be brief.", "tools": json.dumps([{"name": "add", "parameters": {}}])})
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool"]
    assert found.messages[2].tool_calls == (ToolCall("add", {"x": 1}),)
    assert found.tools == ({"type": "function", "function": {"name": "add", "parameters": {}}},)
    old = one(tmp_path, chat(("user", "1?"), {"role": "assistant", "function_call": {"name": "add", "arguments": '{"x": 1}'}}))
    assert old.messages[1].tool_calls == (ToolCall("add", {"x": 1}),)


@pytest.mark.parametrize("role", ["function_call", "tool_calls", "FUNCTION CALLS", "tool-call"])
def test_roles_whose_text_is_the_call(tmp_path: Path, role: str) -> None:
    call = json.dumps([{"name": "add", "arguments": '{"x": 1}'}, {"name": "sub", "arguments": {}}])
    row = {"conversations": [{"from": "human", "value": "1?"}, {"from": role, "value": call}]}
    assert one(tmp_path, row).messages[1].tool_calls == (ToolCall("add", {"x": 1}), ToolCall("sub", {}))


def test_messages_whose_parts_stand_side_by_side(tmp_path: Path) -> None:
    found = one(tmp_path, {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}})
    assert found.messages == (Message("user", "q"), Message("assistant", "a"))
    assert "lists of [1, 2] entries" in why(tmp_path, {"messages": {"role": ["user", "assistant"], "content": ["q"]}})
    assert "write it with `json.dumps`" in why(tmp_path, {"messages": "[{'role': 'user', 'content': 'q'}]"})


def test_text_parts_are_joined_and_thoughts_are_reasoning(tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, "b"]
    assert one(tmp_path, chat(("user", "q"), ("assistant", parts))).messages[1] == Message("assistant", "ab", reasoning="hm")
    for key in ("reasoning_content", "reasoning", "thinking"):
        found = one(tmp_path, chat(("user", "q"), {"role": "assistant", "content": "a", key: "hm"}))
        assert found.messages[1].reasoning == "hm"


@pytest.mark.parametrize(
    ("key", "value", "weight"), [("train", False, 0.0), ("train", True, 1.0), ("weight", 0, 0.0), ("weight", 0.5, 0.5)]
)
def test_weights_of_turns(tmp_path: Path, key: str, value: Any, weight: float) -> None:
    turns = [("user", "q"), {"role": "assistant", "content": "a", key: value}, ("user", "q"), ("assistant", "a")]
    assert [m.weight for m in one(tmp_path, chat(*turns)).messages] == [1.0, weight, 1.0, 1.0]


def test_columns_beside_the_messages(tmp_path: Path) -> None:
    row = chat(("user", "q"), ("assistant", "a"), chat_template_kwargs={"enable_thinking": False}, id=7, system="x")
    found = one(tmp_path, row)
    assert found.template_arguments == {"enable_thinking": False}
    assert found.meta == {"id": 7, "system": "x"}
    assert one(tmp_path, row, columns={"system": "system"}).messages[0] == Message("system", "x")
    assert one(tmp_path, chat(("user", "q"), ("assistant", "a"), template_arguments='{"x": 1}')).template_arguments == {"x": 1}


def test_renamed_columns(tmp_path: Path) -> None:
    found = one(tmp_path, {"question": "q", "answer": "a", "prompt": "p"}, columns=columns_from(["prompt=question", "completion=answer"]))
    assert found.messages == (Message("user", "q"), Message("assistant", "a"))
    assert found.meta == {"prompt": "p"}


def test_what_is_read_and_not_used_is_counted(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q", "weight": 1, "reasoning_contnet": "x"}, ("assistant", "a"), ("user", "and?")]
    calling = chat(("user", "q"), {"role": "assistant", "tool_calls": [{"name": "f"}, {"name": "g"}]}, tools=[{"name": "f"}])
    path = write(tmp_path, chat(*turns), calling, calling)
    notes = "\n".join(read([path]).lines_for_people())
    assert f"2 × a tool call names a function that the row's tools do not offer (first: {path}:2)" in notes
    assert "1 × message key `reasoning_contnet` is not used. Did you mean 'reasoning_content'" in notes
    assert "1 × a weight above 0 outside an assistant turn is not used" in notes
    assert f"1 × the turns behind the last assistant turn train nothing (first: {path}:1)" in notes


# ------------------------------------------------------------------ rows that are refused

DEEP = '{"x":' + "[" * 300 + "]" * 300 + "}"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (chat(("usr", "q"), ("assistant", "a")), "unknown role: turn 1 has 'usr' | Did you mean 'user'?"),
        (chat(("moderator", "q"), ("assistant", "a")), "Known: system, user, assistant, tool"),
        (chat({"content": "q"}, ("assistant", "a")), "no role: turn 1"),
        (
            chat({"role": "user", "contnet": "q"}, ("assistant", "a")),
            "no content: turn 1 (user) has neither `content` nor `value` | Did you mean 'content'?",
        ),
        (chat(("user", None), ("assistant", "a")), "no content: turn 1"),
        (chat(("user", "q")), "no assistant turn: found user"),
        ({"messages": []}, "no assistant turn: found no turns"),
        ({"messages": "hello"}, "broken messages: `messages` cannot be read as JSON"),
        ({"messages": 3}, "no messages: `messages` is a number"),
        ({"messages": ["hello"]}, "message is not an object: turn 1 is text"),
        ({"messages": None}, "missing column: `messages` is null"),
        ({"text": "x"}, "missing column: `messages` is missing; found text"),
        (chat(("user", "q"), ("assistant", "")), "empty completion: turn 2"),
        (chat(("user", "q"), ("assistant", None), ("user", "q"), ("assistant", "a")), "empty completion: turn 2"),
        (chat(("user", "q"), ("assistant", " \n")), "empty completion: turn 2"),
        (chat(("user", "q"), {"role": "assistant", "content": "a", "train": False}), "nothing trained"),
        (chat(("user", "q"), {"role": "assistant", "content": "a", "weight": -1}), "broken weight: turn 2 has -1"),
        (chat(("user", "q"), {"role": "assistant", "content": "a", "train": "no"}), "broken weight: turn 2 has 'no' as `train`"),
        (chat(("user", "q"), {"role": "assistant", "content": "a", "train": False, "weight": 1}), "broken weight: turn 2 says both"),
        (chat(("user", 5), ("assistant", "a")), "content is not text: turn 1 (user) has a number"),
        (chat(("user", [{"type": "image_url", "image_url": "x.png"}]), ("assistant", "a")), "broken media: turn 1: the image"),
        (chat(("user", [{"type": "input_audio"}]), ("assistant", "a")), "media do not match: the messages have 1 place for audio"),
        (chat(("user", [{"type": "tool_result"}]), ("assistant", "a")), "unsupported part: turn 1 holds a part of type 'tool_result'"),
        (chat(("user", "q"), ("assistant", "a"), images=["x.png"]), "broken media: turn 1: the image"),
        (
            chat(("user", "q"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{x"}]}),
            "broken tool call: turn 2, call 1 (f)",
        ),
        (chat(("user", "q"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}), "has a list as arguments"),
        (chat(("user", "q"), {"role": "assistant", "tool_calls": [{"arguments": {}}]}), "names no function"),
        (chat(("user", "q"), {"role": "assistant", "tool_calls": [{"name": "f", "argumnets": {}}]}), "Did you mean 'arguments'"),
        (chat(("user", "q"), {"role": "assistant", "tool_calls": [{"name": "f", "id": 3}]}), "has a number as id"),
        (chat({"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}, ("assistant", "a")), "tool calls outside an assistant turn"),
        (chat({"role": "user", "content": "q", "reasoning": "hm"}, ("assistant", "a")), "reasoning outside an assistant turn"),
        (chat(("user", "q"), {"role": "assistant", "reasoning": "x", "thinking": "y"}), "two reasonings: turn 2"),
        (chat(("user", "q"), ("assistant", "a"), tools="[{"), "broken tools: `tools` cannot be read"),
        (chat(("user", "q"), ("assistant", "a"), tools={"name": "f"}), "broken tools: `tools` is an object"),
        (chat(("user", "q"), ("assistant", "a"), tools=[{"type": "function"}]), "broken tools: tool 1 names no function"),
        (chat(("user", "q"), ("assistant", "a"), template_arguments=3), "broken template arguments"),
        (chat(("user", "q"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": DEEP}]}), "nested too deep"),
        (
            chat(("user", "q"), ("assistant", "a"), template_arguments={"x": 1}, chat_template_kwargs={"x": 2}),
            "both `chat_template_kwargs`",
        ),
        ([1, 2], "not an object: the row is a list"),
        ("text", "not an object: the row is text"),
        (chat(("user", "q"), ("assistant", "a"), x=json.loads("[" * 250 + "]" * 250)), "nested too deep"),
    ],
)
def test_refused_rows(tmp_path: Path, row: Any, said: str) -> None:
    assert said in why(tmp_path, row)


def test_alpaca_rows_refused(tmp_path: Path) -> None:
    good = {"instruction": "q", "output": "a"}
    bad = [{**good, "output": ""}, {**good, "output": 3}, {**good, "history": ["x"]}, {**good, "system": 3}]
    kinds = [refusal.kind for refusal in read([write(tmp_path, good, *bad)]).refused]
    assert kinds == ["empty completion", "content is not text", "broken history", "content is not text"]


def test_two_system_messages_are_one_too_many(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "x"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (refusal,) = read([write(tmp_path, {"conversations": turns, "system": "y"})]).refused
    assert refusal.reason == "two system messages: one in `system`, one in the first turn"


def test_broken_lines_name_the_place(tmp_path: Path) -> None:
    good = json.dumps(chat(("user", "q"), ("assistant", "a"))).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n  \n" + b'{"messages": [}\n' + good[:-3] + b'\xff"}\n' + good)
    reading = read([path])
    assert [c.source.line for c in reading.conversations if c.source] == [1, 6]
    assert reading.total == 4
    broken, latin = reading.refused
    assert broken.reason.startswith(f"broken JSON: {path}:4:15: ")
    assert latin.source == Source(str(path), 5)
    assert latin.reason.startswith("invalid UTF-8: byte ")
    assert "0xff" in latin.reason


# ------------------------------------------------------------------ formats are found from all rows


def test_two_formats_in_one_file(tmp_path: Path) -> None:
    rows = [*[chat(("user", "q"), ("assistant", "a"))] * 99, {"prompt": "q", "completion": "a"}]
    path = write(tmp_path, *rows)
    with pytest.raises(DataError) as caught:
        read([path])
    said = str(caught.value)
    assert f"two formats in one file: 99 rows of messages (first: {path}:1); 1 rows of prompt-completion (first: {path}:100)" in said
    assert "Split the file" in said
    assert "--format messages" in said
    reading = read([path], format="messages")
    assert (len(reading.conversations), len(reading.refused)) == (99, 1)


def test_files_of_different_formats_are_read_each_in_its_own(tmp_path: Path) -> None:
    first = write(tmp_path, chat(("user", "q"), ("assistant", "a")))
    second = write(tmp_path, {"prompt": "q", "completion": "a"}, name="pairs.jsonl")
    reading = read([first, second])
    assert reading.format == "messages, prompt-completion"
    assert reading.conversations[0].messages == reading.conversations[1].messages
    assert "1 of 1 rows have its columns" in reading.guess


def test_no_clear_format_says_what_was_found(tmp_path: Path) -> None:
    for row, hint in [
        ({"title": "q", "reply": "a"}, "Name the file's own columns, such as --prompt title --completion reply"),
        ({"mesages": []}, "Did you mean 'messages'"),
    ]:
        with pytest.raises(DataError, match="columns of no known format") as caught:
            read([write(tmp_path, row)])
        assert hint in str(caught.value)
    few = [*[chat(("user", "q"), ("assistant", "a"))] * 9, {"txet": "x"}]  # 90 % is no clear majority
    with pytest.raises(
        DataError, match=r"1 of 10 rows have the columns of no known format.*pass --format messages to have these rows refused"
    ):
        read([write(tmp_path, *few)])
    assert len(read([write(tmp_path, *few)], format="messages").refused) == 1


def test_rows_that_fit_two_formats_take_the_first_and_say_so(tmp_path: Path) -> None:
    row = chat(("user", "q"), ("assistant", "a"), prompt="q", completion="a")
    reading = read([write(tmp_path, row)])
    assert reading.format == "messages"
    assert "1 rows would also fit prompt-completion" in reading.guess
    nulls = [{"messages": None, "prompt": "q", "completion": "a"}, {"messages": None, "prompt": "q", "completion": "b"}]
    assert read([write(tmp_path, *nulls)]).format == "prompt-completion"


def test_wrong_arguments_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path, chat(("user", "q"), ("assistant", "a")))
    with pytest.raises(DataError, match=r"'mesages' is not known\. Did you mean 'messages'"):
        read([path], format="mesages")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"unknown field 'promt'\. Did you mean 'prompt'"):
        read([path], columns={"promt": "q"})
    with pytest.raises(DataError, match=r"no row has the column 'mesages'\. Did you mean 'messages'"):
        read([path], columns={"messages": "mesages"})
    with pytest.raises(DataError, match="is not FIELD=COLUMN"):
        columns_from(["prompt"])
    with pytest.raises(DataError, match="given twice"):
        read([path, path])
    with pytest.raises(DataError, match="No files"):
        read([])
