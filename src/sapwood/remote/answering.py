"""What a server answered → completions. Anything that is not what the protocol says is named, not guessed at.

In: the JSON of a response. Out: its choices, checked; and of each choice a `Completion` with its message: content, reasoning
(in a field of its own, or between marks in the content), calls. A call that cannot be read stays in the content, letter for letter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson

from sapwood.chat import call_text
from sapwood.chat.readers import THOUGHTS, Layout, reader_for
from sapwood.data.messages import read_messages
from sapwood.data.refusal import Refused
from sapwood.records import Completion, Ended, Message, Prompt

_ENDED = {
    **dict.fromkeys(("stop", "tool_calls", "function_call", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token"), Ended.STOP),
    **dict.fromkeys(("length", "max_tokens", "max_length"), Ended.LENGTH),
}
_READ = ("content", "tool_calls", "function_call", "reasoning_content", "reasoning")
_ID_AS_TEXT = re.compile(r"token_id:(\d+)")


class ProtocolError(ValueError):
    """A response in another form; the text says what was found where."""


def choices_of(response: Any) -> list[dict[str, Any]]:
    """The choices of a response in order of their indices, each with a message and how it ended. Raises `ProtocolError`."""
    if not isinstance(response, dict):
        raise ProtocolError(f"the answer is {_kind(response)}, expected an object")
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ProtocolError(f"`choices` is {_kind(choices)}, expected a list with at least one answer; there are {_keys(response)}")
    for place, choice in enumerate(choices):
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise ProtocolError(f"`choices[{place}].message` is missing or no object")
        content = choice["message"].get("content")
        if content is not None and not isinstance(content, str | list):
            raise ProtocolError(f"`choices[{place}].message.content` is {_kind(content)}, expected text")
    return sorted(choices, key=lambda choice: choice["index"] if isinstance(choice.get("index"), int) else 0)


def usage_of(response: Mapping[str, Any]) -> tuple[int, int] | None:
    """(tokens of the prompt, tokens of all answers) as the server counted them; None where it did not."""
    usage = response.get("usage")
    read, written = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (None, None)
    return (read, written) if isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0 else None


def completion_of(prompt: Prompt, choice: Mapping[str, Any], counted: tuple[int, int] | None) -> Completion:
    """One choice as a completion. How it ended decides: a withheld or unfinished answer is an `Ended.ERROR`."""
    message = message_of(choice["message"])
    calls = call_text(message.tool_calls) if message.tool_calls else ""
    text = "\n".join(filter(None, (message.content, calls)))
    ids, logprobs = tokens_of(choice)
    reason = choice.get("finish_reason")
    ended, error = _ENDED.get(reason, Ended.ERROR) if isinstance(reason, str) else Ended.ERROR, None
    if ended is Ended.ERROR:
        error = f"The server ended the answer with finish_reason {reason!r}"
        error += ": its filter withheld it." if reason == "content_filter" else f"; known are {', '.join(_ENDED)}."
    return Completion(prompt, ids, text, ended, logprobs, error, message, counted=counted)


def ended_whole(choice: Mapping[str, Any]) -> bool:
    """Whether it is an answer, and nothing that another try could mend."""
    return choice.get("finish_reason") in _ENDED


def message_of(raw: Mapping[str, Any]) -> Message:
    """The message of a choice, its thought apart from what it says."""
    given = {key: raw[key] for key in _READ if raw.get(key)}
    if not given.get("content") and isinstance(raw.get("refusal"), str):
        given["content"] = raw["refusal"]  # what the model said instead of an answer is what it said
    try:
        (message,) = read_messages([{"role": "assistant", **given}], Counter())
    except Refused:
        said = [given["content"]] if isinstance(given.get("content"), str) else []
        said += [orjson.dumps(given[key]).decode() for key in ("tool_calls", "function_call") if key in given]
        message = Message("assistant", "\n".join(said))
    return message if message.reasoning is not None else _without_thought(message)


def _without_thought(message: Message) -> Message:
    """A thought that the server left in the content, between marks; the first mark may have stood in its prompt."""
    opened = next((opens for opens, closes in THOUGHTS if closes in message.content and opens not in message.content), "")
    reader = reader_for(None, Layout(), (), opened)
    parts = [*reader.push(message.content), *reader.finish()]
    reasoning, content = ("".join(part.raw for part in parts if part.kind == kind) for kind in ("reasoning", "content"))
    return Message("assistant", content, reasoning=reasoning, tool_calls=message.tool_calls) if reasoning else message


def tokens_of(choice: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids and log-probabilities of the answer's tokens, where the server gives them: both of one length, or without logprobs, or empty.

    Ids stand in `token_ids` (vLLM), in `id` of each entry of `logprobs.content` (llama.cpp) or in its text (`token_id:17`).
    """
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    entries = [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []
    ids = choice.get("token_ids") or [_id_of(entry) for entry in entries]
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        return (), ()
    values = [entry.get("logprob") for entry in entries]
    fits = len(values) == len(ids) and all(isinstance(value, int | float) for value in values)
    return tuple(ids), tuple(float(value) for value in values if value is not None) if fits else ()


def _id_of(entry: Mapping[str, Any]) -> int | None:
    if isinstance(entry.get("id"), int):
        return int(entry["id"])
    found = _ID_AS_TEXT.fullmatch(str(entry.get("token")))
    return int(found.group(1)) if found else None


def _kind(value: Any) -> str:
    names = {type(None): "missing", dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    found = names.get(type(value), type(value).__name__)
    return "an empty list" if value == [] else found


def _keys(response: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}`" for key in list(response)[:8]) or "no keys"
