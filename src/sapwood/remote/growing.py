"""An answer that arrives in chunks: what each makes certain, and in the end the choice as it would have come whole.

In: the chunks of one streamed answer. Out: deltas, as `chat.AnswerStream` gives them, and a choice for `answering.completion_of`. A
thought between marks in the content is told as one, where its opening mark is there to be seen. Left out on purpose: `n` above 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.chat import Delta
from sapwood.chat.readers import Layout, reader_for
from sapwood.remote.answering import ProtocolError, usage_of


class Growing:
    """One streamed answer."""

    def __init__(self) -> None:
        self.counted: tuple[int, int] | None = None
        self._reader = reader_for(None, Layout(), (), "")
        self._content = self._reasoning = ""
        self._calls: dict[int, dict[str, Any]] = {}
        self._ids: list[int] = []
        self._logprobs: list[Any] = []
        self._reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the server has said how it ended."""
        return self._reason is not None

    def push(self, chunk: Any) -> list[Delta]:
        """What a chunk adds. Raises `ProtocolError` for one in another form."""
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        if not isinstance(choices, list):
            raise ProtocolError("a chunk without `choices`")
        self.counted = usage_of(chunk) or self.counted
        if not choices:
            return []
        choice = choices[0]
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            raise ProtocolError("a chunk without `choices[0].delta`")
        self._reason = choice.get("finish_reason") or self._reason
        self._ids += choice.get("token_ids") or []
        self._logprobs += (choice.get("logprobs") or {}).get("content") or []
        found = []
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            self._reasoning += thought
            found.append(Delta(reasoning=thought))
        if said := delta.get("content") or delta.get("refusal"):
            self._content += said
            found += self._told(self._reader.push(said))
        for piece in delta.get("tool_calls") or ():
            found.append(self._call(piece))
        return found

    def finish(self) -> list[Delta]:
        """The rest, when no more chunks come."""
        return self._told(self._reader.finish())

    def choice(self) -> dict[str, Any]:
        """The whole."""
        message: dict[str, Any] = {"role": "assistant", "content": self._content}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        logprobs = {"content": self._logprobs} if self._logprobs else None
        return {"message": message, "finish_reason": self._reason, "logprobs": logprobs, "token_ids": self._ids or None}

    def _told(self, parts: Any) -> list[Delta]:
        return [Delta(**{part.kind: part.raw}) for part in parts if part.kind in ("content", "reasoning")]

    def _call(self, piece: Mapping[str, Any]) -> Delta:
        """A piece of a call: its name and id come first, its arguments letter by letter."""
        index, function = piece.get("index"), piece.get("function")
        if not isinstance(index, int) or not isinstance(function, dict):
            raise ProtocolError("a piece of a call without `index` or `function`")
        call = self._calls.setdefault(index, {"id": piece.get("id"), "type": "function", "function": {"name": "", "arguments": ""}})
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        call["function"]["name"] += name
        call["function"]["arguments"] += arguments
        return Delta(index=index, id=piece.get("id"), name=name, arguments=arguments)
