"""`sapwood template A B`: two models or templates, one conversation; what each makes of it, and how they differ.

In: names of models, folders, template names or Jinja files. Out: a `Comparison`, for a terminal, a page or a machine. No
weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sapwood.chat import Chat
from sapwood.chat.builtin import NAMES, SUFFIXES
from sapwood.chat.doctor.comparing import Pair, Rendering, Source, findings_side_by_side, rendering, side_by_side, source_of
from sapwood.chat.doctor.comparison_page import comparison_page
from sapwood.chat.doctor.diagnosis import PROBE, examine
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.doctor.survey import Survey
from sapwood.data.messages import tools_of
from sapwood.errors import ConfigError, DataError, storage
from sapwood.recipes.examine import examine_rows, open_chat, open_rows, picked
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.screen import Screen
from sapwood.records import Conversation
from sapwood.run import write_atomic

SCHEMA = 1


@dataclass(frozen=True)
class Side:
    """One model or template."""

    name: str
    chat: Chat
    rendering: Rendering
    findings: list[Finding]
    source: Source
    survey: Survey | None = None


@dataclass(frozen=True)
class Comparison:
    """One or two sides, and the conversation that was rendered."""

    sides: list[Side]
    conversation: Conversation
    where: str
    pairs: list[Pair] = field(default_factory=list)
    """The two renderings side by side; empty for one side."""

    def record(self) -> dict[str, Any]:
        """For machines; the keys are described in docs/doctor.md and stay."""
        found: dict[str, Any] = {"schema": SCHEMA, "conversation": self.where, "templates": [_record(side) for side in self.sides]}
        if len(self.sides) == 2:
            left, right = self.sides
            found["side_by_side"] = [{**asdict(pair), "same": pair.same} for pair in self.pairs]
            found["findings"] = [
                {"kind": kind, "same": one == other, "left": [f.sentence for f in one], "right": [f.sentence for f in other]}
                for kind, one, other in findings_side_by_side(left.findings, right.findings)
            ]
        return found


def _record(side: Side) -> dict[str, Any]:
    survey = side.survey
    return {
        "name": side.name,
        "source": asdict(side.source),
        "tokens": side.rendering.tokens,
        "text": side.rendering.text,
        "problem": side.rendering.problem,
        "findings": [asdict(finding) for finding in side.findings],
        "data": None if survey is None else {"taken": survey.taken, "refused": survey.refused, "tokens": asdict(survey.tokens)},
    }


def _open_template(name: str, tokenizer: str, screen: Screen) -> Chat:
    """A model's chat by its name or folder; or a template by name or file, with the tokenizer of the model `tokenizer`."""
    return open_chat(tokenizer, name, screen) if is_template(name) else open_chat(name, None, screen)


def is_template(name: str) -> bool:
    """Whether a template is meant, by name or file, and not a model."""
    path = Path(name)
    return name in NAMES or (path.suffix in SUFFIXES and not path.is_dir()) or path.is_file()


def compare_templates(
    names: Sequence[str],
    *,
    tokenizer: str,
    conversation: str | None,
    tools: Path | None,
    data: Sequence[str],
    rows: DataConfig,
    screen: Screen,
) -> Comparison:
    """Render one conversation through one or two templates; with `data`, count every row of the files as well.

    `conversation` is a file, whose first row is taken, or file:line; without it a probe that has one of everything.
    Raises the errors of reading and loading; a template that refuses the conversation is told, not raised.
    """
    if not 1 <= len(names) <= 2:
        raise ConfigError(f"{len(names)} names are given; compare two models or templates: sapwood template A B (or look at one: A).")
    chosen = _conversation(conversation, rows, screen) if conversation else PROBE
    if tools is not None:
        chosen = replace(chosen, tools=tools_of(tools))
    sides = []
    for name in names:
        chat = _open_template(name, tokenizer, screen)
        survey = None
        if data:
            with screen.progress(name) as advance:
                opened = open_rows(data, rows, advance)
                survey = examine_rows(chat, opened, total=opened.total, advance=advance)
        short = Path(name).name or name
        shown = short if [Path(other).name for other in names].count(short) == 1 else name
        sides.append(Side(shown, chat, rendering(shown, chat, chosen), examine(chat), source_of(chat), survey))
    pairs = side_by_side(sides[0].rendering, sides[1].rendering, chosen.messages) if len(sides) == 2 else []
    return Comparison(sides, chosen, chosen.where if chosen.source else "a probe of our own", pairs)


def _conversation(named: str, config: DataConfig, screen: Screen) -> Conversation:
    """The row at file:line, or the first of a file."""
    file, colon, line = named.rpartition(":")
    is_place = bool(colon) and line.isdigit() and not Path(named).exists()
    with screen.progress("reading") as advance:
        rows = open_rows([file if is_place else named], config, advance)
    chosen = picked(rows, places=[named]) if is_place else picked(rows, first=1)
    found = [record for record in chosen if isinstance(record, Conversation)]
    if not found:
        raise DataError(f"{named}: no row of it is a conversation. Name another file, or a row as file:line.")
    return found[0]


def write_comparison(path: Path, found: Comparison) -> None:
    """Write the comparison as one HTML file. Raises `StorageError` where it cannot be written."""
    page = comparison_page(
        [(side.name, side.rendering, side.findings, side.source) for side in found.sides], found.pairs, found.conversation, found.where
    )
    with storage(path, "write the page"):
        write_atomic(path, page.encode("utf-8", "replace"))
