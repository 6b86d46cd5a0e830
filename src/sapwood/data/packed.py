"""Prepared rows in files: written in chunks as they come, read one by one when they are asked for.

    tokens.bin     int32, the tokens of all rows; of a row only what its example's row before does not begin with
    rows.bin       `ROW`, one record a row
    entries.bin    `ENTRY`, one record an example: where its rows, tokens and text lie, its place, its facts, its split keys
    text.bin       one JSON text an example: its conversation (see `stored`)
    refused.jsonl  one line a refused row

So memory stays where it is however long the file. In: records with their examples. Out: a folder, and from it lazy sequences.
Left out on purpose: memory maps, whose pages count as the process's own.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from sapwood.data.refusal import Refusal
from sapwood.data.splitting import label_key, prompt_key
from sapwood.data.stored import read_back, written
from sapwood.records import FACT, Conversation, Document, Example, Row, Source, fact_of
from sapwood.records.facts import digest_of

ROW = np.dtype([("kept", "<u4"), ("prompt", "<u4"), ("completion", "<u4"), ("weight", "<f4")])
ENTRY = np.dtype(
    [
        ("token", "<i8"),
        ("tokens", "<u4"),
        ("row", "<i8"),
        ("rows", "<u4"),  # 0: not stored, made anew from the conversation (rows with media)
        ("byte", "<i8"),
        ("bytes", "<u4"),
        ("file", "<i4"),  # -1: made in code
        ("line", "<i8"),
        ("protected", "<i4"),
        ("needed", "?"),  # whether the template arguments are more than the conversation gave
        ("labelled", "?"),
        ("key", "V16"),
        ("label", "V16"),
        ("fact", FACT),
    ]
)
PARTS = ("tokens.bin", "rows.bin", "entries.bin", "text.bin", "refused.jsonl")
_BLOCK = 1 << 15

Made = Callable[[Conversation | Document], Example]
"""Makes an example anew."""


@dataclass(slots=True)
class Chunk:
    """The bytes of some examples and refusals, with positions counted from the chunk's own beginning."""

    parts: dict[str, bytes]
    files: list[str]
    """Names of the files that its entries speak of by number."""
    examples: int
    refused: int


@dataclass
class ChunkMaker:
    """Collects examples and refusals. `cluster` is the column whose equal values keep rows together."""

    cluster: str | None = None
    _tokens: list[NDArray[np.int32]] = field(default_factory=list)
    _rows: list[tuple[int, int, int, float]] = field(default_factory=list)
    _entries: list[tuple[Any, ...]] = field(default_factory=list)
    _texts: list[bytes] = field(default_factory=list)
    _refused: list[bytes] = field(default_factory=list)
    _files: dict[str, int] = field(default_factory=dict)
    _token: int = 0
    _byte: int = 0

    def add(self, record: Conversation | Document, example: Example) -> None:
        """An example and the record that it was made of."""
        rows, tokens, fact = _told_apart(example)
        text = written(record)
        size = sum(map(len, tokens))
        source = record.source
        label = record.meta.get(self.cluster) if self.cluster is not None else None
        place = (self._files.setdefault(source.file, len(self._files)), source.line) if source is not None else (-1, 0)
        self._entries.append(
            (
                *(self._token, size, len(self._rows), len(rows), self._byte, len(text), *place),
                *(int(example.meta.get("protected_specials", 0)), "template_arguments" in example.meta, label is not None),
                prompt_key(record),
                b"" if label is None else label_key(label),
                fact,
            )
        )
        self._rows += rows
        self._tokens += tokens
        self._texts.append(text)
        self._token += size
        self._byte += len(text)

    def refuse(self, refusal: Refusal) -> None:
        """A row that is not prepared."""
        source = refusal.source
        place = [source.file, source.line] if source is not None else [None, 0]
        self._refused.append(orjson.dumps([*place, refusal.reason, refusal.fix]) + b"\n")

    def chunk(self) -> Chunk:
        """All of it as bytes."""
        parts = {
            "tokens.bin": np.concatenate(self._tokens).tobytes() if self._tokens else b"",
            "rows.bin": np.array(self._rows, dtype=ROW).tobytes(),
            "entries.bin": np.array(self._entries, dtype=ENTRY).tobytes(),
            "text.bin": b"".join(self._texts),
            "refused.jsonl": b"".join(self._refused),
        }
        return Chunk(parts, list(self._files), len(self._entries), len(self._refused))


def _told_apart(example: Example) -> tuple[list[tuple[int, int, int, float]], list[NDArray[np.int32]], tuple[Any, ...]]:
    """Rows, for each the tokens behind what it shares with the row before, and the example's facts.

    No rows where files cannot hold them. The facts are those of `fact_of`, found in fewer steps where a row has one weight.
    """
    rows, tokens = [], []
    before = np.empty(0, dtype=np.int32)
    trained, largest, total = 0, 0, 0.0
    for row in example.rows:
        weight, prompt, completion = float(row.weights_T[0]), len(row.prompt_T), len(row.completion_T)
        if row.media or (row.weights_T != weight).any():
            return [], [], fact_of(example)
        whole = np.concatenate([row.prompt_T, row.completion_T], dtype=np.int32, casting="unsafe")
        size = min(len(before), len(whole))
        parted = before[:size] != whole[:size]
        kept = int(parted.argmax()) if parted.any() else size
        rows.append((kept, prompt, completion, weight))
        tokens.append(whole[kept:])
        before = whole
        trained += completion if weight > 0 else 0
        largest = max(largest, int(whole.max()))
        total += weight * completion
    lengths = [prompt + completion for _, prompt, completion, _ in rows]
    return rows, tokens, (sum(lengths), max(lengths), trained, largest, total, digest_of(example))


