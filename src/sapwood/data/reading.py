"""Files → conversations. Every row comes out: as a record, or as a refusal with file, line, reason and fix.

In: files, folders, patterns, names of data sets. Out: a `Reading` that holds the records (`read`), or a `Scan` that knows all
about them and reads them again when they are wanted (`scan`), so that memory does not grow with the file. Nothing is
repaired by guessing and nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapwood.config import did_you_mean
from sapwood.data.columns import Only, names_in
from sapwood.data.formats import FORMATS, Columns, Format, Tally, asked_format, check_columns, fitting, to_record
from sapwood.data.lines import MAX_LINE_BYTES, parsed_rows
from sapwood.data.locations import Part, locate
from sapwood.data.messages import Notes
from sapwood.data.refusal import Refusal, Refusals, Refused
from sapwood.errors import DataError
from sapwood.records import Conversation, Document, Preference, Record, Source

Seen = Callable[[Path, int], None]
REPORT_ROWS = 4096


def _unheard(path: Path, rows: int) -> None:
    pass


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
        return _lines(self.guess, self.notes, self.note_places)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the rows of files become records: all that another process needs to know of it."""

    formats: Mapping[str, Format]
    """The format of each file, in the order of the files."""
    columns: Columns = field(default_factory=dict)
    only: Only | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    allow_urls: bool = False
    """Whether images and sounds in the web are fetched."""

    def rows(self) -> Iterator[tuple[Format, Source, Any]]:
        """Every row that `only` takes: its format, its place and the parsed value; a `Refusal` where it cannot be parsed."""
        for file, form in self.formats.items():
            for source, value in parsed_rows(Path(file), self.max_line_bytes):
                if self.only is None or isinstance(value, Refusal) or self.only.takes(value):
                    yield form, source, value

    def record(self, form: Format, source: Source, value: Any, notes: Notes) -> Record | Refusal:
        """One parsed row as a record, or why it is none."""
        if isinstance(value, Refusal):
            return value
        try:
            return to_record(value, form, self.columns, source, notes, allow_urls=self.allow_urls)
        except Refused as why:
            return Refusal(source, why.reason, why.fix)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a pass over all rows found; the rows themselves are read again by `recipe`."""

    recipe: Recipe
    total: int
    refused: Refusals
    guess: str
    notes: Mapping[str, int]
    note_places: Mapping[str, Source]
    left_out: int
    parts: tuple[Part, ...] = ()
    """The files by the names and weights that a person gave."""

    def lines_for_people(self) -> list[str]:
        """The guess and the notes, one line each."""
        return _lines(self.guess, self.notes, self.note_places)


def read(
    files: Sequence[Path | str],
    *,
    format: Format | None = None,  # noqa: A002 - the word that users know
    columns: Columns | None = None,
    only: Only | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    allow_urls: bool = False,
) -> Reading:
    """Read records into memory.

    `format` is found from all rows of each file unless given; with it given, rows of another format are refused.
    `columns` maps fields of the format to the file's own column names (`{"prompt": "question"}`); see `columns_from`.
    `only` leaves rows out by the values of their columns. `allow_urls` has images and sounds in the web fetched.
    Raises `DataError` or `StorageError` where a file as a whole cannot be read: missing, empty, a folder,
    not text, of two formats, or without any row that could be read.
    """
    records: list[Record] = []
    found = _scan(files, format, columns, only, max_line_bytes, records, Refusals(), allow_urls)
    return Reading(
        [record for record in records if isinstance(record, Conversation)],
        found.refused.kept,
        found.total,
        found.recipe.formats,
        found.guess,
        found.notes,
        found.note_places,
        [record for record in records if isinstance(record, Document)],
        [record for record in records if isinstance(record, Preference)],
        found.left_out,
    )


def scan(
    files: Sequence[Path | str],
    *,
    format: Format | None = None,  # noqa: A002 - the word that users know
    columns: Columns | None = None,
    only: Only | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    allow_urls: bool = False,
    report: Seen = _unheard,
) -> Scan:
    """Check every row as `read` does, and keep none: memory does not grow with the files. Arguments and errors are those of `read`.

    `report` hears now and then how many rows of which file were read.
    """
    return _scan(files, format, columns, only, max_line_bytes, None, Refusals(limit=KEPT), allow_urls, report)


KEPT = 100
"""Refused rows of one reason that a scan keeps whole; the others are counted, and stand in the ledger's file."""


