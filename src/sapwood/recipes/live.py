"""What a person sees while a model trains: a panel that keeps its place on a terminal, plain lines in a log or a notebook.

In: records of the run's metrics as they come (so that a resumed run shows its whole curve), and answers to held-out questions.
Out: letters on a screen. In a log the lines are a function of the steps alone, but for speeds, memory and time.
Left out on purpose: colours that carry meaning, keys to press, and anything that another part reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sapwood.chat.colour import UNPRINTABLE
from sapwood.errors import ConfigError
from sapwood.recipes.blocks import ASCII_POINT, POINT, chart
from sapwood.recipes.course import Course, Pace, Record
from sapwood.recipes.feed import Feed
from sapwood.recipes.samples import Answer, what_differs
from sapwood.recipes.screen import Screen
from sapwood.recipes.track import Service
from sapwood.run import Run
from sapwood.train import StepReport
from sapwood.train.memory import resident_memory

WIDEST = 110
"""Columns of the panel at most: longer lines are no easier to read."""
ECHO = 2
"""Columns right of the panel that stay free: a terminal writes ^C there, and on a line of its own it would leave a line of the panel."""
PANEL, CHART, LOW_CHART = 11, 4, 1
"""Lines of the whole panel; of its chart; of its chart where a terminal is low."""
FRAMES_A_SECOND = 2
MOST_SHOWN = 3
"""Questions of the summary; all are in samples.jsonl and in the report."""
GIB = 2**30
HELD_OUT_STYLE, CURVE_STYLE = "bold magenta", "cyan"


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is seen of a training while it runs. Nothing of it changes what is trained."""

    samples: int = 3
    """Held-out questions that are answered before training, at each evaluation and at the end; 0 asks none."""
    track: tuple[Service, ...] = ()
    """Services that are told loss, rate, gradient and speed: `tensorboard` (files in the run), `wandb` (offline unless you log in)."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ConfigError(f"samples is {self.samples}; give a number of questions, or 0 for none.")


class Watch:
    """One sitting of a training, as it is shown. Made by `watching`."""

    def __init__(self, screen: Screen, run: Run, tell: Callable[[list[Record]], None], lines: bool) -> None:
        self.course = Course()
        self.answers: Sequence[Answer] = ()
        self._screen, self._feed, self._tell = screen, Feed(run.path), tell
        self._doing = "rehearsing: the worst-case step, an evaluation, a save, a reload"
        self._lines = lines
        self.follow()

    def follow(self) -> None:
        """Take what the run has recorded since."""
        records = self._feed.new()
        self.course.take(records)
        self._tell(records)

    def report(self, done: StepReport) -> None:
        """A step is finished."""
        self._doing = ""
        self.course.stepped(done.step, done.num_steps, done.seconds)
        self.follow()
        if self._lines and self.course.is_worth_a_line():
            self._screen.say(self.course.line(resident_memory()))

    def evaluated(self, step: int) -> None:
        """An evaluation is recorded; questions are asked next."""
        self._doing = "answering held-out questions"
        self.course.evaluated(step)
        self.follow()
        held_out = self.course.held_out.get(step)
        if self._lines and held_out is not None:
            self._screen.say(f"{_when(step)}  held-out loss {held_out:.3f}", style="bold")

    def answered(self, step: int, answers: Sequence[Answer]) -> None:
        """The questions of an evaluation have been answered."""
        self._doing, self.answers = "", answers
        if self._lines and answers:
            self._screen.show(answer_lines(answers, self._screen.console.width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(WIDEST, options.max_width - ECHO)
        low = console.height < PANEL + 3
        yield self._framed(width, LOW_CHART if low else CHART, options.ascii_only)
        fitting = max(0, console.height - PANEL - 3) // 2
        if self.answers[:fitting]:
            yield Text(f"  Answers {_at(self.answers[0].step)}", style="bold")
            yield answer_lines(self.answers[:fitting], width)

    def _framed(self, width: int, height: int, ascii_only: bool) -> RenderableType:
        course, inside = self.course, width - 4
        lines: list[RenderableType] = [progress_row(course.pace, self._doing, inside)]
        if course.losses:
            lines.append(drawn(course, inside, height, ascii_only))
            lines += [fitted(parts, inside) for parts in course.facts(resident_memory(), ASCII_POINT if ascii_only else POINT)]
        title = "Training" + (f", {self._doing}" if self._doing and course.planned else "")
        return Panel(Group(*lines), title=title, title_align="left", border_style="dim", width=width)


@contextmanager
def watching(
    screen: Screen, run: Run, tell: Callable[[list[Record]], None] = lambda records: None, *, lines: bool = True
) -> Iterator[Watch]:
    """Show a training while the block runs, and `tell` its records as they come. Whatever ends the block, the panel is gone after it.

    Without `lines`, a log is left to the caller.
    """
    panel = has_panel(screen.console)
    watch = Watch(screen, run, tell, lines and not panel)
    try:
        with Live(watch, console=screen.console, transient=True, refresh_per_second=FRAMES_A_SECOND) if panel else nullcontext():
            yield watch
    finally:
        watch.follow()  # a signal may have come between a record and its report


def has_panel(console: Console) -> bool:
    """Whether lines can be drawn over: not in a file, a notebook, or a terminal that says it is dumb."""
    return console.is_terminal and not (console.is_dumb_terminal or console.is_jupyter or console.quiet)


def show_course(watch: Watch, answers: Sequence[Answer], screen: Screen) -> None:
    """What stays on the screen when the panel has gone: the whole curve, and what the answers became."""
    course, console = watch.course, screen.console
    if len(course.losses) > 2:
        screen.say(f"Training loss over {course.planned} steps, held-out loss as points:")
        screen.show(drawn(course, min(WIDEST, console.width) - 2, CHART, console.options.ascii_only, indent=2))
    steps = sorted({answer.step for answer in answers})
    if has_panel(console) and len(steps) > 1:  # a log has had them line by line
        first, last = ([answer for answer in answers if answer.step == step] for step in (steps[0], steps[-1]))
        screen.show(before_and_after(first[:MOST_SHOWN], last[:MOST_SHOWN], console.width))


def progress_row(pace: Pace, doing: str, width: int) -> Table:
    """A bar and how far it is; what is being done while that is not known."""
    bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    words = pace.words() or doing
    bar.add_row(
        ProgressBar(total=pace.planned or 1, completed=pace.step, pulse=not pace.planned, finished_style="bar.complete"),
        Text(words if cell_len(words) < width - 4 else words[: width - 5] + "…"),
    )
    return bar


def drawn(course: Course, width: int, height: int, ascii_only: bool, indent: int = 0) -> Text:
    """The training loss as columns over the planned steps, the held-out loss as points, the highest and the lowest value beside them."""
    curve, points = course.curve(), sorted(course.held_out.items())
    values = [value for _, value in (*curve, *points)]
    labels = [f"{value:.3f}" for value in (max(values), min(values))]
    margin = max(map(len, labels)) + 1
    made = chart(curve, points, end=course.planned or course.step, width=max(1, width - margin), height=height, ascii_only=ascii_only)
    text = Text(no_wrap=True)
    for row, line in enumerate(made.lines):
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        text.append(" " * indent + f"{label:>{margin - 1}} ", style="dim")
        start = len(text)
        text.append(line, style=CURVE_STYLE)
        for place in (place for other, place in made.points if other == row):
            text.stylize(HELD_OUT_STYLE, start + place, start + place + 1)
        if row < height - 1:
            text.append("\n")
    return text


def fitted(parts: Sequence[str], width: int) -> Text:
    """Facts side by side, as many as a line holds; the first always, cut where it must be."""
    line = parts[0]
    for part in parts[1:]:
        if cell_len(line) + 3 + cell_len(part) > width:
            break
        line += "   " + part
    return Text(line, no_wrap=True, overflow="ellipsis")


def answer_lines(answers: Sequence[Answer], width: int) -> Text:
    """Each question with its answer below it, one line each. What comes out of data or a model is cut and made harmless."""
    text = Text(no_wrap=True, overflow="ellipsis")
    room = min(WIDEST, width) - 6
    for number, (answer, lines) in enumerate(zip(answers, what_differs([answer.question for answer in answers]), strict=True)):
        mark = "·" if answer.right is None else "✓" if answer.right >= 1 else "✗"
        text.append("\n" if number else "")
        text.append(f"  {mark} ", style={"✓": "bold green", "✗": "bold red"}.get(mark, ""))
        text.append(_asked(lines, room) + "\n", style="dim")
        text.append("    " + (one_line(answer.answer, room) or "(nothing)"))
    return text


def before_and_after(first: Sequence[Answer], last: Sequence[Answer], width: int) -> RenderableType:
    """The first and the last answer to each question, for the summary."""
    both = {answer.item: answer for answer in first}
    text = Text(no_wrap=True, overflow="ellipsis")
    room = min(WIDEST, width) - 12
    for answer, lines in zip(last, what_differs([answer.question for answer in last]), strict=True):
        before = both.get(answer.item)
        text.append("\n" if text else "")
        text.append(f"  {_asked(lines, room + 6)}", style="dim")
        for when, one in (("before", before), ("after", answer)):
            if one is not None:
                mark = "·" if one.right is None else "✓" if one.right >= 1 else "✗"
                text.append(f"\n  {mark} ", style={"✓": "bold green", "✗": "bold red"}.get(mark, ""))
                text.append(f"{when:<7}", style="dim")
                text.append(one_line(one.answer, room) or "(nothing)")
    return text


def _asked(lines: Sequence[str], length: int) -> str:
    """A question in one line: all of it, or its beginning and its last line, which often is what is wanted."""
    if not lines:
        return "(nothing was asked)"
    whole, last = " ".join(lines), lines[-1]
    room, fits = length - cell_len(last) - 1, cell_len(whole) <= length
    if fits or room < length // 4:
        return one_line(whole if fits or len(lines) < 2 else last, length)
    return f"{one_line(whole, room)} {one_line(last, length)}"


def one_line(text: str, length: int) -> str:
    """A text without line breaks and control letters, cut with an ellipsis to so many columns: some letters take two."""
    text = " ".join(text.split()).translate(UNPRINTABLE)
    length = max(1, length)
    return text if cell_len(text) <= length else set_cell_size(text, length - 1).rstrip() + "…"


def _when(step: int) -> str:
    return f"step {step}" if step else "before"


def _at(step: int) -> str:
    return f"at step {step}" if step else "before training"
