"""Answers in the terminal as they come: one arm streamed, or several side by side.

In: pieces of answers (`recipes.talk.Heard`). Out: text. On a terminal several arms stand in columns that grow together; in a file or a
pipe each stands below its name, once it has ended. Letters that would steer the terminal are left out.
"""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sapwood.chat import Delta
from sapwood.chat.colour import UNPRINTABLE
from sapwood.recipes.talk import Heard
from sapwood.records import ToolCall


class _Writing:
    """One arm's answer as text: what it thinks, says and calls, each with a line of its own."""

    def __init__(self) -> None:
        self.text = ""
        self._kind = ""

    def add(self, delta: Delta) -> str:
        """The text that a piece adds."""
        kind = "content" if delta.content else "reasoning" if delta.reasoning else f"call {delta.index}"
        lead = {"content": "", "reasoning": "(thinks) "}.get(kind, "(calls) ") if kind != self._kind else ""
        piece = lead + delta.reasoning + delta.content + delta.name + (" " if delta.name else "") + delta.arguments
        return self._write(kind, piece)

    def result(self, call: ToolCall, result: str) -> str:
        """What a call brought back."""
        return self._write("result", f"({call.name} says) {result}")

    def note(self, told: str) -> str:
        """A sentence about the answer."""
        return self._write("note", f"[{told}]")

    def _write(self, kind: str, piece: str) -> str:
        new = kind != self._kind or kind in ("result", "note")
        added = ("\n" if self.text and new else "") + piece.translate(UNPRINTABLE)
        self._kind = kind
        self.text += added
        return added


class InTurn:
    """One arm streamed; of several, each whole below its name."""

    def __init__(self, arms: list[str], out: TextIO) -> None:
        self._arms, self._out = {arm: _Writing() for arm in arms}, out
        self.heard = Heard(
            lambda arm, delta: self._show(self._arms[arm].add(delta)),
            lambda arm, call, result: self._show(self._arms[arm].result(call, result)),
            lambda arm, told: self._show(self._arms[arm].note(told)),
        )

    def _show(self, text: str) -> None:
        if len(self._arms) == 1:
            self._out.write(text)
            self._out.flush()

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: Any) -> None:
        if len(self._arms) > 1:
            self._out.write("\n\n".join(f"{arm}:\n{writing.text}" for arm, writing in self._arms.items()))
        self._out.write("\n")
        self._out.flush()


class SideBySide:
    """Columns of a terminal, one an arm."""

    def __init__(self, arms: list[str], out: TextIO) -> None:
        self._arms = {arm: _Writing() for arm in arms}
        self._live = Live(console=Console(file=out, highlight=False), refresh_per_second=12, vertical_overflow="visible")
        self.heard = Heard(
            lambda arm, delta: self._show(self._arms[arm].add(delta)),
            lambda arm, call, result: self._show(self._arms[arm].result(call, result)),
            lambda arm, told: self._show(self._arms[arm].note(told)),
        )

    def _show(self, _: str) -> None:
        table = Table.grid(padding=(0, 2), expand=True)
        for _arm in self._arms:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(arm, "bold") for arm in self._arms))
        table.add_row(*(Text(writing.text) for writing in self._arms.values()))
        self._live.update(table)

    def __enter__(self) -> SideBySide:
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()
