"""Tools for templates without a place for them: in the system message, trained, asked and read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from chat_folders import BRACKETS, CHATML, ENDS, TEMPLATES, load, write_folder

from sapwood.chat import Chat, call_text, round_trip, schema_of, tool_prompt
from sapwood.data import read
from sapwood.errors import TemplateError
from sapwood.records import Conversation, Message, ToolCall


def find_tree(kind: str, rings: int = 0) -> None:
    """Finds a tree.

    Args:
        kind: Its kind.
        rings: Its age.
    """


TOOLS = (schema_of(find_tree),)
CALL = ToolCall("find_tree", {"kind": "oak", "rings": 3})
ASK = Message("user", "Is there an oak?")
TALK = Conversation(
    (
        ASK,
        Message("assistant", tool_calls=(CALL, ToolCall("find_tree", {"kind": "<|im_end|>"}))),
        Message("tool", "One.", name="find_tree"),
        Message("tool", "None.", name="find_tree"),
        Message("assistant", "There is one."),
    ),
    TOOLS,
)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("prefilled", "toolful")])
def test_training_inference_and_reading_agree(tmp_path: Path, name: str) -> None:
    plain = load(tmp_path, name)
    with pytest.raises(TemplateError, match="--tools-in-system"):
        plain.prompt([ASK], TOOLS)
    chat = plain.with_tools_in_system()
    assert chat.tools_in_system
    assert not plain.tools_in_system
    assert chat.fingerprint != plain.fingerprint
    turns = chat.turns(TALK)
    assert [turn.index for turn in turns] == [1, 4]
    for turn in turns:
        prompt = chat.prompt(TALK.messages[: turn.index], TOOLS, turn.prompt.template_arguments)
        assert prompt.ids == turn.prompt.ids
        assert tool_prompt(TOOLS) in prompt.text
        assert prompt.tools == ()  # a server is sent what the model saw in training
        assert any(tool_prompt(TOOLS) in message.content for message in prompt.messages)
    assert turns[0].text.lstrip().startswith(call_text(TALK.messages[1].tool_calls))
    assert "Result" in turns[1].prompt.text or "tool" in turns[1].prompt.text
    assert "One." in turns[1].prompt.text
    assert "None." in turns[1].prompt.text
    assert round_trip(chat, TALK) == []


def test_tools_stand_behind_what_the_system_message_says(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml").with_tools_in_system()
    prompt = chat.prompt([Message("system", "Be brief."), ASK], TOOLS)
    assert prompt.messages == (Message("system", f"Be brief.\n\n{tool_prompt(TOOLS)}"), ASK)
    assert chat.prompt([ASK], ()).messages == (ASK,)
    assert chat.prompt([ASK], ()).ids == load(tmp_path, "chatml").prompt([ASK]).ids


def test_a_template_without_system_and_tool_roles_gets_them_in_user_turns(tmp_path: Path) -> None:
    chat = Chat.load(write_folder(tmp_path, BRACKETS, eos=ENDS["brackets"])).with_tools_in_system()
    prompt = chat.turns(TALK)[1].prompt
    assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.messages[0].content == f"{ASK.content}\n\n{tool_prompt(TOOLS)}"
    assert prompt.messages[2].content == "Result of find_tree:\nOne.\n\nResult of find_tree:\nNone."


def test_words_beside_calls_are_refused_by_place(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml").with_tools_in_system()
    both = Conversation((ASK, Message("assistant", "I look.", tool_calls=(CALL,))), TOOLS)
    with pytest.raises(TemplateError, match=r"message 2 has both content and tool calls"):
        chat.turns(both)


def test_another_process_makes_the_same_rows(tmp_path: Path) -> None:
    chat = load(tmp_path, "chatml").with_tools_in_system()
    plan = chat.plan()
    assert plan is not None
    again = Chat.planned(plan)
    assert again.fingerprint == chat.fingerprint
    assert [turn.ids for turn in again.turns(TALK)] == [turn.ids for turn in chat.turns(TALK)]


def test_a_knob_of_training_and_evaluation_reaches_the_chat(tmp_path: Path) -> None:
    from sapwood.recipes.tune import load_chat

    folder = write_folder(tmp_path, CHATML)
    assert load_chat(folder, None, tools_in_system=True).tools_in_system
    assert not load_chat(folder, None).tools_in_system


def test_reading_counts_calls_that_do_not_fit(tmp_path: Path) -> None:
    def row(arguments: Any, **result: Any) -> dict[str, Any]:
        call = {"id": "a", "function": {"name": "find_tree", "arguments": arguments}}
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return {
            "messages": [*messages, {"role": "tool", "content": "1", **result}, {"role": "assistant", "content": "Yes."}],
            "tools": TOOLS,
        }

    rows = [
        row({"kind": "oak"}, tool_call_id="a"),
        row('{"kind": "oak"}', tool_call_id="a"),
        row({"kind": 3}, tool_call_id="a"),
        row({"rings": 3}, tool_call_id="b"),
        row('{"kind": "oak", "ring": 3}', tool_call_id="a"),
    ]
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    reading = read([path])
    assert len(reading.conversations) == 5
    assert reading.notes == {
        "a tool call has an argument of a wrong type": 1,
        "a tool call lacks an argument that its function requires": 1,
        "a tool result answers no call": 1,
        "a tool call has no result, and the conversation goes on": 1,
        "a tool call has an argument that its function does not know": 1,
    }
    assert any(line == f"1 × a tool call has an argument of a wrong type (first: {path}:3)" for line in reading.lines_for_people())
