"""Completions → the JSON of OpenAI's protocol, whole or as deltas that, joined, are the whole.

In: sampled tokens as they come, and completions. Out: dictionaries. What a delta has said is never taken back: where an answer may
still turn out to end in a stop string, its last tokens wait. Thoughts stand in `reasoning_content`, calls in `tool_calls`.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from sapwood.chat import Chat, Delta
from sapwood.records import Completion, Ended, Prompt, SamplingParams, ToolCall
from sapwood.records.sampling import Alternatives
from sapwood.serve.asking import Asked


@dataclass(frozen=True)
class Form:
    """What all objects of one response say."""

    model: str
    chat: Chat
    of_chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, chunk: bool) -> dict[str, Any]:
        """The beginning of a response, or of a chunk of one."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.of_chat else "text_completion"
        prefix = "chatcmpl" if self.of_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def whole(self, asked: Asked, completions: Sequence[Completion]) -> dict[str, Any]:
        """The response. `completions` are the samples of the first prompt, then those of the next."""
        choices = [self._choice(asked, place, completion) for place, completion in enumerate(completions)]
        answer = {**self.head(False), "choices": choices, "usage": usage(asked, completions)}
        if asked.token_ids and len(asked.prompts) == 1:
            answer["prompt_token_ids"] = list(asked.prompts[0].ids)
        return answer

    def _choice(self, asked: Asked, place: int, completion: Completion) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": place, "finish_reason": finish_reason(completion), "logprobs": None}
        if self.of_chat:
            message = completion.message
            assert message is not None, "the engine understands its answers"
            said: dict[str, Any] = {"role": "assistant", "content": message.content or (None if message.tool_calls else "")}
            if message.reasoning:
                said["reasoning_content"] = message.reasoning
            if message.tool_calls:
                said["tool_calls"] = [_call(call) for call in message.tool_calls]
            choice["message"] = said
        else:
            choice["text"] = (completion.prompt.text if asked.echo else "") + ("" if asked.only_echo else completion.text)
        if asked.logprobs is not None:
            choice["logprobs"] = self._logprobs(asked, completion)
        if asked.token_ids:
            choice["token_ids"] = [] if asked.only_echo else list(completion.ids)
        return choice

    def _logprobs(self, asked: Asked, completion: Completion) -> dict[str, Any]:
        """Of the answer's tokens; of the prompt's before them, where it is echoed: the first stands behind nothing, so it has none."""
        ids: Sequence[int] = () if asked.only_echo else completion.ids
        values: list[float | None] = list(completion.logprobs[: len(ids)])
        tops: list[Alternatives | None] = list(completion.top_logprobs[: len(ids)])
        if not asked.echo:
            return self.logprobs(ids, values, tops)
        return self.logprobs(
            (*completion.prompt.ids, *ids),
            [None, *completion.prompt_logprobs, *values],
            [None, *completion.prompt_top_logprobs, *tops] if asked.logprobs else [],
        )

    def chunk(
        self, place: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None, token_ids: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """One piece of one choice."""
        said = {"delta": delta} if self.of_chat else {"text": delta.get("content", "")}
        ids = {} if token_ids is None else {"token_ids": list(token_ids)}
        return {**self.head(True), "choices": [{"index": place, **said, "logprobs": logprobs, "finish_reason": reason, **ids}]}

    def logprobs(self, ids: Sequence[int], values: Sequence[float | None], alternatives: Sequence[Alternatives | None]) -> dict[str, Any]:
        """Log-probabilities of tokens, the one that ends the turn included, and of the most likely ones in their places. None where a
        token stands behind nothing, which a text that is continued may."""
        tops = alternatives or [()] * len(ids)
        if self.of_chat:
            entries = [
                {**self._token(token, value), "top_logprobs": [self._token(*other) for other in top or ()]}
                for token, value, top in zip(ids, values, tops, strict=True)
            ]
            return {"content": entries, "refusal": None}
        texts = [self.chat.decode([token]) for token in ids]
        return {
            "tokens": texts,
            "token_logprobs": list(values),
            "top_logprobs": [top if top is None else {self.chat.decode([token]): value for token, value in top} for top in tops],
            "text_offset": [sum(map(len, texts[:place])) for place in range(len(texts))],
        }

    def _token(self, token: int, value: float | None) -> dict[str, Any]:
        text = self.chat.decode([token])
        part_of_a_letter = "\ufffd" in text  # its bytes are not known from the text
        return {"token": text, "bytes": None if part_of_a_letter else list(text.encode()), "logprob": value, "id": token}


def usage(asked: Asked, completions: Sequence[Completion]) -> dict[str, int]:
    """Tokens read and written; a prompt counts once, however many samples it has. And how many messages were left out of it, if any."""
    read = sum(len(prompt.ids) for prompt in asked.prompts)
    written = 0 if asked.only_echo else sum(len(completion.ids) for completion in completions)
    found = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return found | ({"dropped_messages": asked.dropped} if asked.dropped else {})


def finish_reason(completion: Completion) -> str:
    """OpenAI's word for how it ended."""
    if completion.ended is Ended.LENGTH:
        return "length"
    return "tool_calls" if completion.message is not None and completion.message.tool_calls else "stop"


class ChatDeltas:
    """One choice of a chat as it grows."""

    def __init__(self, chat: Chat, prompt: Prompt, params: SamplingParams) -> None:
        self._stream = chat.parse_stream(prompt)
        self._hold = _hold(params)
        self._held: deque[int] = deque()
        self._content = self._reasoning = ""
        self._calls = 0

    def push(self, token: int) -> list[dict[str, Any]]:
        """What a token has made certain."""
        self._held.append(token)
        found: list[dict[str, Any]] = []
        while len(self._held) > self._hold:
            found += [self._said(delta) for delta in self._stream.push(self._held.popleft())]
        return found

    def finish(self, completion: Completion) -> list[dict[str, Any]]:
        """The rest of the whole answer."""
        message = completion.message
        assert message is not None, "the engine understands its answers"
        deltas = [
            Delta(reasoning=_rest(message.reasoning or "", self._reasoning)),
            Delta(content=_rest(message.content, self._content)),
        ]
        found = [self._said(delta) for delta in deltas if delta.reasoning or delta.content]
        for index, call in enumerate(message.tool_calls[self._calls :], self._calls):
            found.append({"tool_calls": [{"index": index, **_call(call)}]})
        return found

    def _said(self, delta: Delta) -> dict[str, Any]:
        if delta.content:
            self._content += delta.content
            return {"content": delta.content}
        if delta.reasoning:
            self._reasoning += delta.reasoning
            return {"reasoning_content": delta.reasoning}
        if delta.name:
            self._calls += 1
            function = {"name": delta.name, "arguments": ""}
            return {"tool_calls": [{"index": delta.index, "id": delta.id or _call_id(), "type": "function", "function": function}]}
        return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.arguments}}]}


