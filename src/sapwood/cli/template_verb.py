"""`sapwood template A [B]`: what one or two models or templates make of one conversation. Loads no model weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat.doctor.comparing import Pair, Segment, findings_side_by_side, label_of, pieces_of
from sapwood.chat.doctor.terminal import MARKS, finding_lines, harmless
from sapwood.cli.doctor_verb import show_lines
from sapwood.cli.options import parse, screen_for, take_json, take_names
from sapwood.errors import ConfigError
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.screen import Screen
from sapwood.recipes.templates import Comparison, Side, compare_templates, is_template, write_comparison

DESCRIPTION = "See what models or templates make of one conversation: names, folders, chatml, or Jinja files. Two stand side by side."
STYLES = {
    "system": "magenta",
    "tools": "magenta",
    "user": "blue",
    "tool": "yellow",
    "reasoning": "cyan",
    "content": "green",
    "calls": "cyan",
    "template": "",
    "unknown": "",
}
DIFFERS = "black on yellow"


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """Templates side by side."""

    conversation: str | None = None
    """A file whose first row is rendered, or a row of it as `my.jsonl:17`; without it, a conversation with one of everything."""
    tools: Path | None = None
    """A JSON file with a list of tools to offer in the conversation."""
    data: tuple[str, ...] = ()
    """Files whose rows are counted under each template."""
    model: str = DEFAULT_MODEL
    """The model whose tokenizer serves templates that are named or given as files."""
    page: Path | None = None
    """Write the comparison as an HTML page."""
    rows: DataConfig = field(default_factory=lambda: DataConfig(held_out=0))


def run(words: list[str]) -> None:
    """Render, lay side by side, show."""
    json, words = take_json(words)
    names, flags = take_names(words)
    config = parse(TemplateConfig(), "template", flags, DESCRIPTION)
    if config.model != DEFAULT_MODEL and names and not any(map(is_template, names)):
        raise ConfigError("--model names the tokenizer for templates by name or file, and none is compared. Leave it out.")
    screen = screen_for(json)
    found = compare_templates(
        names,
        tokenizer=config.model,
        conversation=config.conversation,
        tools=config.tools,
        data=config.data,
        rows=config.rows,
        screen=screen,
    )
    if len(found.sides) == 1:
        _one(found, screen)
    else:
        _two(found, screen)
    if config.page is not None:
        write_comparison(config.page, found)
        screen.say(f"Page         {config.page}")
    json.write(found.record())


def _one(found: Comparison, screen: Screen) -> None:
    side = found.sides[0]
    screen.title(f"Template of {side.name}")
    _source(side, screen)
    show_lines(screen, finding_lines(side.findings))
    screen.title(f"What it makes of {found.where}")
    _problem(side, screen)
    table = _table("", f"{side.rendering.tokens:,} tokens")
    for segment in side.rendering.segments:
        table.add_row(*_cells(label_of(segment, found.conversation.messages), _cell(segment, None)))
    screen.show(table)


def _two(found: Comparison, screen: Screen) -> None:
    left, right = found.sides
    screen.title(f"What they make of {found.where}")
    for side in found.sides:
        _problem(side, screen)
    table = _table("", *(f"{side.name}\n{side.rendering.tokens:,} tokens" for side in found.sides))
    for pair in found.pairs:
        cells = (_cell(pair.left, pair.right, beside=True), _cell(pair.right, pair.left, beside=True))
        table.add_row(*_cells(_counted(pair), *cells))
    screen.show(table)
    screen.say("Highlighted: what the other side does not write there. Colours: who wrote it. In brackets: tokens.", "dim")
    _compare_findings(left, right, screen)


def _compare_findings(left: Side, right: Side, screen: Screen) -> None:
    screen.title("Findings")
    table = _table("", left.name, right.name)
    alike = []
    for kind, one, other in findings_side_by_side(left.findings, right.findings):
        if one == other:
            alike.append(kind)
            continue
        sides = []
        for findings in (one, other):
            text = Text()
            for finding in findings:
                mark, style = MARKS[finding.severity]
                text.append(f"{mark} {harmless(finding.sentence)}\n", style=style if finding.severity != "ok" else "")
            text.rstrip()
            sides.append(text if findings else Text("–", style="dim"))
        table.add_row(Text(kind.replace("-", " "), style="dim"), *sides)
    screen.show(table)
    screen.say(f"Alike: {', '.join(kind.replace('-', ' ') for kind in alike) or 'nothing'}.", "dim")
    for side in (left, right):
        if side.survey is not None and side.survey.tokens.rows:
            tokens = side.survey.tokens
            words = f"{side.name}: {side.survey.taken:,} of {side.survey.rows_in:,} rows can be trained, {tokens.row_tokens:,} tokens"
            screen.say(f"{words}, {tokens.trained:,} of them trained.")


def _source(side: Side, screen: Screen) -> None:
    source = side.source
    arguments = f"; reads {', '.join(source.arguments)}" if source.arguments else ""
    screen.say(f"{source.letters:,} letters in {source.lines:,} lines of Jinja{arguments}.")
    for words in source.refusals[:6]:
        screen.say(f"Refuses: {words}", "dim")


def _problem(side: Side, screen: Screen) -> None:
    if side.rendering.problem:
        screen.say(f"{side.name}: {side.rendering.problem}", "yellow")


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False, padding=(0, 1))
    for place, head in enumerate(heads):
        table.add_column(head, ratio=None if place == 0 else 1, style="dim" if place == 0 else "", overflow="fold")
    return table


def _cells(label: str, *cells: Text) -> Sequence[Text]:
    return [Text(label, style="dim"), *cells]


def _counted(pair: Pair) -> str:
    counts = [segment.tokens if segment is not None else 0 for segment in (pair.left, pair.right)]
    number = str(counts[0]) if counts[0] == counts[1] else f"{counts[0]}, {counts[1]}"
    return f"{pair.label or '+'}  ({number})"


def _cell(segment: Segment | None, other: Segment | None, *, beside: bool = False) -> Text:
    """A stretch in the colour of who wrote it; letters that the other side lacks stand out."""
    text = Text()
    if segment is None:
        return text
    style = STYLES[segment.kind] + (" bold" if segment.trained else "")
    pieces = pieces_of(segment.text, other.text if other is not None else "") if beside else [(segment.text, False)]
    for piece, differs in pieces:
        text.append(harmless(piece).replace("⏎", "⏎\n"), style=DIFFERS if differs else style or "dim")
    text.rstrip()
    return text
