"""Runs on a terminal: what the recipes found in, tables and sentences on a screen out. Fits eighty columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.table import Table
from rich.text import Text

from sapwood.chat.colour import UNPRINTABLE
from sapwood.evaluate.compare_runs import Comparison, Row
from sapwood.recipes.blocks import sparkline
from sapwood.recipes.run_detail import RunDetail
from sapwood.recipes.runs import RunFacts, Runs
from sapwood.recipes.screen import Screen

STATES = {"finished": "", "stopped": "yellow", "running": "bold cyan"}
WORDS = {"better": "green", "worse": "red", "yes": "green", "no": "red"}
SPARKS = 32
MOST_NAMED = 3


def show_list(found: Runs, screen: Screen) -> None:
    """One line a run, and what is no run."""
    if not found.runs:
        screen.say(f"No runs in {found.folder}. The first one: sapwood quickstart")
    else:
        screen.show(_table_of_runs(found.runs, screen.console.width))
    strangers = list(found.strangers.items())
    for name, why in strangers[:MOST_NAMED]:
        screen.say(f"Not listed: {name}: {why}", "dim")
    if len(strangers) > MOST_NAMED:
        screen.say(f"… and {len(strangers) - MOST_NAMED} more folders that are no readable runs.", "dim")
    if found.runs:
        screen.say(f"One of them: sapwood runs show {found.runs[0].path}", "dim")


def _table_of_runs(runs: Sequence[RunFacts], width: int) -> Table:
    wide = width >= 110
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("run", style="bold", overflow="fold", min_width=8)
    if wide:
        table.add_column("kind")
        table.add_column("model", overflow="ellipsis", no_wrap=True, max_width=22)
        table.add_column("data", overflow="ellipsis", no_wrap=True, max_width=18)
    for heading in ("state", "steps"):
        table.add_column(heading, no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=10)
    table.add_column("disk", justify="right", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    for one in runs:
        about = [one.kind, _plain(one.model.rstrip("/").rsplit("/", 1)[-1]), _plain(_data(one))] if wide else []
        steps = f"{one.steps}/{one.planned}" if one.planned else str(one.steps) if one.steps else "–"
        loss = "–" if one.held_out_loss is None else f"{one.held_out_loss:.3f}"
        state, verdict = (
            Text(one.state, STATES[one.state]),
            Text((one.verdict or "–").translate(UNPRINTABLE), WORDS.get(one.verdict.split(",")[0], "")),
        )
        table.add_row(_plain(one.path.name), *about, state, steps, loss, verdict, size(one.bytes), age(one.begun))
    return table


def show_detail(detail: RunDetail, screen: Screen) -> None:
    """All that is known of one run."""
    facts = detail.facts
    screen.title(str(facts.path).translate(UNPRINTABLE))
    steps = f"{facts.steps} of {facts.planned} steps" if facts.planned else f"{facts.steps} steps" if facts.steps else "no steps"
    began = f", begun {age(facts.begun)} ago" if facts.begun else ""
    screen.say(f"{facts.kind}, {facts.state}, {steps}{began}. Model {facts.model or 'not named'}, data {_data(facts) or 'made in Python'}.")
    if detail.verdict:
        screen.say(detail.verdict, "bold")
    if detail.rows:
        screen.say(", ".join(f"{count:,} {name}" for name, count in detail.rows.items()) + ".")
    for name, losses in (("training loss", detail.training_losses), ("held-out loss", detail.held_out_losses)):
        if losses:
            screen.lines([f"{name:<14}{sparkline(losses, SPARKS)}  {losses[0]:.3f} → {losses[-1]:.3f}"])
    for name, values in detail.figures.items():
        screen.lines([f"{name:<14}{sparkline(values, SPARKS)}  {values[0]:.3g} → {values[-1]:.3g}"])
    for finding in detail.findings:
        screen.say(finding.line, "yellow" if finding.alarm else "")
    for note in detail.notes:
        screen.say(note, "yellow")
    _show_pairs("Settings other than the defaults", detail.settings, screen)
    _show_pairs("Where the time went", {name: _time(seconds) for name, seconds in detail.seconds.items()}, screen)
    _show_pairs("Disk", {name: size(count) for name, count in detail.disk.items()}, screen)
    if detail.report is not None:
        screen.lines([f"Page  {_plain(str(detail.report))}"])
    for number, command in enumerate(detail.next):
        screen.lines([f"{'Next' if number == 0 else '':<6}{command}"])


def show_comparison(found: Comparison, screen: Screen) -> None:
    """What differs, the curves, the rates, and the paired differences."""
    screen.title(f"{len(found.names)} runs side by side")
    for title, rows in (("settings", found.settings), ("data", found.data), ("made with", found.made_with)):
        if rows:
            screen.show(_side_by_side(title, found.names, rows))
        else:
            screen.say(f"No difference in {title}.", "dim")
    curves = [Row("held-out loss", tuple(sparkline(losses, 16) or "–" for losses in map(_finite, found.losses)))]
    curves.append(
        Row("first → last", tuple(f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "–" for losses in map(_finite, found.losses)))
    )
    screen.show(_side_by_side("curves", found.names, curves))
    rates = [
        Row(name, tuple("–" if arm is None or arm.rate is None else f"{arm.rate:.1%} of {arm.items}" for arm in arms))
        for name, arms in found.arms.items()
    ]
    if rates:
        screen.show(_side_by_side("right answers", found.names, rates))
    screen.title("Difference, item by item")
    if not found.pairings:
        screen.say("The runs have no arm in common that a model answered, so nothing is compared.")
    for pairing in found.pairings:
        screen.say(f"{pairing.arm}: {pairing.line}", WORDS.get(pairing.decision, ""))
    for note in found.notes:
        screen.say(note, "yellow")


def _side_by_side(title: str, names: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(title, style="dim", overflow="fold")
    for name in names:
        table.add_column(_plain(name), overflow="fold")
    for row in rows:
        table.add_row(_plain(row.name), *(_plain(value) for value in row.values))
    return table


def _show_pairs(title: str, pairs: dict[str, str], screen: Screen) -> None:
    if pairs:
        screen.say("")
        screen.say(title, "bold")
        width = max(map(len, pairs))
        screen.lines([f"  {name:<{width}}  {value}" for name, value in pairs.items()])


def _finite(losses: Sequence[float | None]) -> list[float]:
    return [loss for loss in losses if loss is not None]


def _data(facts: RunFacts) -> str:
    return ", ".join(name.rsplit("/", 1)[-1] for name in facts.data)


def _plain(text: str) -> Text:
    """Text out of files, taken literally."""
    return Text(text.translate(UNPRINTABLE))


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes for people."""
    number = float(count)
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def age(begun: datetime | None) -> str:
    """Since then, in one unit."""
    if begun is None:
        return "?"
    seconds = max(0.0, (datetime.now(UTC) - begun).total_seconds())
    for limit, length, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
