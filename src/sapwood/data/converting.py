"""One row of a known format → the turns in it.

In: a row, the names of its format's columns, and `Notes`. Out: messages, or the two answers of a preference. Raises
`Refused` for what cannot be understood. Left out on purpose: which format a row has; see `formats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from sapwood.data.columns import Text, text_of
from sapwood.data.messages import Notes, json_in_text, read_messages
from sapwood.data.refusal import Refused, kind_of
from sapwood.records import Message

Names = Mapping[str, str | Text]


def value_of(row: Mapping[str, Any], name: str | Text) -> Any:
    """The value of a field: a column's, or a text made from several. Raises `Refused` if there is none."""
    if isinstance(name, Text):
        return name.fill(row)
    if row.get(name) is None:
        state = "is null" if name in row else "is missing"
        found = ", ".join(sorted(row)[:8]) or "no columns"
        raise Refused(f"missing column: `{name}` {state}; found {found}", f"give the row a `{name}`, or delete it")
    return row[name]


def list_of_messages(row: Mapping[str, Any], name: str | Text, notes: Notes) -> list[Message]:
    """The turns of a `messages` or ShareGPT row."""
    return read_messages(value_of(row, name), notes, field=str(name))


def prompt_and_completion(row: Mapping[str, Any], prompt: str | Text, completion: str | Text, notes: Notes) -> list[Message]:
    """The turns of a pair, each a text or messages; a list of several right answers trains the first."""
    before = prompt_turns(row, prompt, notes)
    answer = value_of(row, completion)
    if isinstance(answer, list) and answer and all(isinstance(entry, str) for entry in answer):
        if len(answer) > 1:
            notes[f"`{completion}` lists several answers: the first is trained"] += 1
        answer = answer[0]
    return before + _answer_turns(answer, completion, notes, first=len(before) + 1)


def prompt_turns(row: Mapping[str, Any], name: str | Text, notes: Notes) -> list[Message]:
    """What stands before the answer. What a prompt says is context: its assistant turns are not trained."""
    value = _messages_in(value_of(row, name), name, notes)
    if isinstance(value, list | dict):
        return read_messages(value, notes, field=str(name), default_weight=0.0)
    return [Message("user", _as_text(value, name, notes))]


def _answer_turns(value: Any, name: str | Text, notes: Notes, *, first: int) -> list[Message]:
    """A text, or a list of messages, as the turns that answer; `first` is the number of the first one."""
    value = _messages_in(value, name, notes)
    if isinstance(value, list | dict):
        return read_messages(value, notes, field=str(name), first=first)
    return [Message("assistant", _as_text(value, name, notes))]


def _messages_in(value: Any, name: str | Text, notes: Notes) -> Any:
    """A list of messages written as JSON into a cell, as tables hold it; any other value as it is."""
    if isinstance(name, Text) or not isinstance(value, str) or value[:1] != "[" or value[-1:] != "]":
        return value
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    if not found or not all(isinstance(entry, dict) and (entry.keys() & {"role", "from"}) for entry in found):
        return value
    notes[f"`{name}` holds messages as JSON text: they are read as messages"] += 1
    return found


def _as_text(value: Any, name: str | Text, notes: Notes) -> str:
    text = text_of(value, str(name))
    if not isinstance(value, str):
        notes[f"`{name}` holds numbers, or true and false: they are written as text"] += 1
    return text


def alpaca(row: Mapping[str, Any], names: Names) -> list[Message]:
    """The turns of an Alpaca row: `input` follows the instruction after an empty line."""
    texts = {name: _optional_text(row, names[name]) for name in ("instruction", "input", "output")}
    asked = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text)
    history = row.get(str(names["history"])) or []
    if isinstance(history, str):
        history = json_in_text(history, f"broken history: `{names['history']}`")
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    ):
        raise Refused(f"broken history: `{names['history']}` is not a list of [question, answer] texts", 'write [["…", "…"], …]')
    turns = [Message(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [*turns, Message("user", asked), Message("assistant", texts["output"] or "")]


def _optional_text(row: Mapping[str, Any], name: str | Text) -> str | None:
    value = name.fill(row) if isinstance(name, Text) else row.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(f"content is not text: `{name}` is {kind_of(value)}", "give text")
    return value


def answered_twice(row: Mapping[str, Any], names: Names, notes: Notes) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected) of a preference; without a prompt column, both answers must begin with the same turns."""
    prompt = prompt_turns(row, names["prompt"], notes) if row.get(str(names["prompt"])) is not None else []
    first = len(prompt) + 1
    chosen = _answer_turns(value_of(row, names["chosen"]), names["chosen"], notes, first=first)
    rejected = _answer_turns(value_of(row, names["rejected"]), names["rejected"], notes, first=first)
    if prompt:  # whole conversations may stand beside their prompt
        chosen, rejected = (turns[len(prompt) :] if _same(turns[: len(prompt)], prompt) else turns for turns in (chosen, rejected))
    if not prompt:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and _same([chosen[shared]], [rejected[shared]]):
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise Refused(
            f"no prompt: there is no `{names['prompt']}`, and the two answers do not begin with the same turns",
            "add the prompt as a column, or as the first turns of both answers",
        )
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1].role != "assistant":
            found = turns[-1].role if turns else "nothing behind the prompt"
            raise Refused(f"no assistant turn: `{names[name]}` ends in {found}", "end each of the two with the assistant's answer")
        if not (turns[-1].content.strip() or turns[-1].tool_calls or (turns[-1].reasoning or "").strip()):
            raise Refused(f"empty completion: the answer in `{names[name]}` is empty", "write the answer, or delete the row")
    if _same(chosen, rejected):
        raise Refused("no preference: `chosen` and `rejected` are the same", "delete the row")
    return prompt, chosen, rejected


def _same(left: list[Message], right: list[Message]) -> bool:
    """Whether the turns say the same; what they weigh in training does not count."""
    return [replace(message, weight=1.0) for message in left] == [replace(message, weight=1.0) for message in right]
