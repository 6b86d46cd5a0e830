"""What a person sees while a recipe works: sentences, headings, progress bars. Results go to files, never only here.

Everything is written to standard error, so that `--json` can own standard output; a quiet screen swallows it all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from sapwood.chat.colour import UNPRINTABLE
from sapwood.recipes.course import clock

Advance = Callable[[int, int, str], None]
"""Called with (done, in all, a few words on the state)."""


class Screen:
    """A terminal, or nothing."""

    def __init__(self, *, quiet: bool = False, file: TextIO | None = None) -> None:
        self.console = Console(file=file, stderr=file is None, quiet=quiet, highlight=False)
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        """A heading: what happens next, and how far into the run we are."""
        self.console.print(f"\n[bold]{escape(text)}[/bold]  [dim]{clock(time.monotonic() - self._began)}[/dim]")

    def say(self, text: str, style: str = "") -> None:
        """A sentence, taken literally: wrapped below its own beginning on a terminal, one line in a file."""
        text = text.translate(UNPRINTABLE)
        if text and self.console.is_terminal:
            self.console.print(Padding(Text(text, style), (0, 0, 0, 2), expand=False))
        else:
            self.console.print(f"  {text}", style=style, markup=False, soft_wrap=True)

    def lines(self, lines: list[str]) -> None:
        """Preformatted lines, taken literally."""
        for line in lines:
            self.console.print(f"  {line.translate(UNPRINTABLE)}", markup=False, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Anything that rich can draw."""
        self.console.print(what)

    @contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """A bar for work that takes over two seconds."""
        bar = Progress(
            SpinnerColumn(),
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", style="progress.download", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}", style="dim", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,  # a log is no place for a bar
        )
        with bar:
            task = bar.add_task(what, total=None, count="", state="")

            def advance(done: int, total: int, state: str = "") -> None:
                bar.update(task, completed=done, total=total or None, count=f"{done:,}/{total:,}" if total else "", state=state)

            yield advance
