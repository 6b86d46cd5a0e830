"""Files → conversations. Every row comes out: as a conversation, or as a refusal with file, line, reason and fix.

In: paths of JSON Lines (or `.json` arrays). Out: a `Reading`. Nothing is repaired by guessing and nothing is left out
in silence. Left out on purpose: streaming (the conversations are held in memory) and downloads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapwood.config import did_you_mean
from sapwood.data.columns import Only, names_in
from sapwood.data.formats import FORMATS, Columns, Format, Tally, asked_format, check_columns, to_record
from sapwood.data.lines import MAX_LINE_BYTES, Parsed, parsed_rows
from sapwood.data.messages import Notes
from sapwood.data.refusal import Refusal, Refused
from sapwood.errors import DataError
from sapwood.records import Conversation, Document, Preference, Record, Source


@dataclass(frozen=True, slots=True)
class Reading:
    """All rows of the given files: `total` is what became conversations, documents and preferences, was refused, or left out."""

    conversations: list[Conversation]
    refused: list[Refusal]
    total: int
    """Rows seen; blank lines are no rows."""
    formats: Mapping[str, Format]
    """The format of each file."""
    guess: str
    """One sentence a file: what was taken to be its format, and how many rows agree."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What was read and has no use, or looks wrong, with the number of times."""
    note_places: Mapping[str, Source] = field(default_factory=dict)
    """The first row of each note."""
    documents: list[Document] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    left_out: int = 0
    """Rows that `only` does not name; they are counted, and never refused."""

    @property
    def format(self) -> str:
        """The formats of all files, each once."""
        return ", ".join(dict.fromkeys(self.formats.values()))

    def lines_for_people(self) -> list[str]:
        """The guess and the notes, one line each."""
        return [
            *self.guess.split("\n"),
            *(f"{count} × {note} (first: {self.note_places[note]})" for note, count in sorted(self.notes.items())),
        ]


def read(
    files: Sequence[Path | str],
    *,
    format: Format | None = None,  # noqa: A002 - the word that users know
    columns: Columns | None = None,
    only: Only | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Reading:
    """Read conversations from JSON Lines files.

    `format` is found from all rows of each file unless given; with it given, rows of another format are refused.
    `columns` maps fields of the format to the file's own column names (`{"prompt": "question"}`); see `columns_from`.
    `only` leaves rows out by the values of their columns.
    Raises `DataError` or `StorageError` where a file as a whole cannot be read: missing, empty, a folder, compressed,
    not text, of two formats, or without any row that could be read.
    """
    if format is not None and format not in FORMATS:
        raise DataError(f"format: {format!r} is not known.{did_you_mean(format, list(FORMATS))} Known: {', '.join(FORMATS)}.")
    renamed = dict(columns or {})
    format = asked_format(format, renamed)  # noqa: A001 - the word that users know
    check_columns(renamed, format)
    paths = _distinct([Path(file) for file in ([files] if isinstance(files, str | Path) else files)])
    records: list[Record] = []
    left_out = 0
    refused: list[Refusal] = []
    formats: dict[str, Format] = {}
    sentences: list[str] = []
    notes, places = Notes(), dict[str, Source]()
    for path in paths:
        rows = list(parsed_rows(path, max_line_bytes))
        tally = _tally(path, rows, renamed)
        formats[str(path)] = format or tally.decide()
        sentences.append(tally.sentence(formats[str(path)], given=format is not None))
        for source, value in rows:
            if only is not None and not isinstance(value, Refusal) and not only.takes(value):
                left_out += 1
                continue
            taken = value if isinstance(value, Refusal) else _convert(value, formats[str(path)], renamed, source, notes)
            if isinstance(taken, Refusal):
                refused.append(taken)
            else:
                records.append(taken)
            if len(notes) > len(places):
                places.update(dict.fromkeys(notes.keys() - places.keys(), source))
    return Reading(
        [record for record in records if isinstance(record, Conversation)],
        refused,
        len(records) + len(refused) + left_out,
        formats,
        "\n".join(sentences),
        dict(notes),
        places,
        [record for record in records if isinstance(record, Document)],
        [record for record in records if isinstance(record, Preference)],
        left_out,
    )


def _convert(row: Mapping[str, Any], form: Format, columns: Columns, source: Source, notes: Notes) -> Record | Refusal:
    try:
        return to_record(row, form, columns, source, notes)
    except Refused as why:
        return Refusal(source, why.reason, why.fix)


def _distinct(paths: list[Path]) -> list[Path]:
    if not paths:
        raise DataError("No files to read. Name at least one JSON Lines file.")
    seen: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise DataError(f"{path}: given twice (it is the same file as {seen[real]}), so its rows would count twice. Name it once.")
        seen[real] = path
    return paths


def _tally(path: Path, rows: list[Parsed], columns: Columns) -> Tally:
    """What the rows look like. Raises `DataError` if there is no row, or none that could be read as an object."""
    tally = Tally(str(path), columns)
    names: set[str] = set()
    first: Any = None
    for source, value in rows:
        if isinstance(value, Refusal):
            first = first or value
        else:
            tally.add(source, value)
            if columns:
                names.update(value)
    if not rows:
        raise DataError(f"{path}: no rows, only blank lines. Write one JSON object a line into it, or choose another file.")
    if not tally.rows:
        array = "" if path.suffix.lower() == ".json" else " If it is one JSON array, let its name end in .json."
        raise DataError(f"{path}: none of its {len(rows)} rows could be read; the first: {first}. Expected one JSON object a line.{array}")
    for column in (name for value in columns.values() for name in names_in(value)):
        if column not in names:
            known = sorted(names)
            raise DataError(
                f"{path}: no row has the column {column!r}.{did_you_mean(column, known)} Columns there: {', '.join(known[:20])}."
            )
    return tally
