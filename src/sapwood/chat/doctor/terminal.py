"""The doctor's survey for a terminal: plain lines that fit into eighty columns, with or without colours.

In: a `Survey`. Out: `Line`s: how far to indent, and a `rich` text that wraps there. All that comes out of data is made
harmless (see `colour.UNPRINTABLE`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.text import Text

from sapwood.chat.colour import UNPRINTABLE
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.doctor.row_checks import ROW_KINDS, agreeing
from sapwood.chat.doctor.sharing import Sharing
from sapwood.chat.doctor.spans import KIND_WORDS
from sapwood.chat.doctor.survey import Lengths, Survey, Tokens

MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "problem": ("✗", "bold red")}
BAR = 24
_BLOCKS = " ▁▂▃▄▅▆▇█"
_PLACES = 3


class Line(NamedTuple):
    """A text that wraps below its own beginning, `indent` columns from the left; a mark stands before it."""

    indent: int
    text: Text
    mark: str = ""
    style: str = ""
    """Of the mark."""


def harmless(text: str) -> str:
    """A text out of data on one line: control letters as pictures, line ends as arrows."""
    return text.translate(UNPRINTABLE).replace("\n", "⏎").replace("\t", "␉")


def finding_lines(findings: Sequence[Finding]) -> Iterator[Line]:
    """Mark and sentence, the next step dim below it; the grave ones first."""
    order = ("problem", "note", "ok")
    for finding in sorted(findings, key=lambda finding: order.index(finding.severity)):
        mark, style = MARKS[finding.severity]
        yield Line(2, Text(harmless(finding.sentence), style="" if finding.severity == "ok" else style), mark, style)
        if finding.next_step and finding.severity != "ok":
            yield Line(4, Text(harmless(finding.next_step), style="dim"))


def survey_lines(survey: Survey) -> Iterator[Line]:
    """Counts, tokens by who wrote them, lengths, sharing."""
    whole = f"{survey.taken:,} of {survey.rows_in:,} conversations can be trained"
    yield Line(2, Text(whole, style="bold red" if survey.refused else "bold"))
    if survey.lengths is None:
        return
    yield from _tokens(survey.tokens)
    yield from _lengths(survey.lengths)
    yield Line(2, _sharing(survey.sharing))


def kind_lines(survey: Survey) -> Iterator[Line]:
    """The rows with something to know, by kind: how many, the first of them, the next step."""
    for kind, count in survey.kinds.items():
        what = ROW_KINDS[kind]
        mark, style = MARKS[what.severity]
        yield Line(2, Text(f"{count.rows:,} {agreeing(what.title, count.rows)}", style=style), mark, style)
        for note in count.first[:_PLACES]:
            yield Line(6, Text().append(harmless(note.where), style="bold").append(f"  {harmless(note.sentence)}"))
            if kind == "refused" and note.next_step:
                yield Line(8, Text(harmless(note.next_step), style="dim"))
        if count.rows > _PLACES:
            yield Line(6, Text(f"… and {count.rows - _PLACES:,} more", style="dim"))
        yield Line(4, Text(what.next_step, style="dim"))


def _tokens(tokens: Tokens) -> Iterator[Line]:
    share = tokens.trained / tokens.row_tokens
    plural = "s" * (tokens.rows != 1)
    in_all = f"{tokens.trained:,} ({share:.0%}) are trained"
    yield Line(2, Text(f"{tokens.rows:,} training row{plural} of {tokens.row_tokens:,} tokens; {in_all}"))
    most = max(tokens.by_kind.values())
    for kind, count in sorted(tokens.by_kind.items(), key=lambda entry: -entry[1]):
        trained = tokens.trained_by_kind.get(kind, 0)
        line = Text(f"{KIND_WORDS[kind]:<19}{count:>12,}  {count / tokens.own:>4.0%}  ")
        solid = max(1, round(BAR * count / most))
        green = min(solid, round(BAR * trained / most)) if trained < count else solid
        line.append("█" * green, style="green").append("█" * (solid - green), style="bright_black")
        yield Line(4, line.append(" " * (BAR - solid) + (f" {trained / count:.0%} trained" if trained else "")))


def _lengths(lengths: Lengths) -> Iterator[Line]:
    most = max(lengths.counts)
    blocks = "".join(_BLOCKS[0 if not count else max(1, round(8 * count / most))] for count in lengths.counts)
    limit = f"; the context holds {lengths.limit:,}" if lengths.limit else ""
    yield Line(2, Text(f"lengths  0 ▕{blocks}▏ {lengths.top:,} tokens{limit}"))
    longest = f"longest {lengths.longest:,} ({harmless(lengths.longest_at)})"
    yield Line(4, Text(f"shortest {lengths.shortest:,}, median {lengths.median:,}, nine of ten up to {lengths.ninety:,}, {longest}"))


def _sharing(sharing: Sharing) -> Text:
    saved = 1 - sharing.unique_tokens / sharing.row_tokens if sharing.row_tokens else 0.0
    return Text(
        f"sharing  {sharing.unique_tokens:,} of {sharing.row_tokens:,} tokens are computed in batches of {sharing.batch} conversations: "
        f"{saved:.0%} saved ({sharing.factor:.2f}×)"
    )