class PackedWriter:
    """Appends chunks to the files of a folder. Use as a context; the files are whole when it ends."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, BinaryIO] = {}
        self._sums = {part: hashlib.sha256() for part in PARTS}
        self._sizes = dict.fromkeys(PARTS, 0)
        self.files: dict[str, int] = {}
        self.examples = self.refused = 0
        try:
            for part in PARTS:
                self._files[part] = (folder / part).open("wb")
        except OSError:
            self.close()
            raise

    def append(self, chunk: Chunk) -> None:
        """Write a chunk behind those that are there."""
        entries = np.frombuffer(chunk.parts["entries.bin"], dtype=ENTRY).copy()
        entries["token"] += self._sizes["tokens.bin"] // 4
        entries["row"] += self._sizes["rows.bin"] // ROW.itemsize
        entries["byte"] += self._sizes["text.bin"]
        numbers = [self.files.setdefault(name, len(self.files)) for name in chunk.files]
        entries["file"] = np.array([*numbers, -1], dtype=np.int32)[entries["file"]]  # -1, made in code, stays -1
        for part in PARTS:
            data = entries.tobytes() if part == "entries.bin" else chunk.parts[part]
            self._files[part].write(data)
            self._sums[part].update(data)
            self._sizes[part] += len(data)
        self.examples += chunk.examples
        self.refused += chunk.refused

    def sums(self) -> dict[str, list[Any]]:
        """Size and sha256 of each file so far."""
        return {part: [self._sizes[part], self._sums[part].hexdigest()] for part in PARTS}

    def close(self) -> None:
        """Close the files. Raises `OSError` where the last bytes found no room."""
        for file in self._files.values():
            file.close()


class Packed:
    """A folder of prepared rows, opened for reading."""

    def __init__(self, folder: Path, files: tuple[str, ...], make: Made) -> None:
        """`files` by number; `make` makes the examples whose rows files cannot hold."""
        self.folder, self.files = folder, files
        self._make = make
        self._lock = threading.Lock()
        self._open = {part: (folder / part).open("rb", buffering=0) for part in PARTS[:4]}
        weakref.finalize(self, _close, list(self._open.values()))
        self.count = (folder / "entries.bin").stat().st_size // ENTRY.itemsize

    def __len__(self) -> int:
        return self.count

    def record(self, index: int) -> Conversation | Document:
        """The conversation or document of an example."""
        return self._record(self._entry(index))

    def example(self, index: int) -> Example:
        """The example, made of what is stored."""
        entry = self._entry(index)
        record = self._record(entry)
        if not entry["rows"]:
            return self._make(record)
        meta = dict(record.meta)
        if entry["protected"]:
            meta["protected_specials"] = int(entry["protected"])
        if entry["needed"] and isinstance(record, Conversation):
            meta["template_arguments"] = dict(record.template_arguments)
        return Example(self._rows(entry), record.source, meta)

    def columns(self, *names: str) -> tuple[NDArray[Any], ...]:
        """Columns of `ENTRY`, of all examples, without holding the others."""
        found: list[NDArray[Any]] = [np.empty(self.count, dtype=ENTRY[name]) for name in names]
        for first in range(0, self.count, _BLOCK):
            block = np.frombuffer(
                self._read("entries.bin", first * ENTRY.itemsize, min(_BLOCK, self.count - first) * ENTRY.itemsize), dtype=ENTRY
            )
            for name, column in zip(names, found, strict=True):
                column[first : first + len(block)] = block[name]
        return tuple(found)

    def refusals(self) -> Iterator[Refusal]:
        """Every refused row, in order."""
        with (self.folder / "refused.jsonl").open("rb") as lines:
            for line in lines:
                file, number, reason, fix = orjson.loads(line)
                yield Refusal(None if file is None else Source(file, number), reason, fix)

    def _rows(self, entry: Any) -> tuple[Row, ...]:
        table = np.frombuffer(self._read("rows.bin", int(entry["row"]) * ROW.itemsize, int(entry["rows"]) * ROW.itemsize), dtype=ROW)
        new_T = np.frombuffer(self._read("tokens.bin", int(entry["token"]) * 4, int(entry["tokens"]) * 4), dtype="<i4").astype(np.int64)
        rows, begin, before = [], 0, new_T[:0]
        for kept, prompt, completion, weight in table.tolist():
            end = begin + prompt + completion - kept
            whole = np.concatenate([before[:kept], new_T[begin:end]]) if kept else new_T[begin:end]
            rows.append(Row(whole[:prompt], whole[prompt:], np.full(completion, weight, dtype=np.float32)))
            begin, before = end, whole
        return tuple(rows)

    def _record(self, entry: Any) -> Conversation | Document:
        number = int(entry["file"])
        source = None if number < 0 else Source(self.files[number], int(entry["line"]))
        return read_back(self._read("text.bin", int(entry["byte"]), int(entry["bytes"])), source)

    def _entry(self, index: int) -> Any:
        return np.frombuffer(self._read("entries.bin", index * ENTRY.itemsize, ENTRY.itemsize), dtype=ENTRY)[0]

    def _read(self, part: str, begin: int, size: int) -> bytes:
        with self._lock:
            file = self._open[part]
            file.seek(begin)
            found = file.read(size)
        assert found is not None
        assert len(found) == size, f"{self.folder / part} ends before {begin + size}"
        return found


def _close(files: list[Any]) -> None:
    for file in files:
        file.close()
