"""Tables (CSV, TSV, Parquet, Arrow) → rows of JSON values, each with its place, in little memory.

In: a stream or a path. Out: (place, row or refusal). A CSV row's place is the line where its record begins, a Parquet or
Arrow row's is the record's number. Cells of a CSV are texts. Arrow gives all rows the keys of all others, filled with
null; in tools and tool arguments, where a key that is there means something, such keys are left out and counted.
Left out on purpose: headers that are not there, types guessed from texts, Excel.
"""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
import io
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from sapwood.data.refusal import IN_UTF_8, Refusal
from sapwood.errors import DataError
from sapwood.records import Source

Parsed = tuple[Source, Any]
_BATCH = 512
"""Rows made into Python values at once."""
_SAMPLE = 2**16
"""Bytes from which a table's separator is learned."""
_UNREADABLE = "write the column as text in UTF-8, or as times to the microsecond"
FILLED = "keys of tools and tool arguments that hold null were left out: Arrow gives every row the keys of all others, filled with null"


def separated_rows(path: Path, file: io.BufferedReader[Any], *, tabs: bool, max_bytes: int, notes: Counter[str]) -> Iterator[Parsed]:
    """The rows of a CSV or TSV. Raises `DataError` for a header that names no columns, or one twice, and a quote that never ends."""
    name = str(path)
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    dialect = _learned(file.peek(_SAMPLE)[:_SAMPLE], tabs=tabs)
    if dialect["delimiter"] != ("\t" if tabs else ","):
        notes[f"columns are separated by {dialect['delimiter']!r} (found from the first lines)"] += 1
    lines = _Lines(file, max_bytes)
    reader = csv.reader(lines, strict=True, **dialect)
    header: list[str] | None = None
    while True:
        start = lines.number + 1
        source = Source(name, start)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            lines.too_long = False
            if lines.ended or "field limit" in str(error):
                raise DataError(
                    f"{name}:{start}: a quote that is opened in this record is never closed, so that all lines behind it would be one "
                    "cell. Close it, or double the quotes that stand for themselves."
                ) from None
            for line in range(start, lines.number + 1):
                reason = f"broken CSV: {error}, in the record of lines {start} to {lines.number}"
                place = Source(name, line)
                yield place, Refusal(place, reason, 'put cells with separators, quotes or line ends into quotes, and write " as ""')
            continue
        if cells is None:
            return
        if lines.too_long:
            reason = f"line too long: at most {max_bytes:,} bytes are read"
            yield source, Refusal(source, reason, "check that quotes are closed, and that each record ends with a line break")
            lines.too_long = False
        elif not any(cells) and len(cells) < 2:
            continue  # a blank line
        elif header is None:
            header = _header(cells, f"{name}:{start}", notes)
        else:
            yield source, _row(source, header, cells)


class _Lines:
    """Lines of a table as text, with an upper bound; bytes that are no UTF-8 come as lone surrogates, to be found again."""

    def __init__(self, file: io.BufferedReader[Any], max_bytes: int) -> None:
        self._file, self._max = file, max_bytes
        self.number, self.ended, self.too_long = 0, False, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._max + 1)
        if not line:
            self.ended = True
            raise StopIteration
        if len(line) > self._max:
            self.too_long = True
            while line and not line.endswith(b"\n"):
                line = self._file.readline(2**20)
            line = b"\n"
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        return line.decode("utf-8", "surrogateescape")


def _header(cells: list[str], where: str, notes: Counter[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(name for name in names if name).items() if count > 1]
    if twice:
        raise DataError(f"{where}: the header names the column {twice[0]!r} twice, so one would hide the other. Rename or remove one.")
    if not any(names) or any(not _is_unicode(name) for name in names):
        raise DataError(f"{where}: expected a header with the columns' names in UTF-8, found {cells[:5]!r}. Write one as the first line.")
    for number, name in enumerate(names, 1):
        if not name:
            names[number - 1] = f"column {number}"
            notes[f"a column without a name in the header is called `column {number}`"] += 1
    return names


def _row(source: Source, header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        reason = f"ragged row: {len(cells)} cells, where the header has {len(header)}"
        return Refusal(source, reason, "give every row a cell for each column, and put cells with separators in them into quotes")
    for name, cell in zip(header, cells, strict=True):
        if not cell.isascii() and not _is_unicode(cell):
            return Refusal(source, f"invalid UTF-8: the cell `{name}` holds bytes that are no letters", IN_UTF_8)
    return dict(zip(header, cells, strict=True))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _learned(sample: bytes, *, tabs: bool) -> dict[str, Any]:
    """The separator and quoting with which the first records have equally many cells, and more than one."""
    text = sample.decode("utf-8", "replace").removeprefix("\ufeff")
    whole = len(sample) < _SAMPLE
    plain: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    candidates: list[dict[str, Any]] = [{"delimiter": "\t"}, plain] if tabs else [{"delimiter": mark} for mark in ",;\t|"]
    best, fit = candidates[0], (0.0, 0)
    for candidate in candidates:
        widths: list[int] = []
        broken = 0
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, **candidate)
        while True:
            try:
                widths.append(len(next(reader)))
            except StopIteration:
                break
            except csv.Error:
                broken += 1
        widths = [width for width in (widths if whole else widths[:-1]) if width]
        common, count = Counter(widths).most_common(1)[0] if widths else (0, 0)
        found = (round(count / (len(widths) + broken), 2), common) if common > 1 and widths[0] == common else (0.0, 0)
        if found[0] > fit[0] + 0.2 or (fit == (0.0, 0) and found > fit):
            best, fit = candidate, found
    return best


def parquet_rows(path: Path, notes: Counter[str]) -> Iterator[Parsed]:
    """The rows of a Parquet file, a batch at a time. Raises `DataError` for one that is damaged."""
    import pyarrow as pa  # slow to import, and only wanted for tables
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            yield from _batches(path, table.schema_arrow, table.iter_batches(batch_size=_BATCH), notes)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_damaged(path, "Parquet", error)) from None


