"""A compressed file → the bytes in it, a piece at a time; found by its first bytes, whatever its name says.

In: a path. Out: a buffered binary stream, and the name of the packing. However far a small file would swell, a piece is
never larger than what was asked for. Data that break off or are damaged raise `Damaged`, after all that stood before them.
Left out on purpose: archives of several files (tar, zip, 7z), whose rows would have no file of their own to be named with.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

PACKINGS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
"""First bytes of a packed file, and what packed it."""
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
UNPACK = {"gzip": "gzip -dc", "bzip2": "bzip2 -dc", "xz": "xz -dc", "Zstandard": "zstd -dc"}
_PIECE = 2**14
"""Packed bytes fed at once: small, so that little of what stands before damage is lost with it."""
_BUFFER = 2**20


class Damaged(Exception):  # noqa: N818 - a signal inside this room, not an error that leaves it
    """The packed data break off or are not what they should be; the message says which."""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[io.BufferedReader[Any], str]]:
    """The bytes in a file, and what it was packed with ("" for a plain file). Raises `OSError`; reading may raise `Damaged`."""
    with io.BufferedReader(io.FileIO(path), _BUFFER) as file:
        head = file.peek(8)[:8]
        packing = next((name for magic, name in PACKINGS.items() if head.startswith(magic)), "")
        if not packing:
            yield file, ""
            return
        raw: io.RawIOBase = _Zstandard(file) if packing == "Zstandard" else _Unpacking(file, packing)
        with io.BufferedReader(raw, _BUFFER) as inside:
            yield inside, packing


def name_inside(path: Path) -> Path:
    """The path without the suffix that says how it is packed: `rows.csv.gz` holds `rows.csv`."""
    return path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path


class _Unpacking(io.RawIOBase):
    """One or several packed streams, one behind the other, as one stream of bytes."""

    def __init__(self, file: io.BufferedReader[Any], packing: str) -> None:
        self._file, self._make = file, _DECODERS[packing]
        self._decoder, self._pending, self._packing = self._make(), b"", packing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decoder.eof and not self._next_stream():
                return 0
            try:
                out = self._decoder.decompress(self._pending, len(buffer))
            except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError) as error:
                raise Damaged(f"the {self._packing} data are damaged ({error})") from None
            self._pending = getattr(self._decoder, "unconsumed_tail", b"")
            if out:
                buffer[: len(out)] = out
                return len(out)
            if not self._pending and not self._decoder.eof:
                self._pending = self._file.read(_PIECE)
                if not self._pending:
                    raise Damaged(f"the {self._packing} data break off: the file is cut short")

    def _next_stream(self) -> bool:
        """Whether another packed stream follows; zeros in between are padding."""
        rest = (self._decoder.unused_data or self._file.read(_PIECE)).lstrip(b"\x00")
        while not rest and (more := self._file.read(_PIECE)):
            rest = more.lstrip(b"\x00")
        if rest:
            self._decoder, self._pending = self._make(), rest
        return bool(rest)


class _Zstandard(io.RawIOBase):
    """Zstandard through pyarrow, which brings it along."""

    def __init__(self, file: io.BufferedReader[Any]) -> None:
        import pyarrow as pa  # slow to import, and only wanted here

        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            out = self._stream.read(min(len(buffer), _PIECE))
        except (OSError, ValueError) as error:
            raise Damaged(f"the Zstandard data break off or are damaged ({str(error).splitlines()[0][:80]})") from None
        buffer[: len(out)] = out
        return len(out)
