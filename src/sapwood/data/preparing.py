"""Parsed rows → chunks of prepared ones: the work of one process, here or in a worker (see `workers`).

In: rows as JSON, each `[format, file, line, value]`, or `[null, file, line, [reason, fix]]` for one that could not be parsed.
Out: a `Chunk`. A row that cannot be trained exactly is refused with its place; nothing else happens to a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from sapwood.chat import Chat
from sapwood.chat.other_rows import example_of
from sapwood.data.columns import Columns
from sapwood.data.formats import Format
from sapwood.data.messages import Notes
from sapwood.data.packed import Chunk, ChunkMaker
from sapwood.data.reading import Recipe
from sapwood.data.refusal import Refusal
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Document, Example, Preference, Record, Source

CHUNK_ROWS = 256
CHUNK_BYTES = 1 << 20

Batch = list[bytes]
"""Rows as JSON."""


@dataclass(frozen=True, slots=True)
class Preparer:
    """A chat and what else a row's preparation depends on."""

    chat: Chat
    columns: Columns
    cluster: str | None
    allow_urls: bool = False

    def chunk(self, batch: Batch) -> Chunk:
        """The rows of a batch, prepared. Raises `DataError` naming the row where preparing fails in a way that nobody foresaw."""
        try:
            return self._chunk(batch)
        except Exception as error:  # whatever it is: the row must be named, not the place in the code
            for line in batch if len(batch) > 1 else ():
                self.chunk([line])  # raises at the row that is to blame
            _, file, number, _ = orjson.loads(batch[0])
            raise DataError(
                f"{file}:{number}: preparing this row failed with {type(error).__name__}: {error}. This is a defect of Sapwood's, not of "
                "your data; please report it with the row. To go on without it, leave the row out."
            ) from error

    def _chunk(self, batch: Batch) -> Chunk:
        maker = ChunkMaker(self.cluster)
        recipe = Recipe({}, self.columns, allow_urls=self.allow_urls)
        notes = Notes()
        for line in batch:
            form, file, number, value = orjson.loads(line)
            source = Source(file, number)
            taken = Refusal(source, *value) if form is None else recipe.record(form, source, value, notes)
            made = taken if isinstance(taken, Refusal) else made_of(self.chat, taken)
            if isinstance(made, Refusal):
                maker.refuse(made)
            else:
                maker.add(*made)
        return maker.chunk()


def made_of(chat: Chat, record: Record) -> tuple[Conversation | Document, Example] | Refusal:
    """The record as it is trained and the example made of it, or why there is none.

    A conversation gains the template arguments that its example needed: what training needed, evaluation must send too.
    """
    if isinstance(record, Preference):
        return not_trained(record)
    try:
        example = example_of(chat, record)
    except (DataError, TemplateError) as error:
        return refusal_of(record, str(error))
    arguments = example.meta.get("template_arguments")
    if arguments and isinstance(record, Conversation):
        record = dataclasses.replace(record, template_arguments=arguments)
    return record, example


def refusal_of(conversation: Conversation | Document, text: str) -> Refusal:
    """The chat's paragraph, "place: what, what to do", as the ledger's reason and fix."""
    reason = text.removeprefix(conversation.where).lstrip(", :")
    head, _, fix = reason.partition(". ")
    return Refusal(conversation.source, head, fix)


def not_trained(record: Preference) -> Refusal:
    """Why a preference is not trained on here."""
    why = "a preference: two answers to one prompt are no conversation to imitate"
    return Refusal(record.source, why, "give rows with one answer each")


def batches(rows: Iterable[tuple[Format, Source, Any]]) -> Iterator[Batch]:
    """Rows as JSON, so many at a time that a batch is worth sending and does not fill the memory."""
    batch: Batch = []
    size = 0
    for form, source, value in rows:
        content = [None, source.file, source.line, [value.reason, value.fix]] if isinstance(value, Refusal) else None
        line = orjson.dumps(content or [form, source.file, source.line, value], default=str)
        batch.append(line)
        size += len(line)
        if len(batch) == CHUNK_ROWS or size > CHUNK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
