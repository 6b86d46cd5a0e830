"""What a person sees while a model learns from rewards or preferences: a panel on a terminal, plain lines in a log or a notebook.

In: records of the run's metrics as they come, a line for each step, and the best and the worst of its answers. Out: letters on a screen.
In a log every step has its line, as it is made by the recipe; on a terminal the panel holds the figures with small curves of the run so
far, and when it goes a summary stays. Left out on purpose: colours that carry meaning, keys to press, and anything that another part reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sapwood.evaluate.learning_figures import Figure
from sapwood.evaluate.report_answers import thought_and_answer
from sapwood.recipes.blocks import sparkline
from sapwood.recipes.course import Record
from sapwood.recipes.feed import Feed
from sapwood.recipes.learning_course import LearningCourse, Subject, first_and_last
from sapwood.recipes.live import CURVE_STYLE, ECHO, FRAMES_A_SECOND, HELD_OUT_STYLE, WIDEST, fitted, has_panel, one_line, progress_row
from sapwood.recipes.screen import Screen
from sapwood.records import Completion, Item, Judge, Prompt, Rewarded, Sampler, SamplingParams
from sapwood.records.protocols import OnToken, release
from sapwood.run import Run

NAME, VALUE = 9, 8
"""Columns of a figure's name and value; its curve has the rest."""
TWO_COLUMNS = 70
"""Columns inside the panel from which figures stand two by two."""
SUMMARY_CURVE = 28
ANSWERS_EVERY = 60.0
"""Seconds of steps between the answers that a log shows."""
SHADES, ASCII_SHADES = "█▓▒░", "#=-."
WHICH = {"best": "bold green", "worst": "bold red"}


@dataclass(frozen=True)
class Told:
    """What a step leaves beside its record: a line for a log, and records of its best and worst answers."""

    line: str
    answers: Sequence[Record] = ()


