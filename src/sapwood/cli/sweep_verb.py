"""`sapwood sweep FILES | SWEEP --over KNOB=A,B …`"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.recipes.screen import Screen
from sapwood.recipes.sweep import SweepResult, config_for, sweep
from sapwood.stats import Difference

DESCRIPTION = (
    "Train a small grid of settings on the same rows, and say which is best and which cannot be told apart. Takes what `sapwood sft` "
    "takes, or the directory of a sweep to go on with it."
)


def run(words: list[str]) -> None:
    """Parse, train the grid, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(config_for(tuple(names)), "sweep", gathered(flags), DESCRIPTION)
    screen = screen_for(json)
    result = sweep(config, screen=screen)
    show(result, screen)
    json.write(result.summary())


def gathered(flags: Sequence[str]) -> list[str]:
    """`--over a=1,2 --over b=3` as one `--over a=1,2 b=3`: the option may be given once or for each knob."""
    over, rest, taking = list[str](), list[str](), False
    for word in flags:
        if word == "--over":
            taking = True
        elif word.startswith("--over="):
            over.append(word.removeprefix("--over="))
            taking = False
        elif taking and not word.startswith("-"):
            over.append(word)
        else:
            rest.append(word)
            taking = False
    return [*rest, "--over", *over] if over else rest


def show(result: SweepResult, screen: Screen) -> None:
    """The table, what it says, and what to do with it."""
    screen.title("Sweep")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("point", overflow="fold", min_width=12)
    for heading in ("loss", "to the best", "score", "to the best, points"):
        table.add_column(heading, justify="right")
    for place, line in enumerate(result.standings.table):
        rate = line.rate.rate if line.rate is not None else None
        cells = (f"{line.point.loss:.3f}", _span(line.loss_difference, 1, 3), "–" if rate is None else f"{rate:.1%}")
        style = "bold" if place == 0 else "dim" if line.apart else ""
        table.add_row(Text(line.point.name), *cells, _span(line.score_difference, 100, 1), style=style)
    screen.show(table)
    for sentence in result.standings.sentences:
        screen.say(sentence)
    for number, command in enumerate(result.next):
        screen.lines([f"{'Next' if number == 0 else '':<6}{command}"])


def _span(difference: Difference | None, scale: float, digits: int) -> str:
    if difference is None:
        return ""
    mean, low, high = (scale * value for value in (difference.mean, difference.interval.low, difference.interval.high))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