def _scan(
    files: Sequence[Path | str],
    format: Format | None,  # noqa: A002 - the word that users know
    columns: Columns | None,
    only: Only | None,
    max_line_bytes: int,
    records: list[Record] | None,
    refused: Refusals,
    allow_urls: bool,
    report: Seen = _unheard,
) -> Scan:
    if format is not None and format not in FORMATS:
        raise DataError(f"format: {format!r} is not known.{did_you_mean(format, list(FORMATS))} Known: {', '.join(FORMATS)}.")
    renamed = dict(columns or {})
    given = asked_format(format, renamed)
    check_columns(renamed, given)
    formats: dict[str, Format] = {}
    sentences: list[str] = []
    total = left_out = 0
    notes, places = Notes(), dict[str, Source]()
    located = locate(files)
    for path in located.files:
        one = _one_file(path, given, Recipe({}, renamed, only, max_line_bytes, allow_urls), records is not None, refused.limit, report)
        formats[str(path)] = one.form
        sentences.append(one.sentence)
        total, left_out = total + one.rows, left_out + one.left_out
        refused.extend(one.refused)
        notes.update(one.notes)
        places = {**one.places, **places}
        if records is not None:
            records += one.records
    guess = "\n".join([*located.said, *sentences])
    return Scan(Recipe(formats, renamed, only, max_line_bytes, allow_urls), total, refused, guess, dict(notes), places, left_out)


@dataclass(slots=True)
class _File:
    """One file as it is read."""

    form: Format
    refused: Refusals
    firm: bool
    """Whether every row was read as `form`."""
    unread: Refusal | None = None
    """The first row that is none, in whatever format."""
    sentence: str = ""
    rows: int = 0
    left_out: int = 0
    records: list[Record] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    places: dict[str, Source] = field(default_factory=dict)


def _one_file(path: Path, given: Format | None, recipe: Recipe, hold: bool, limit: int | None, report: Seen) -> _File:
    """Tally and convert in one pass, with the format of the first row that has one; again where the tally decides otherwise."""
    tally = Tally(str(path), recipe.columns)
    found = _pass(path, given, recipe, hold, limit, tally, report)
    if not found.rows:
        raise DataError(f"{path}: no rows, only blank lines. Write one JSON object a line into it, or choose another file.")
    if not tally.rows:
        array = "" if path.suffix.lower() == ".json" else " If it is one JSON array, let its name end in .json."
        raise DataError(
            f"{path}: none of its {found.rows} rows could be read; the first: {found.unread}. Expected one JSON object a line.{array}"
        )
    named = [name for value in recipe.columns.values() for name in names_in(value)]
    for column in (*named, *(recipe.only.wanted if recipe.only is not None else ())):
        if column not in tally.names:
            known = sorted(tally.names)
            raise DataError(
                f"{path}: no row has the column {column!r}.{did_you_mean(column, known)} Columns there: {', '.join(known[:20])}."
            )
    try:
        form = given or tally.decide()
    except DataError:
        unread = found.rows - tally.rows
        if unread <= tally.rows:
            raise
        raise DataError(f"{path}: {unread} of {found.rows} rows could not be read; the first: {found.unread}.") from None
    if form != found.form or not found.firm:
        found = _pass(path, form, recipe, hold, limit, None, report)
    found.sentence = tally.sentence(form, given=given is not None)
    return found


def _pass(path: Path, form: Format | None, recipe: Recipe, hold: bool, limit: int | None, tally: Tally | None, report: Seen) -> _File:
    """Read a file as rows of `form`, or of the first format that is met; not `firm` if rows before that were of another."""
    found = _File(form or FORMATS[0], Refusals(limit=limit), firm=True)
    sure, early = form is not None, False
    for source, value in parsed_rows(path, recipe.max_line_bytes, found.notes):
        found.rows += 1
        if not found.rows % REPORT_ROWS:
            report(path, found.rows)
        if isinstance(value, Refusal):
            found.unread = found.unread or value
        else:
            if tally is not None:
                tally.add(source, value)
            if not sure and (formats := fitting(value, recipe.columns)):
                sure, found.firm, found.form = True, not early or formats[0] == found.form, formats[0]
            early = early or not sure
            if recipe.only is not None and not recipe.only.takes(value):
                found.left_out += 1
                continue
        taken = recipe.record(found.form, source, value, found.notes)
        if isinstance(taken, Refusal):
            found.refused.add(taken)
        elif hold:
            found.records.append(taken)
        if len(found.notes) > len(found.places):
            found.places.update(dict.fromkeys(found.notes.keys() - found.places.keys(), source))
    return found


def _lines(guess: str, notes: Mapping[str, int], places: Mapping[str, Source]) -> list[str]:
    return [*guess.split("\n"), *(f"{count} × {note} (first: {places[note]})" for note, count in sorted(notes.items()))]
