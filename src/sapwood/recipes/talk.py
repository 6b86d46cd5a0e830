"""A conversation with one or several arms at a time: the same question to each, each with its own answers behind it.

In: an engine and who answers on it (adapters on its set of weights), servers that answer beside them or alone, what stands first, functions
that may be called. Out: pieces of answers as they come, the arms' histories, and training rows. The engine's arms are written in one batch,
each server's answer is heard in a thread of its own. Where an arm calls functions they are called, the results stand in its history, and
it goes on, while the others are still being written.
Left out on purpose: the terminal, which is `cli`'s.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from sapwood.records import Completion, Ended, Message, Prompt, SamplingParams, ToolCall
from sapwood.remote import RemoteSampler

POLL = 0.1
"""Seconds between two looks at whether a server has answered."""
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


class _StoppedError(Exception):
    """Nobody waits for this answer any more."""


@dataclass
class _Far:
    """The answers of servers to one question, each in a thread of its own."""

    done: dict[str, list[Message]] = field(default_factory=dict)
    broken: list[BaseException] = field(default_factory=list)
    stopped: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Whoever hears, and the functions that are called, meet one thread at a time."""

    def quiet(self, heard: Heard) -> Heard:
        """The same, one at a time, and an end to whoever still tells after it was stopped."""

        def held(tell: Callable[..., None]) -> Callable[..., None]:
            def told(*what: Any) -> None:
                with self.lock:
                    if self.stopped:
                        raise _StoppedError
                    tell(*what)

            return told

        return Heard(held(heard.delta), held(heard.result), held(heard.note))


@dataclass
class Talk:
    """The arms and what was said."""

    engine: Engine | None
    """None where servers alone answer."""
    chat: Chat | None
    arms: Mapping[str, str | None]
    """The names of those who answer on the engine, each with its adapter."""
    params: SamplingParams
    servers: Mapping[str, RemoteSampler] = field(default_factory=dict)
    """Those who answer elsewhere."""
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
        self.said: dict[str, list[Message]] = {arm: list(self.start) for arm in (*self.arms, *self.servers)}

    def ask(self, text: str, heard: Heard) -> bool:
        """Put the question to every arm; whether any has answered. Where one has not, its history is as it was.

        `KeyboardInterrupt` goes through, and leaves all histories as they were.
        """
        turns = {arm: _Turn([*said, Message("user", text)]) for arm, said in self.said.items()}
        far = _Far()
        heard = far.quiet(heard)
        threads = [threading.Thread(target=self._ask_far, args=(arm, turns[arm], heard, far), daemon=True) for arm in self.servers]
        try:
            for thread in threads:
                thread.start()
            done = self._ask_here(turns, heard, far) if self.engine is not None else {}
            for thread in threads:
                while thread.is_alive():  # whoever waits without an end is not woken by every Ctrl-C
                    thread.join(POLL)
        except BaseException:
            far.stopped = True
            raise
        if far.broken:
            raise far.broken[0]
        self.said.update(done | far.done)
        return bool(done or far.done)

    def _ask_here(self, turns: Mapping[str, _Turn], heard: Heard, far: _Far) -> dict[str, list[Message]]:
        """What the engine's arms answer: their histories."""
        assert self.engine is not None, "somebody answers here"
        assert self.chat is not None, "an engine has a chat"
        running: dict[Answer, str] = {}
        streams: dict[str, Any] = {}
        done: dict[str, list[Message]] = {}
        with self.engine.open() as session:
            for arm in self.arms:
                self._add(session, arm, turns[arm], running, streams, heard)
            while not session.idle:
                for answer in session.step():
                    arm = running.pop(answer)
                    for delta in streams[arm].finish()[0]:
                        heard.delta(arm, delta)
                    with far.lock:
                        goes_on = self._take(arm, turns[arm], answer.completion(), heard)
                    if goes_on:
                        self._add(session, arm, turns[arm], running, streams, heard)
                    elif goes_on is not None:
                        done[arm] = turns[arm].messages
        return done

    def _ask_far(self, arm: str, turn: _Turn, heard: Heard, far: _Far) -> None:
        """What a server answers."""
        try:
            goes_on: bool | None = True
            while goes_on:
                prompt = Prompt(tuple(turn.messages), (), "", self.schemas)
                completion = self.servers[arm].stream(prompt, self.params, partial(heard.delta, arm))
                with far.lock:
                    goes_on = self._take(arm, turn, completion, heard)
            if goes_on is not None:
                far.done[arm] = turn.messages
        except _StoppedError:
            pass
        except SapwoodError as error:
            with suppress(_StoppedError):
                heard.note(arm, str(error))
        except BaseException as error:  # noqa: BLE001  told in the thread that asked
            far.broken.append(error)

    def _take(self, arm: str, turn: _Turn, completion: Completion, heard: Heard) -> bool | None:
        """Put an answer into an arm's history, and make its calls: whether it goes on behind them. None where it is no answer."""
        if completion.ended is Ended.ERROR:
            heard.note(arm, completion.error or "there is no answer")
            return None
        message = completion.message or Message("assistant", completion.text)
        turn.messages.append(message)
        if not (message.tool_calls and self.tools and turn.calls < CALLS):
            return False
        self._call(arm, turn, message.tool_calls, heard)
        return True

    def row(self, arm: str) -> dict[str, Any]:
        """An arm's conversation as a training row. Raises `ConfigError` where nobody has answered yet, or there is no such arm."""
        if arm not in self.said:
            raise ConfigError(f"There is no arm {arm!r}. Arms: {', '.join(self.said)}.")
        messages = self.said[arm]
        if not any(message.role == "assistant" for message in messages):
            raise ConfigError("There is no answer to save yet. Ask something first.")
        row: dict[str, Any] = {"messages": [message.for_template() for message in messages]}
        return row | ({"tools": [dict(schema) for schema in self.schemas]} if self.schemas else {})

    def _add(self, session: Session, arm: str, turn: _Turn, running: dict[Answer, str], streams: dict[str, Any], heard: Heard) -> None:
        assert self.chat is not None, "an engine has a chat"
        try:
            fitted = self._fitted(self.chat, arm, turn)
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

    def _fitted(self, chat: Chat, arm: str, turn: _Turn) -> Fitted:
        """The arm's prompt; where a summary belongs into it, the arm writes that first."""
        assert self.engine is not None, "somebody answers here"
        room = self._room(chat)
        fit = partial(fitted_prompt, chat, turn.messages, self.schemas, self.arguments, overflow=self.overflow, room=room)
        fitted = fit()
        if fitted.to_summarise is None:
            return fitted
        short = SamplingParams(max_new_tokens=summary_tokens(chat))
        [summary] = self.engine.generate([fitted.to_summarise], short, adapter=self.arms[arm])
        return fit(summary=summary_of(summary))

    def _call(self, arm: str, turn: _Turn, calls: Sequence[ToolCall], heard: Heard) -> None:
        turn.calls += 1
        for call in calls:
            result = result_of(call, self.tools)
            heard.result(arm, call, result)
            turn.messages.append(Message("tool", result, tool_call_id=call.id, name=call.name))

    def _room(self, chat: Chat) -> int:
        """Tokens of answer that a prompt must leave: what may be asked for, up to a quarter of the context."""
        if self.overflow == "refuse" or chat.context_length is None:
            return 1
        return min(self.params.max_new_tokens, chat.context_length // 4)


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
