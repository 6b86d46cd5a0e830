"""One answer as a stream: told as it comes, whole in the end, and broken streams are said to be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remote.scripted_server import Scripted, response, said, serving
from sapwood.chat import Delta
from sapwood.errors import RemoteError
from sapwood.records import Completion, Ended, Message, Prompt, SamplingParams, ToolCall
from sapwood.remote import Remote, RemoteSampler

STREAM = {"content-type": "text/event-stream; charset=utf-8"}
SO = b'data: {"choices": [{"delta": {"content": "so"}}]}\n\n'
PROMPT = Prompt((Message("user", "hi"),), (), "")


def chunks(*deltas: dict[str, Any], reason: str | None = "stop", done: bool = True) -> bytes:
    """A whole streamed response."""
    found = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    found += [{"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}] if reason else []
    found += [{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}] if done else []
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in found] + (["data: [DONE]\n\n"] if done else [])
    return response((": a remark\n\n" + "".join(lines)).encode(), headers=STREAM)


def stream(server: Scripted, **knobs: Any) -> tuple[Completion, list[Delta]]:
    told: list[Delta] = []
    sampler = RemoteSampler(Remote(**{"url": server.url, "model": "m", "backoff": 0.01, "timeout": 5.0, "tries": 2, **knobs}))
    return sampler.stream(PROMPT, SamplingParams(), told.append), told


def test_pieces_are_told_and_the_whole_is_as_if_it_had_come_whole() -> None:
    pieces = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]
    pieces += [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
    calls = [{"tool_calls": [piece]} for piece in pieces]
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "so"}, *calls]
    with serving(lambda body, _: chunks(*deltas, reason="tool_calls")) as server:
        answer, told = stream(server)
    assert server.bodies[0]["stream"] is True
    assert answer.message == Message("assistant", "so", reasoning="hm", tool_calls=(ToolCall("f", {"a": 1}, "c"),))
    assert (answer.ended, answer.counted) == (Ended.STOP, (7, 3))
    assert "".join(delta.reasoning for delta in told) == "hm"
    assert "".join(delta.content for delta in told) == "so"
    assert "".join(delta.arguments for delta in told) == '{"a": 1}'


def test_a_thought_between_marks_is_told_as_one() -> None:
    letters = [{"content": letter} for letter in "<think>\nhm\n</think>\n\nso <b>"]
    with serving(lambda body, _: chunks(*letters)) as server:
        answer, told = stream(server)
    assert answer.message == Message("assistant", "so <b>", reasoning="hm")
    assert ("".join(delta.reasoning for delta in told), "".join(delta.content for delta in told)) == ("hm", "so <b>")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (chunks({"content": "so"}, reason=None, done=False), "ended without saying so, in the middle"),
        (chunks({"content": "so"})[:-30], "the connection broke"),
        (chunks({"content": "so"}, {"tool_calls": [{"x": 1}]}), "a piece of a call without"),
        (
            response(b'data: {"choices": [{"delta": {"content": "so"}}]}\n\ndata: {"error": {"message": "no memory"}}\n\n', headers=STREAM),
            "no memory",
        ),
        (response(SO + b'data: {"choi\n\n', headers=STREAM), "not what the protocol says"),
    ],
)
def test_a_stream_that_breaks_keeps_what_was_said_and_is_not_asked_again(fault: bytes, words: str) -> None:
    with serving(lambda body, _: fault) as server:
        answer, told = stream(server)
    assert answer.ended is Ended.ERROR
    assert words in str(answer.error)
    assert answer.text == "so" == "".join(delta.content for delta in told)
    assert len(server.bodies) == 1


def test_before_the_first_piece_it_is_asked_again() -> None:
    refused = response({"error": {"message": "stream_options is not supported"}}, 400)
    faults = [response({"error": "busy"}, 503), refused, said("whole, not streamed"), b""]

    def script(body: dict[str, Any], before: int) -> bytes:
        return faults[before] if before < len(faults) else chunks({"content": "there"})

    with serving(script) as server:
        answer, _ = stream(server, tries=4)
        assert (answer.text, answer.ended) == ("there", Ended.STOP)
        assert len(server.bodies) == 5
        assert "stream_options" not in server.bodies[-1]
    with pytest.raises(RemoteError, match=r"no connection|connection broke"):
        stream(server)


def test_what_a_listener_raises_is_its_own() -> None:
    def broken(_: Delta) -> None:
        raise ValueError("my terminal")

    with serving(lambda body, _: chunks({"content": "so"})) as server:
        sampler = RemoteSampler(Remote(url=server.url, model="m"))
        with pytest.raises(ValueError, match="my terminal"):
            sampler.stream(PROMPT, SamplingParams(), broken)
