"""Files in, parsed JSON values out, each with its place; a line that is not JSON comes out as a refusal.

Lines are read as bytes with an upper bound, so that a file without line ends cannot fill the memory. What cannot be
a file of rows at all (a folder, a gzip archive, Parquet, UTF-16, …) raises at once and says what to do.
Left out on purpose: decompression and the conversion of other formats, which tools that everybody has do well.
"""

from __future__ import annotations

import difflib
import io
import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from sapwood.data.refusal import Refusal, kind_of, shown
from sapwood.errors import DataError, StorageError
from sapwood.records import Source

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is refused: no conversation is 64 MiB long, but a file that has lost its line ends is."""
MAX_ARRAY_BYTES = 2**30
"""A JSON array is parsed whole, so a larger one must come as JSON Lines."""

_ROWS = (".jsonl", ".ndjson", ".json")
_CHUNK = 2**20
_HEAD = 8192
"""Bytes at the beginning of a file that must look like text."""
_MAGIC = {
    b"\x1f\x8b": ("gzip-compressed", "Unpack it first (`gunzip -k {file}`)."),
    b"BZh": ("bzip2-compressed", "Unpack it first (`bunzip2 -k {file}`)."),
    b"\xfd7zXZ\x00": ("xz-compressed", "Unpack it first (`unxz -k {file}`)."),
    b"\x28\xb5\x2f\xfd": ("Zstandard-compressed", "Unpack it first (`unzstd {file}`)."),
    b"PK\x03\x04": ("a zip archive (or an Excel file)", "Unpack it, or save it as JSON Lines."),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it first."),
    b"ARROW1": ("an Arrow file", "Write it as JSON Lines, one object a line."),
    b"SQLite format 3\x00": ("an SQLite database", "Write the table as JSON Lines, one object a line."),
    b"\xff\xfe": ("text in UTF-16", "Convert it: `iconv -f UTF-16 -t UTF-8 {file} > {stem}.utf8.jsonl`."),
    b"\xfe\xff": ("text in UTF-16", "Convert it: `iconv -f UTF-16 -t UTF-8 {file} > {stem}.utf8.jsonl`."),
    b"version https://git-lfs": ("a Git LFS pointer, not the data itself", "Fetch the data: `git lfs pull`."),
}
_CSV = (
    'python -c "import csv,json,sys; [print(json.dumps(r)) for r in '
    "csv.DictReader(open(sys.argv[1], newline='', encoding='utf-8-sig'){tab})]\" {file} > {stem}.jsonl"
)
_PARQUET = (
    'python -c "import json,sys,pyarrow.parquet as p; [print(json.dumps(r, default=str)) for r in '
    'p.read_table(sys.argv[1]).to_pylist()]" {file} > {stem}.jsonl'
)

Parsed = tuple[Source, Any]
"""A place and the JSON value there, or the `Refusal` of that place."""


def parsed_rows(path: Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Parsed]:
    """Every row of a JSON Lines file, or of a `.json` file that holds one array; blank lines are no rows.

    Raises `DataError` or `StorageError` if the file as a whole cannot be read as rows.
    """
    try:
        with io.BufferedReader(io.FileIO(path), _CHUNK) as file:
            head = file.peek(_HEAD)[:_HEAD]
            _refuse_foreign(path, head)
            if path.suffix.lower() == ".json" and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                yield from _array(path, file)
            else:
                yield from _lines(path, file, max_line_bytes)
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except IsADirectoryError:
        raise DataError(_folder(path)) from None
    except PermissionError:
        raise StorageError(
            f"{path}: this user may not read it. Change its permissions (`chmod u+r {shlex.quote(str(path))}`), "
            "or read it as a user who may."
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: could not be read: {error.strerror or error}. Check the path and the disk, and try again.") from None


def _lines(path: Path, file: BinaryIO, max_line_bytes: int) -> Iterator[Parsed]:
    name = str(path)
    for number in itertools.count(1):
        line = file.readline(max_line_bytes + 1)
        if not line:
            return
        source = Source(name, number)
        if len(line) > max_line_bytes and not line.endswith(b"\n"):
            length = len(line) + _skip_line(file)
            reason = f"line too long: {length:,} bytes, at most {max_line_bytes:,} are read"
            yield source, Refusal(source, reason, "check that each row ends with a line break")
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.isspace() and line:
            yield source, _parse(source, line)


def _skip_line(file: BinaryIO) -> int:
    """Read up to the next line end in small pieces; returns how many bytes that were, the line end left out."""
    skipped = 0
    while piece := file.readline(_CHUNK):
        if piece.endswith(b"\n"):
            return skipped + len(piece) - 1
        skipped += len(piece)
    return skipped


def _parse(source: Source, line: bytes) -> Any:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _broken(source, line, error)
    return _checked(source, value)


def _checked(source: Source, value: Any) -> Any:
    if type(value) is not dict:
        reason = f"not an object: the row is {kind_of(value)} ({shown(value)}), expected an object with columns"
        return Refusal(source, reason, 'write one object a line, such as {"prompt": "…", "completion": "…"}')
    if too_deep(value):
        return Refusal(source, "nested too deep: more than 240 levels of lists and objects", "flatten the row")
    return value


def too_deep(value: Any) -> bool:
    """Whether a JSON value could not be written again inside a record of ours: orjson writes 254 levels and reads 1,024."""
    try:
        orjson.dumps([[[[[[[[[[[[value]]]]]]]]]]]])
    except TypeError:
        return True
    return False


def _broken(source: Source, line: bytes, error: orjson.JSONDecodeError) -> Refusal:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as bad:
        byte = f"byte {bad.start + 1} of the line is 0x{line[bad.start]:02x}"
        return Refusal(source, f"invalid UTF-8: {byte}", "save the file as UTF-8 (for example `iconv -f LATIN1 -t UTF-8`)")
    return Refusal(source, f"broken JSON: {source}:{error.colno}: {error.msg}", "mend the line; each line holds one whole JSON object")


def _array(path: Path, file: BinaryIO) -> Iterator[Parsed]:
    """The records of a JSON array; their numbers stand where line numbers would."""
    content = file.read(MAX_ARRAY_BYTES + 1)
    if len(content) > MAX_ARRAY_BYTES:
        raise DataError(
            f"{path}: a JSON array of more than {MAX_ARRAY_BYTES:,} bytes, which would have to be read whole. "
            f"Write it as JSON Lines: `jq -c '.[]' {shlex.quote(str(path))} > {shlex.quote(path.stem)}.jsonl`."
        )
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        records = list(_lines(path, io.BytesIO(content), MAX_LINE_BYTES))
        if any(isinstance(value, dict) for _, value in records):  # lines after all, of which the first is an array
            yield from records
            return
        place = f"{path}:{error.lineno}:{error.colno}"
        raise DataError(
            f"{place}: the file begins as a JSON array but is broken here: {error.msg}. Mend it, or write JSON Lines."
        ) from None
    for number, value in enumerate(values, 1):
        source = Source(str(path), number)
        yield source, _checked(source, value)


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Raise `DataError` for a file that is not text in UTF-8, or whose name says that it is no JSON."""
    name = {"file": shlex.quote(str(path)), "stem": shlex.quote(str(path.with_suffix("")))}
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        raise DataError(f"{path}: Parquet is not read yet. Convert it to JSON Lines: `{_PARQUET.format(**name)}`.")
    if suffix in (".csv", ".tsv"):
        command = _CSV.format(tab=", delimiter='\\t'" if suffix == ".tsv" else "", **name)
        raise DataError(
            f"{path}: {suffix[1:].upper()} is not read yet. Convert it to JSON Lines: `{command}`, and name the columns if they "
            "are not called `prompt` and `completion`."
        )
    for magic, (what, fix) in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path}: expected JSON Lines, found {what}. {fix.format(**name)}")
    if b"\x00" in head:
        raise DataError(f"{path}: expected JSON Lines in UTF-8, found a binary file (a zero byte at {head.index(0)}). Check the path.")
    if not head:
        raise DataError(f"{path}: the file is empty. Write one JSON object a line into it, or choose another file.")


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file, and no folder {folder}. Check the path."
    names = sorted(entry.name for entry in itertools.islice(folder.iterdir(), 5000))
    rows = [name for name in names if name.endswith(_ROWS)]
    there = f" JSON files there: {', '.join(rows[:5])}{', …' if len(rows) > 5 else ''}." if rows else ""
    near = difflib.get_close_matches(path.name, names, n=2)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else there
    return f"{path}: no such file.{hint} Check the path."


def _folder(path: Path) -> str:
    rows = [entry for entry in sorted(path.iterdir()) if entry.name.endswith(_ROWS)]
    if not rows:
        return f"{path}: a folder, without a .jsonl or .json file in it. Name a file."
    more = f" (and {len(rows) - 5} more)" if len(rows) > 5 else ""
    return f"{path}: a folder, not a file. Name the files in it: {' '.join(shlex.quote(str(entry)) for entry in rows[:5])}{more}."
