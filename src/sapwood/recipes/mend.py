"""`sapwood doctor FILES --fix OUT.jsonl`: a mended copy of the rows, a list of every change, and the rows that are no use.

In: rows, and the chat that must be able to train them. Out: `OUT.jsonl`, `OUT.changes.jsonl` (each mend, each removal, and
what was left alone for a person to decide), `OUT.refused.jsonl` (each row left out, with the reason). Rows in = written +
removed + refused. Originals are never touched, and nothing that exists is written over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from sapwood.chat import Chat
from sapwood.chat.doctor.repeats import digest_of
from sapwood.chat.doctor.row_checks import ROW_KINDS, RowNote, row_notes
from sapwood.chat.doctor.survey import split_refusal
from sapwood.chat.other_rows import document_example
from sapwood.data import Refusal
from sapwood.data.mending import mended
from sapwood.data.messages import Notes
from sapwood.data.preparing import not_trained
from sapwood.errors import ConfigError, DataError, SapwoodError, storage
from sapwood.recipes.examine import Rows
from sapwood.recipes.screen import Advance
from sapwood.records import Conversation, Document, Preference, Source


@dataclass
class Mending:
    """What became of the rows, and where it stands."""

    out: Path
    rows_in: int = 0
    written: int = 0
    changed: int = 0
    removed: int = 0
    refused: int = 0

    @property
    def changes(self) -> Path:
        """The list of changes."""
        return self.out.with_suffix(".changes.jsonl")

    @property
    def refusals(self) -> Path:
        """The rows that could not be mended."""
        return self.out.with_suffix(".refused.jsonl")

    def lines_for_people(self) -> list[str]:
        """The counts, and the files."""
        return [
            f"{self.rows_in:,} rows in = {self.written:,} written ({self.changed:,} of them mended) + {self.removed:,} duplicates removed "
            f"+ {self.refused:,} refused",
            f"mended rows   {self.out}",
            f"each change   {self.changes}",
            f"refused rows  {self.refusals}",
        ]

    def record(self) -> dict[str, Any]:
        """For machines."""
        counts = {name: getattr(self, name) for name in ("rows_in", "written", "changed", "removed", "refused")}
        return {**counts, "out": str(self.out), "changes": str(self.changes), "refusals": str(self.refusals)}


def check_target(out: Path) -> None:
    """Raise `ConfigError` unless `out` and its companions can be written without writing anything over."""
    if out.suffix != ".jsonl":
        raise ConfigError(f"--fix {out}: a mended copy is JSON Lines, so let its name end in .jsonl.")
    if not out.parent.is_dir():
        raise ConfigError(f"--fix {out}: there is no folder {out.parent}. Make it, or name another file.")
    target = Mending(out)
    for path in (target.out, target.changes, target.refusals):
        if path.exists():
            raise ConfigError(f"--fix {out}: {path} exists, and nothing is written over. Choose another name, or move it away.")


def mend_rows(rows: Rows, chat: Chat, out: Path, advance: Advance | None = None) -> Mending:
    """Write the three files, whole or not at all.

    Raises `ConfigError` where a file exists or the rows come from no file, `DataError` where no row is left, `StorageError`
    where the disk refuses.
    """
    check_target(out)
    if rows.scan is None:
        raise ConfigError("--fix mends files. The rows of a built-in task are right as they are.")
    result = Mending(out)
    with _three_files(result) as (copy, changes, refusals):
        work = _Work(rows, chat, result, copy, changes, refusals)
        for form, source, value in rows.scan.recipe.rows():
            work.row(form, source, value)
            if advance is not None and result.rows_in % 64 == 0:
                advance(result.rows_in, rows.total, "mended")
        assert result.rows_in == result.written + result.removed + result.refused, "the mended rows do not add up"
        if not result.written:
            raise DataError(f"{out}: none of the {result.rows_in:,} rows can be trained, mended or not, so nothing was written.")
    return result


class _Work:
    """One row after the other into the three files."""

    def __init__(self, rows: Rows, chat: Chat, result: Mending, copy: BinaryIO, changes: BinaryIO, refusals: BinaryIO) -> None:
        assert rows.scan is not None
        self._recipe, self._chat, self._result = rows.scan.recipe, chat, result
        self._copy, self._changes, self._refusals = copy, changes, refusals
        self._seen: dict[int, Source] = {}

    def row(self, form: Any, source: Source, value: Any) -> None:
        """Mend, check and write one row."""
        self._result.rows_in += 1
        if isinstance(value, Refusal):
            self._refuse(source, value.reason, value.fix, None)
            return
        copy, changes = mended(value, form, self._recipe.columns)
        record = self._recipe.record(form, source, copy, Notes())
        if isinstance(record, Refusal):
            self._refuse(source, record.reason, record.fix, value)
            return
        if isinstance(record, Preference):
            refusal = not_trained(record)
            self._refuse(source, refusal.reason, refusal.fix, value)
            return
        try:
            notes = self._notes(record)
        except SapwoodError as error:
            self._refuse(source, *split_refusal(record.where, str(error)), value)
            return
        first = self._seen.setdefault(digest_of(record), source)
        if first != source:
            self._result.removed += 1
            self._list(source, {"action": "removed", "what": f"duplicate: the same as {first}"})
            return
        try:
            line = orjson.dumps(copy) + b"\n"
        except TypeError as error:
            del self._seen[digest_of(record)]
            self._refuse(source, f"cannot be written as JSON: {error}", "leave out that column", None)
            return
        for change in changes:
            self._list(source, {"action": "mended", **asdict(change)})
        for note in notes:
            what = f"{note.kind}: {note.sentence}"
            self._list(source, {"action": "left alone", "what": what, "next_step": ROW_KINDS[note.kind].next_step})
        self._copy.write(line)
        self._result.written += 1
        self._result.changed += bool(changes)

    def _notes(self, record: Conversation | Document) -> list[RowNote]:
        """What a person would have to decide. Raises where the row cannot be trained."""
        if isinstance(record, Document):
            document_example(self._chat, record)
            return []
        return list(row_notes(self._chat, record, self._chat.turns(record), self._chat.context_length))

    def _refuse(self, source: Source, reason: str, fix: str, row: Any) -> None:
        self._result.refused += 1
        content = {"file": source.file, "line": source.line, "reason": reason, "fix": fix, "row": row}
        self._refusals.write(orjson.dumps(content, default=str) + b"\n")

    def _list(self, source: Source, content: dict[str, Any]) -> None:
        self._changes.write(orjson.dumps({"file": source.file, "line": source.line, **content}, default=str) + b"\n")


@contextlib.contextmanager
def _three_files(result: Mending) -> Iterator[tuple[BinaryIO, BinaryIO, BinaryIO]]:
    """The files under other names, moved to their own when all is written; removed if anything goes wrong."""
    targets = (result.out, result.changes, result.refusals)
    parts = [path.with_name(path.name + ".part") for path in targets]
    try:
        with storage(result.out, "write"), contextlib.ExitStack() as stack:
            first, second, third = (stack.enter_context(part.open("wb")) for part in parts)
            yield first, second, third
        check_target(result.out)
        for part, path in zip(parts, targets, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
