"""A conversation with one or several arms at a time: the same question to each, each with its own answers behind it.

In: an engine, who answers (adapters on its set of weights), what stands first, functions that may be called. Out: pieces of answers as
they come, the arms' histories, and training rows. All arms are written in one batch. Where an arm calls functions they are called, the
results stand in its history, and it goes on, while the others are still being written.
Left out on purpose: the terminal, which is `cli`'s.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from sapwood.chat import Chat, Delta
from sapwood.chat.overflow import Fitted, Overflow, fitted_prompt, summary_of, summary_tokens
from sapwood.errors import ConfigError, SapwoodError, StorageError, storage
from sapwood.evaluate.tool_turns import Tool, result_of
from sapwood.generate import Answer, Engine, Session
from sapwood.records import Ended, Message, SamplingParams, ToolCall

CALLS = 8
"""Most rounds of calls in one answer."""


@dataclass(frozen=True)
class Heard:
    """What happens while arms answer."""

    delta: Callable[[str, Delta], None]
    """A piece of an arm's answer."""
    result: Callable[[str, ToolCall, str], None]
    """An arm's call was made, and this came back."""
    note: Callable[[str, str], None]
    """A sentence about an arm's answer: what was left out of its prompt, or why there is none."""


@dataclass
class _Turn:
    """One arm's answer under way: the messages that will be its history, and how often it called."""

    messages: list[Message]
    calls: int = 0


@dataclass
class Talk:
    """The arms and what was said."""

    engine: Engine
    chat: Chat
    arms: Mapping[str, str | None]
    """The names of those who answer, each with its adapter."""
    params: SamplingParams
    start: tuple[Message, ...] = ()
    """What every conversation begins with: the system message."""
    tools: Mapping[str, Tool] = field(default_factory=dict)
    schemas: tuple[Mapping[str, Any], ...] = ()
    """What the model is told of the tools."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Template arguments."""
    overflow: Overflow = "refuse"

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self.said: dict[str, list[Message]] = {arm: list(self.start) for arm in self.arms}

    def ask(self, text: str, heard: Heard) -> bool:
        """Put the question to every arm; whether any has answered. Where one has not, its history is as it was.

        `KeyboardInterrupt` goes through, and leaves all histories as they were.
        """
        turns = {arm: _Turn([*said, Message("user", text)]) for arm, said in self.said.items()}
        running: dict[Answer, str] = {}
        streams: dict[str, Any] = {}
        done: dict[str, list[Message]] = {}
        with self.engine.open() as session:
            for arm, turn in turns.items():
                self._add(session, arm, turn, running, streams, heard)
            while not session.idle:
                for answer in session.step():
                    arm = running.pop(answer)
                    turn = turns[arm]
                    for delta in streams[arm].finish()[0]:
                        heard.delta(arm, delta)
                    completion = answer.completion()
                    if completion.ended is Ended.ERROR:
                        heard.note(arm, completion.error or "there is no answer")
                        continue
                    message = completion.message or Message("assistant", completion.text)
                    turn.messages.append(message)
                    if message.tool_calls and self.tools and turn.calls < CALLS:
                        self._call(arm, turn, message.tool_calls, heard)
                        self._add(session, arm, turn, running, streams, heard)
                    else:
                        done[arm] = turn.messages
        self.said.update(done)
        return bool(done)

    def row(self, arm: str) -> dict[str, Any]:
        """An arm's conversation as a training row. Raises `ConfigError` where nobody has answered yet, or there is no such arm."""
        if arm not in self.said:
            raise ConfigError(f"There is no arm {arm!r}. Arms: {', '.join(self.arms)}.")
        messages = self.said[arm]
        if not any(message.role == "assistant" for message in messages):
            raise ConfigError("There is no answer to save yet. Ask something first.")
        row: dict[str, Any] = {"messages": [message.for_template() for message in messages]}
        return row | ({"tools": [dict(schema) for schema in self.schemas]} if self.schemas else {})

    def _add(self, session: Session, arm: str, turn: _Turn, running: dict[Answer, str], streams: dict[str, Any], heard: Heard) -> None:
        try:
            fitted = self._fitted(arm, turn)
        except SapwoodError as error:
            heard.note(arm, str(error))
            return
        if fitted.dropped:
            instead = "a summary is sent in place of its oldest" if self.overflow == "summarise" else "no longer sent are its oldest"
            heard.note(arm, f"The conversation outgrows the model's context: {instead} {fitted.dropped} messages.")
        stream = streams[arm] = self.chat.parse_stream(fitted.prompt)

        def on_token(token: int) -> None:
            for delta in stream.push(token):
                heard.delta(arm, delta)

        running[session.add(fitted.prompt, self.params, adapter=self.arms[arm], on_token=on_token)] = arm

    def _fitted(self, arm: str, turn: _Turn) -> Fitted:
        """The arm's prompt; where a summary belongs into it, the arm writes that first."""
        fit = partial(fitted_prompt, self.chat, turn.messages, self.schemas, self.arguments, overflow=self.overflow, room=self._room())
        fitted = fit()
        if fitted.to_summarise is None:
            return fitted
        short = SamplingParams(max_new_tokens=summary_tokens(self.chat))
        [summary] = self.engine.generate([fitted.to_summarise], short, adapter=self.arms[arm])
        return fit(summary=summary_of(summary))

    def _call(self, arm: str, turn: _Turn, calls: Sequence[ToolCall], heard: Heard) -> None:
        turn.calls += 1
        for call in calls:
            result = result_of(call, self.tools)
            heard.result(arm, call, result)
            turn.messages.append(Message("tool", result, tool_call_id=call.id, name=call.name))

    def _room(self) -> int:
        """Tokens of answer that a prompt must leave: what may be asked for, up to a quarter of the context."""
        if self.overflow == "refuse" or self.chat.context_length is None:
            return 1
        return min(self.params.max_new_tokens, self.chat.context_length // 4)


def save_row(file: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file of rows, whole or not at all. A last line that an editor left without its end gets one.

    Raises `StorageError` where nothing can be written.
    """
    line = orjson.dumps(row) + b"\n"
    try:
        with storage(file, "save into"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab+", buffering=0) as out:
                if end := out.seek(0, os.SEEK_END):
                    out.seek(end - 1)
                    line = line if out.read(1) == b"\n" else b"\n" + line
                if out.write(line) < len(line):
                    out.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        raise StorageError(f"{file}: its folder cannot be made. Choose another file.") from None
