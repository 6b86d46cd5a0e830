"""Answers made of addressed messages: gpt-oss (harmony channels) and its like.

Such an answer is a row of frames, each a header up to `<|message|>` and a body up to an end mark. The header says who it is
for: the model itself (reasoning), the user (content), or a function (a call, whose body are the arguments).
Source: OpenAI's harmony response format.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sapwood.chat.calls.scan import Tools, arguments_of
from sapwood.chat.calls.tags import read_atem
from sapwood.records import ToolCall

Kind = Literal["content", "reasoning", "call"]


@dataclass(frozen=True)
class FrameStyle:
    """One framing. `address(header)` says what a body is and the name it goes to; `read(name, body, tools)` reads a call's."""

    name: str
    start: str
    message: str
    ends: tuple[str, ...]
    address: Callable[[str], tuple[Kind, str]]
    read: Callable[[str, str, Tools], ToolCall]


_TO = re.compile(r"\bto=(\S+?)(?=<\||\s|\Z)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)")


def _harmony(header: str) -> tuple[Kind, str]:
    to, channel = _TO.search(header), _CHANNEL.search(header)
    if to is not None and to[1] != "user":
        return "call", to[1].removeprefix("functions.")
    return ("reasoning" if channel is not None and channel[1] == "analysis" else "content"), ""


def _json_body(name: str, body: str, _tools: Tools) -> ToolCall:
    return ToolCall(name, arguments_of(body))


def _addressed(header: str) -> tuple[Kind, str]:
    to = _TO.search(header)
    if to is None or to[1] == "user":
        return "content", ""
    return ("reasoning", "") if to[1] == "self" else ("call", to[1])


def _atem_body(_name: str, body: str, tools: Tools) -> ToolCall:
    return read_atem(body, tools)


FRAMES = (
    FrameStyle("harmony", "<|start|>", "<|message|>", ("<|end|>", "<|call|>", "<|return|>"), _harmony, _json_body),
    FrameStyle("addressed messages", "<|start|>", "<|message|>", ("<|eom|>", "<|eot|>"), _addressed, _atem_body),
)
