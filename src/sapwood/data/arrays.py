"""A JSON array in a `.json` file → its entries, one by one; their numbers stand where line numbers would.

A small array is parsed whole. A large one is cut into its entries by looking for where each ends, a stretch of the file at
a time. Left out on purpose: arrays inside objects.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import orjson

from sapwood.data.exactness import check_exact, oversized_number
from sapwood.data.refusal import Refusal, Refused
from sapwood.data.tables import Parsed
from sapwood.errors import DataError
from sapwood.records import Source

WHOLE = 32 * 2**20
"""Bytes up to which an array is parsed at once."""
STRETCH = 4 * 2**20
"""Characters that are looked at together in a larger one; an entry longer than a stretch makes the stretch grow."""
LONGEST = 64 * 2**20
"""Characters of the longest entry."""
_SPACE = " \t\n\r"


def array_rows(
    path: Path, file: io.BufferedReader[Any], as_lines: Callable[[BinaryIO], Iterator[Parsed]], checked: Callable[[Source, Any], Any]
) -> Iterator[Parsed]:
    """The entries of an array, or, if the file turns out to be lines of which the first is an array, those.

    Raises `DataError` with line and column where the array is broken.
    """
    content = file.read(WHOLE + 1)
    if len(content) > WHOLE or oversized_number(content):
        yield from _cut(path, content, file, checked)
        return
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        records = list(as_lines(io.BytesIO(content)))
        if any(isinstance(value, dict) for _, value in records):  # lines after all, of which the first is an array
            yield from records
            return
        raise _broken(path, error.lineno, error.colno, error.msg) from None
    for number, value in enumerate(values, 1):
        source = Source(str(path), number)
        yield source, checked(source, value)


def _broken(path: Path, line: int, column: int, why: str) -> DataError:
    return DataError(f"{path}:{line}:{column}: the file begins as a JSON array but is broken here: {why}. Mend it, or write JSON Lines.")


def _cut(path: Path, content: bytes, file: io.BufferedReader[Any], checked: Callable[[Source, Any], Any]) -> Iterator[Parsed]:
    stretch = _Stretch(path, content, file)
    stretch.expect("[")
    number = 0
    while stretch.next_character() != "]" or number:
        if number and stretch.next_character() == "]":
            break
        if number:
            stretch.expect(",")
        number += 1
        source = Source(str(path), number)
        text = stretch.entry()
        try:
            value = orjson.loads(text)
            check_exact(text.encode())
        except Refused as why:
            yield source, Refusal(source, why.reason, why.fix)
            continue
        except orjson.JSONDecodeError as error:
            reason = f"broken JSON: entry {number}: {error.msg} at character {error.colno} of it"
            yield source, Refusal(source, reason, "mend the entry")
            continue
        yield source, checked(source, value)
    stretch.expect("]")
    if stretch.next_character():
        stretch.fail("something follows behind the end of the array")


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


class _Stretch:
    """A window over the text of a file, from which entries are taken one by one."""

    def __init__(self, path: Path, content: bytes, file: io.BufferedReader[Any]) -> None:
        self._path, self._file = (
            path,
            io.TextIOWrapper(io.BufferedReader(_Joined(content, file)), encoding="utf-8-sig", errors="strict", newline=""),
        )
        self._text, self._at, self._line, self._line_start = "", 0, 1, 0
        self._decoder = json.JSONDecoder(parse_constant=_no_constant)
        self._done = False

    def _more(self, size: int) -> bool:
        """Let go of what was taken, and append to what is left; whether there was anything."""
        taken = self._text[: self._at]
        lines = taken.count("\n")
        self._line += lines
        self._line_start = len(taken) - taken.rindex("\n") - 1 if lines else self._line_start + len(taken)
        try:
            new = "" if self._done else self._file.read(size)
        except UnicodeDecodeError as error:
            self.fail(f"the text is not UTF-8 (byte 0x{error.object[error.start]:02x})")
        self._text, self._at, self._done = self._text[self._at :] + new, 0, not new
        return bool(new)

    def next_character(self) -> str:
        """The next character that is no white space, which stays; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(STRETCH):
                return ""

    def expect(self, character: str) -> None:
        """Take this character. Raises `DataError` if another one is there."""
        found = self.next_character()
        if found != character:
            self.fail(f"expected {character!r}, found {found!r}" if found else f"the file ends where {character!r} was expected")
        self._at += 1

    def entry(self) -> str:
        """Take one JSON value, as text. Raises `DataError` where it is broken."""
        self.next_character()
        size = STRETCH
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at < LONGEST and self._more(size):
                    size *= 2
                    continue
                self._at = getattr(error, "pos", self._at)
                self.fail(getattr(error, "msg", str(error)))
            if end == len(self._text) and self._more(size):
                continue  # a number may go on
            text = self._text[self._at : end]
            self._at = end
            return text

    def fail(self, why: str) -> NoReturn:
        """Raise `DataError` with line and column."""
        taken = self._text[: self._at]
        line = self._line + taken.count("\n")
        column = len(taken) - taken.rindex("\n") if "\n" in taken else self._line_start + len(taken) + 1
        raise _broken(self._path, line, column, why)


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest of their file."""

    def __init__(self, content: bytes, file: io.BufferedReader[Any]) -> None:
        self._content, self._file = io.BytesIO(content), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(buffer) or self._file.readinto1(buffer)
