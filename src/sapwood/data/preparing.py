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
from sapwood.chat.many import examples
from sapwood.chat.other_rows import document_example
from sapwood.data.columns import Columns
from sapwood.data.formats import Format
from sapwood.data.messages import Notes
from sapwood.data.packed import Chunk, ChunkMaker
from sapwood.data.reading import Recipe
from sapwood.data.refusal import Refusal
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Document, Example, Preference, Source

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
        conversations: list[Conversation] = []
        for line in batch:
            form, file, number, value = orjson.loads(line)
            source = Source(file, number)
            taken = Refusal(source, *value) if form is None else recipe.record(form, source, value, notes)
            if isinstance(taken, Conversation):
                conversations.append(taken)
            elif isinstance(taken, Document):
                _add_document(maker, self.chat, taken)
            else:
                maker.refuse(taken if isinstance(taken, Refusal) else not_trained(taken))
        for conversation, made in zip(conversations, examples(self.chat, conversations), strict=True):
            if isinstance(made, Exception):
                maker.refuse(refusal_of(conversation, str(made)))
            else:
                maker.add(as_trained(conversation, made), made)
        return maker.chunk()


def _add_document(maker: ChunkMaker, chat: Chat, document: Document) -> None:
    try:
        maker.add(document, document_example(chat, document))
    except (DataError, TemplateError) as error:
        maker.refuse(refusal_of(document, str(error)))


def as_trained(conversation: Conversation, example: Example) -> Conversation:
    """The conversation with the template arguments that its example needed: what training needed, evaluation must send too."""
    arguments = example.meta.get("template_arguments")
    return dataclasses.replace(conversation, template_arguments=arguments) if arguments else conversation


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