def arrow_rows(path: Path, notes: Counter[str], *, stream: bool) -> Iterator[Parsed]:
    """The rows of an Arrow file, or of an Arrow stream saved as one. Raises `DataError` for one that is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            if stream:
                with pa.ipc.open_stream(file) as reader:
                    yield from _batches(path, reader.schema, map(_checked, reader), notes)
                return
            with pa.ipc.open_file(file) as table:
                batches = (_checked(table.get_batch(number)) for number in range(table.num_record_batches))
                yield from _batches(path, table.schema, batches, notes)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_damaged(path, "Arrow", error)) from None


def _checked(batch: Any) -> Any:
    """The batch. Arrow trusts the numbers in its files: one that is wrong would read memory that is not the file's."""
    batch.validate(full=True)
    return batch


def _damaged(path: Path, kind: str, error: Exception) -> str:
    return f"{path}: not a whole {kind} file ({str(error).splitlines()[0][:120]}). Fetch or write it again."


def _batches(path: Path, schema: Any, batches: Iterator[Any], notes: Counter[str]) -> Iterator[Parsed]:
    name, number = str(path), 0
    twice = [column for column, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the schema names the column {twice[0]!r} twice, so one would hide the other. Rename or remove one.")
    labels = _class_labels(schema)
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            for row in _as_python(batch.slice(start, _BATCH)):
                number += 1
                source = Source(name, number)
                yield source, Refusal(source, row, _UNREADABLE) if isinstance(row, str) else _as_json(row, labels, source, notes)


def _as_python(batch: Any) -> list[dict[str, Any] | str]:
    """The rows of a batch; the reason instead of a row with a value that Python cannot hold."""
    try:
        rows: list[dict[str, Any] | str] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, times finer or farther away than Python's
        if batch.num_rows == 1:
            return [f"unreadable value: {str(error).splitlines()[0][:100]}"]
        return [row for place in range(batch.num_rows) for row in _as_python(batch.slice(place, 1))]
    return rows


def _class_labels(schema: Any) -> dict[str, Sequence[str]]:
    """Columns of whole numbers whose names the `datasets` library wrote into the schema's metadata."""
    try:
        features = orjson.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, orjson.JSONDecodeError):
        return {}


def _as_json(row: dict[str, Any], labels: dict[str, Sequence[str]], source: Source, notes: Counter[str]) -> Any:
    try:
        plain = {column: _plain(value) for column, value in row.items()}
    except TypeError as error:
        return Refusal(source, f"no JSON: {error}", "write the column as text, number, list or object")
    for column, names in labels.items():
        number = plain.get(column)
        if isinstance(number, int) and 0 <= number < len(names):
            plain[column] = names[number]
            notes[f"`{column}` holds numbers that stand for names: they are written as names ({', '.join(names[:5])}, …)"] += 1
    filled = False
    for column, value in plain.items():
        kept = _without_filled(value, inside=column == "tools")
        if kept is not value:
            plain[column], filled = kept, True
    if filled:
        notes[FILLED] += 1
    return plain


def _plain(value: Any) -> Any:
    """A value of Arrow as JSON has it: times in ISO 8601, bytes in base64, what is not a number as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) for entry in value):
            return {key: _plain(entry) for key, entry in value}  # a map
        return [_plain(entry) for entry in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal | datetime.timedelta | uuid.UUID):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _without_filled(value: Any, *, inside: bool) -> Any:
    """The value without keys that hold null in tools and in the arguments of calls; the very same object if there are none."""
    if isinstance(value, list):
        entries = [_without_filled(entry, inside=inside) for entry in value]
        return value if all(new is old for new, old in zip(entries, value, strict=True)) else entries
    if isinstance(value, dict):
        kept = {
            key: _without_filled(entry, inside=inside or key in ("arguments", "tools"))
            for key, entry in value.items()
            if not (inside and entry is None)
        }
        return value if len(kept) == len(value) and all(kept[key] is value[key] for key in kept) else kept
    return value
