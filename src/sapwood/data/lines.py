"""Files in, parsed JSON values out, each with its place; a row that is not JSON comes out as a refusal.

JSON Lines, JSON arrays, CSV, TSV, Parquet and Arrow, each of the texts also packed by gzip, bzip2, xz or Zstandard. Rows
come one by one, and lines are read with an upper bound, so that neither a large file nor one without line ends fills the
memory. What cannot be a file of rows at all (a zip archive, UTF-16, a database, …) raises at once and says what to do.
"""

from __future__ import annotations

import difflib
import io
import itertools
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from sapwood.data.archives import PACKED_SUFFIXES, UNPACK, Damaged, name_inside, unpacked
from sapwood.data.arrays import array_rows
from sapwood.data.exactness import TOO_DEEP, check_exact, too_deep
from sapwood.data.refusal import IN_UTF_8, Refusal, Refused, kind_of, shown
from sapwood.data.tables import Parsed as Parsed
from sapwood.data.tables import arrow_rows, parquet_rows, separated_rows
from sapwood.errors import DataError, StorageError
from sapwood.records import Source

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is refused: no conversation is 64 MiB long, but a file that has lost its line ends is."""

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab")
ROWS = (*TEXTS, ".parquet", ".arrow")
"""Endings of files that hold rows; texts may be packed, too."""

_CHUNK = 2**20
_HEAD = 8192
"""Bytes at the beginning of a file that must look like text."""
_MAGIC = {
    b"PK\x03\x04": ("a zip archive (or an Excel file)", "Unpack it, or save it as CSV or JSON Lines."),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it first."),
    b"FEA1": ("a Feather file of the first version", "Write it as Parquet or JSON Lines."),
    b"SQLite format 3\x00": ("an SQLite database", "Write the table as CSV or JSON Lines."),
    b"\xff\xfe": ("text in UTF-16", "Convert it: `iconv -f UTF-16 -t UTF-8 {file} > {stem}.utf8{suffix}`."),
    b"\xfe\xff": ("text in UTF-16", "Convert it: `iconv -f UTF-16 -t UTF-8 {file} > {stem}.utf8{suffix}`."),
    b"version https://git-lfs": ("a Git LFS pointer, not the data itself", "Fetch the data: `git lfs pull`."),
}


def holds_rows(path: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    return name_inside(path).suffix.lower() in (TEXTS if path.suffix.lower() in PACKED_SUFFIXES else ROWS)


def parsed_rows(path: Path, max_line_bytes: int = MAX_LINE_BYTES, notes: Counter[str] | None = None) -> Iterator[Parsed]:
    """Every row of a file, lazily; blank lines are no rows. `notes` counts what the reading of a table had to decide.

    Raises `DataError` or `StorageError` if the file as a whole cannot be read as rows, or from where it is damaged on.
    """
    last: Source | None = None
    notes = Counter() if notes is None else notes
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(_stream(path))
        with unpacked(path) as (file, packing):
            try:
                for last, value in _rows(path, file, packing, max_line_bytes, notes):
                    yield last, value
            except Damaged as error:
                place = f"{last}: behind this row" if last else str(path)
                inside = name_inside(path)
                part = f"{shlex.quote(inside.stem)}-part{inside.suffix}"
                raise DataError(
                    f"{place}: {error}, and the rows behind that are lost. Fetch or write the file again; to go on with what is whole, "
                    f"unpack that: `{UNPACK[packing]} {shlex.quote(str(path))} > {part}`."
                ) from None
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except IsADirectoryError:
        raise DataError(_folder(path)) from None
    except PermissionError:
        raise StorageError(
            f"{path}: this user may not read it. Change its permissions (`chmod u+r {shlex.quote(str(path))}`), "
            "or read it as a user who may."
        ) from None
    except DataError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: could not be read: {error.strerror or error}. Check the path and the disk, and try again.") from None


def _rows(path: Path, file: io.BufferedReader[Any], packing: str, max_line_bytes: int, notes: Counter[str]) -> Iterator[Parsed]:
    head = file.peek(_HEAD)[:_HEAD]
    inside = name_inside(path) if packing else path
    suffix = inside.suffix.lower()
    if _is_binary_table(path, head, suffix, packing):
        yield from parquet_rows(path, notes) if head.startswith(b"PAR1") else arrow_rows(path, notes, stream=not head.startswith(b"ARROW1"))
        return
    _refuse_foreign(path, inside, head)
    if suffix in (".csv", ".tsv", ".tab"):
        yield from separated_rows(path, file, tabs=suffix != ".csv", max_bytes=max_line_bytes, notes=notes)
    elif suffix == ".json":
        yield from _json(path, file, head, max_line_bytes)
    else:
        yield from _lines(path, file, max_line_bytes)


def _is_binary_table(path: Path, head: bytes, suffix: str, packing: str) -> bool:
    stream = suffix == ".arrow" and head.startswith(b"\xff\xff\xff\xff")
    if not (head.startswith((b"PAR1", b"ARROW1")) or stream):
        if suffix in (".parquet", ".arrow") and head:
            raise DataError(
                f"{path}: named {suffix}, but its first bytes are {head[:8]!r}, which no such file begins with. Check the file."
            )
        return False
    if packing:
        raise DataError(
            f"{path}: a packed table of Parquet or Arrow, which must be read out of order. Unpack it first, with `{UNPACK[packing]}`."
        )
    return True


def _json(path: Path, file: io.BufferedReader[Any], head: bytes, max_line_bytes: int) -> Iterator[Parsed]:
    """A `.json` file: an array, one object over several lines, or JSON Lines under another name."""
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin.startswith(b"["):
        yield from array_rows(path, file, lambda content: _lines(path, content, max_line_bytes), _checked)
    elif begin.partition(b"\n")[0].strip() == b"{":
        yield _one_object(path, file.read(max_line_bytes + 1), max_line_bytes)
    else:
        yield from _lines(path, file, max_line_bytes)


def _one_object(path: Path, content: bytes, max_bytes: int) -> Parsed:
    """A whole file as one row."""
    source = Source(str(path), 1)
    found: Any = None
    if len(content) <= max_bytes:
        found = _parse(source, content.removeprefix(b"\xef\xbb\xbf"))
    if found is None or isinstance(found, Refusal):
        reason = "broken JSON: the file begins an object over several lines, and is not one whole object"
        return source, Refusal(source, reason, "write one whole object a line, for example with `jq -c . FILE > NEW.jsonl`")
    return source, found


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
        check_exact(line)
    except orjson.JSONDecodeError as error:
        return _broken(source, line, error)
    except Refused as why:
        return Refusal(source, why.reason, why.fix)
    return _checked(source, value)


def _checked(source: Source, value: Any) -> Any:
    if type(value) is not dict:
        reason = f"not an object: the row is {kind_of(value)} ({shown(value)}), expected an object with columns"
        return Refusal(source, reason, 'write one object a line, such as {"prompt": "…", "completion": "…"}')
    if too_deep(value):
        return Refusal(source, TOO_DEEP, "flatten the row")
    return value


def _broken(source: Source, line: bytes, error: orjson.JSONDecodeError) -> Refusal:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as bad:
        byte = f"byte {bad.start + 1} of the line is 0x{line[bad.start]:02x}"
        return Refusal(source, f"invalid UTF-8: {byte}", IN_UTF_8)
    return Refusal(source, f"broken JSON: {source}:{error.colno}: {error.msg}", "mend the line; each line holds one whole JSON object")


def _refuse_foreign(path: Path, inside: Path, head: bytes) -> None:
    """Raise `DataError` for a file that is not text in UTF-8."""
    name = {"file": shlex.quote(str(path)), "stem": shlex.quote(str(inside.with_suffix(""))), "suffix": inside.suffix}
    for magic, (what, fix) in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path}: expected rows as text or a table, found {what}. {fix.format(**name)}")
    if head[257:262] == b"ustar":
        raise DataError(f"{path}: expected rows as text or a table, found a tar archive. Unpack it: `tar -xf {name['file']}`.")
    if b"\x00" in head:
        zero = head.index(0)
        raise DataError(f"{path}: expected rows as text or a table, found a binary file (a zero byte at {zero}). Check the path.")
    if not head:
        raise DataError(f"{path}: the file is empty. Write one JSON object a line into it, or choose another file.")


def _stream(path: Path) -> str:
    return (
        f"{path}: a pipe or a device, not a file. Rows are read more than once, which a pipe cannot give. Write them to a file, "
        "such as rows.jsonl, and name that."
    )


def _missing(path: Path) -> str:
    folder = path.parent
    if path.is_symlink():
        return f"{path}: a link to {path.readlink()}, which does not exist. Mend the link, or name the file itself."
    if not folder.is_dir():
        return f"{path}: no such file, and no folder {folder}. Check the path."
    names = sorted(entry.name for entry in itertools.islice(folder.iterdir(), 5000))
    rows = [name for name in names if holds_rows(Path(name))]
    there = f" Files of rows there: {', '.join(rows[:5])}{', …' if len(rows) > 5 else ''}." if rows else ""
    near = difflib.get_close_matches(path.name, names, n=2)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else there
    return f"{path}: no such file.{hint} Check the path."


def _folder(path: Path) -> str:
    return f"{path}: a folder, not a file. `read` takes the files in it if you name the folder there."