class LearningWatch:
    """One sitting of a training, as it is shown. Made by `watching_learning`."""

    def __init__(self, screen: Screen, run: Run, subject: Subject, *, panel: bool) -> None:
        self.course = LearningCourse(subject)
        self.answers: list[Record] = []
        self._screen, self._feed, self._panel = screen, Feed(run.path), panel
        self._doing, self._between = "rehearsing: the worst-case step, a save, a reload", ""
        self._told: set[str] = set()
        self._alarms: list[str] = []
        self._since, self._begun = 0.0, False
        self._drawn: tuple[object, list[RenderableType]] = (None, [])
        self.follow()

    def follow(self) -> None:
        """Take what the run has recorded since."""
        self.course.take(self._feed.new())

    def stepped(self, step: int, planned: int, seconds: float, told: Told) -> None:
        """A step is finished and recorded."""
        self.course.stepped(step, planned, seconds)
        self.follow()
        self.answers = [record for record in told.answers if record.get("which") in WHICH] or self.answers
        self._doing = self._between
        if not self._panel:
            self._log(step, planned, seconds, told)
        found = self.course.alarms()
        self._alarms = [sign.kind for sign in found]
        for sign in found:
            if sign.kind not in self._told:
                self._told.add(sign.kind)
                self._screen.say(f"Alarm, {sign.kind}: {sign}", style="yellow")

    def evaluated(self, step: int) -> None:
        """An evaluation in front of step `step` + 1 begins or is recorded."""
        self.course.evaluated(step)
        self.follow()

    @contextmanager
    def busy(self, words: str, between: str = "") -> Iterator[None]:
        """Something that takes its time is done while the block runs; `between` is done behind it, until the next thing."""
        self._doing, self._between = words, between or self._between
        yield
        self._doing = self._between

    def _log(self, step: int, planned: int, seconds: float, told: Told) -> None:
        first, self._begun = not self._begun, True
        self._screen.say(told.line)
        if first and planned > step:
            self._screen.say(f"The other {planned - step} steps will take about {seconds * (planned - step) / 60:.0f} minutes.")
        self._since += seconds
        if told.answers and (self._since > ANSWERS_EVERY or first or step == planned):
            self._since = 0.0
            self._screen.lines([line[2:] for line in answer_lines(one_of_each(self.answers), WIDEST).plain.splitlines()])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(WIDEST, options.max_width - ECHO)
        framed = [progress_row(self.course.pace, self._doing, width - 4), *self._figures(width - 4, ascii_only=options.ascii_only)]
        yield Panel(Group(*framed), title=self._title(), title_align="left", border_style="dim", width=width)
        answers = one_of_each(self.answers)
        if answers and console.height > len(framed) + 2 + 3 * len(answers) + 3:
            yield answer_lines(answers, width)

    def _title(self) -> Text:
        return Text("Training" + (f", {self._doing}" if self._doing and self.course.pace.planned else ""))

    def _figures(self, inside: int, *, ascii_only: bool) -> list[RenderableType]:
        """Drawn once a step, and not at every frame: beside this something trains."""
        key = (self.course.version, tuple(self._alarms), inside, ascii_only)
        if self._drawn[0] != key:
            self._drawn = key, self._draw(inside, ascii_only=ascii_only) if self.course.steps else []
        return self._drawn[1]

    def _draw(self, inside: int, *, ascii_only: bool) -> list[RenderableType]:
        course, lines = self.course, list[RenderableType]()
        figures = course.figures
        columns = 2 if inside >= TWO_COLUMNS else 1
        room = (inside - 2 * (columns - 1)) // columns
        for place in range(0, len(figures), columns):
            cells = [figure_cell(course, figure, room, ascii_only=ascii_only) for figure in figures[place : place + columns]]
            lines.append(Text("  ", no_wrap=True).join(cells))
        held_out = course.held_out()
        if held_out:
            lines.append(Text.assemble((f"{'held out':<{NAME}}", "dim"), (held_out, HELD_OUT_STYLE), no_wrap=True, overflow="ellipsis"))
        lines += phase_lines(course.phases(recent=True), inside, ascii_only=ascii_only)
        if course.loss():
            lines.append(Text(one_line(course.loss(), inside), style="dim", no_wrap=True))
        if self._alarms:
            lines.append(Text(one_line(f"alarms: {', '.join(self._alarms)} (see above)", inside), style="yellow", no_wrap=True))
        return lines


@contextmanager
def watching_learning(screen: Screen, run: Run, subject: Subject) -> Iterator[LearningWatch]:
    """Show a training while the block runs. Whatever ends the block, the panel is gone after it, and what was reached stays as text."""
    panel = has_panel(screen.console)
    watch = LearningWatch(screen, run, subject, panel=panel)
    try:
        with Live(watch, console=screen.console, transient=True, refresh_per_second=FRAMES_A_SECOND) if panel else nullcontext():
            yield watch
    finally:
        watch.follow()  # a signal may have come between a record and its report
        show_learning(watch, screen, answers=panel)


def show_learning(watch: LearningWatch, screen: Screen, *, answers: bool) -> None:
    """What stays on the screen: each figure with its curve, where the time went, and the last answers, which a log has had already."""
    course, ascii_only = watch.course, screen.console.options.ascii_only
    steps = course.steps
    if len(steps) < 2:
        return
    screen.say(f"{len(steps)} steps, the first and the last of them in the mean:")
    table = Table.grid(padding=(0, 2, 0, 0))
    for figure in course.figures:
        values = course.values(figure)
        first, last = first_and_last(values)
        curve = Text(sparkline(values, SUMMARY_CURVE, ascii_only=ascii_only), style=CURVE_STYLE)
        table.add_row(Text(f"  {figure.name}"), curve, Text(f"{figure.words(first)} → {figure.words(last)}"))
    screen.show(table)
    lines = phase_lines(course.phases(recent=False), min(WIDEST, screen.console.width) - 2, ascii_only=ascii_only)
    for line in lines[1:]:
        screen.show(Text.assemble("  time  ", line))
    if answers and watch.answers:
        screen.show(answer_lines(one_of_each(watch.answers), screen.console.width))