class TextDeltas:
    """One continued text as it grows."""

    def __init__(self, chat: Chat, params: SamplingParams) -> None:
        self._decoder = chat.stream()
        self._hold = _hold(params)
        self._held: deque[int] = deque()
        self._sent = ""

    def push(self, token: int) -> list[dict[str, Any]]:
        """What a token has made certain."""
        self._held.append(token)
        text = ""
        while len(self._held) > self._hold:
            text += self._decoder.push(self._held.popleft())
        self._sent += text
        return [{"content": text}] if text else []

    def finish(self, completion: Completion) -> list[dict[str, Any]]:
        """The rest of the whole text."""
        rest = _rest(completion.text, self._sent)
        return [{"content": rest}] if rest else []


def _hold(params: SamplingParams) -> int:
    """The number of last tokens that are not certain: a stop string lies in as many as it has bytes at most (see `generate.answer`), and a
    token that ends an answer is not part of it."""
    return max((len(stop.encode()) for stop in params.stop), default=int(bool(params.stop_ids)))


def _rest(whole: str, sent: str) -> str:
    assert whole.startswith(sent), f"what was streamed is not the beginning of the answer: {sent[-40:]!r}"
    return whole[len(sent) :]


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": orjson.dumps(call.arguments).decode()}
    return {"id": call.id or _call_id(), "type": "function", "function": function}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