def figure_cell(course: LearningCourse, figure: Figure, width: int, *, ascii_only: bool) -> Text:
    """Name, value of the last step, and the curve so far, in exactly `width` columns."""
    values = course.values(figure)
    curve = sparkline(values, max(0, width - NAME - VALUE - 1), ascii_only=ascii_only)
    value = one_line(figure.words(values[-1]), VALUE)
    cell = Text.assemble((f"{figure.name[:NAME]:<{NAME}}", "dim"), f"{value:>{VALUE}} ", (curve, CURVE_STYLE), no_wrap=True)
    cell.truncate(width, pad=True)
    return cell


def phase_lines(spent: dict[str, float], width: int, *, ascii_only: bool) -> list[Text]:
    """A bar of the time by phase, and what each shade of it is with its share; nothing where nothing was measured."""
    whole = sum(spent.values())
    if whole <= 0:
        return []
    shades = ASCII_SHADES if ascii_only else SHADES
    bar, reached = "", 0.0
    for shade, seconds in zip(shades, spent.values(), strict=True):
        reached += seconds
        bar += shade * (round(reached / whole * width) - len(bar))
    parts = [f"{shade} {words} {seconds / whole:.0%}" for shade, (words, seconds) in zip(shades, spent.items(), strict=True)]
    return [Text(bar, style=CURVE_STYLE, no_wrap=True), fitted(parts, width)]


def one_of_each(answers: Sequence[Record]) -> list[Record]:
    """The best and the worst answer."""
    return [found for which in WHICH if (found := next((one for one in answers if one.get("which") == which), None)) is not None]


def answer_lines(answers: Sequence[Record], width: int) -> Text:
    """Each answer with its question, thought and answer told apart, one line each. What comes out of data or a model is made harmless."""
    text = Text(no_wrap=True, overflow="ellipsis")
    room = min(WIDEST, width) - 14
    for number, record in enumerate(answers):
        thought, answer = thought_and_answer(str(record.get("answer", "")), record)
        text.append("\n" if number else "")
        text.append(f"  {record['which']:<6}", style=WHICH[record["which"]])
        text.append(f"{record['reward']:<5.3g} ")
        text.append(both_ends(str(record.get("question", "")), room), style="dim")
        if thought:
            text.append(f"\n    {'thought':<8}  {one_line(thought, room)}", style="dim")
        cut = " (cut at the limit)" if record.get("ended") == "length" else ""
        text.append(f"\n    {'answer':<8}  ", style="dim")
        text.append((one_line(answer, room - len(cut)) or "(nothing)") + cut)
    return text


def both_ends(text: str, length: int) -> str:
    """A text in one line: all of it, or its beginning and its end. What tells questions apart may stand at either."""
    whole = one_line(text, 2 * len(text))
    if cell_len(whole) <= length:
        return whole
    tail = length // 2
    return f"{one_line(whole, length - tail)}{set_cell_size(whole[::-1], tail)[::-1].lstrip()}"


@dataclass(frozen=True)
class Announced:
    """A sampler that says when it samples."""

    sampler: Sampler
    watch: LearningWatch

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """As the sampler's own."""
        with self.watch.busy(f"sampling {len(prompts)} answers", "updating"):
            return self.sampler.generate(prompts, params, on_token=on_token, cancelled=cancelled)

    def release(self) -> None:
        """As the sampler's own."""
        release(self.sampler)


def announced(judge: Judge, watch: LearningWatch) -> Judge:
    """The same judge, which says when it judges."""

    def told(items: Sequence[Item], completions: Sequence[Completion]) -> list[Rewarded]:
        with watch.busy(f"rewarding {len(completions)} answers"):
            return judge(items, completions)

    return told
