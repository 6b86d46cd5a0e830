"""Packed files: every row comes out; a break or damage is named behind the rows that stand before it; a bomb stays small."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sapwood.data import read
from sapwood.data.archives import unpacked
from sapwood.data.lines import parsed_rows
from sapwood.errors import DataError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": lambda data: bz2.compress(data, 1),
    "xz": lzma.compress,
    "zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}
packings = pytest.mark.parametrize("packing", sorted(PACKERS))


def rows(count: int) -> bytes:
    random_ = random.Random(0)
    return b"".join(json.dumps({"prompt": f"q{i}", "completion": str(random_.random())}).encode() + b"\n" for i in range(count))


def read_until_it_breaks(path: Path) -> tuple[list[Any], str]:
    found = []
    try:
        for source, value in parsed_rows(path):
            assert source.line == len(found) + 1
            found.append(value)
    except DataError as error:
        return found, str(error)
    return found, ""


@packings
def test_packed_files_are_found_by_their_first_bytes(tmp_path: Path, packing: str) -> None:
    for name in ("rows.jsonl", f"rows.jsonl.{packing}"):
        path = tmp_path / name
        path.write_bytes(PACKERS[packing](rows(50)))
        assert [c.messages[0].content for c in read([path]).conversations] == [f"q{i}" for i in range(50)]
    plain = tmp_path / "rows.jsonl.gz"
    plain.write_bytes(rows(2))
    assert len(read([plain]).conversations) == 2, "not packed, whatever its name says"
    table = tmp_path / f"rows.csv.{packing}"
    table.write_bytes(PACKERS[packing](b"prompt,completion\nq,a\n"))
    assert [c.messages[1].content for c in read([table]).conversations] == ["a"]


@packings
def test_several_streams_one_behind_the_other(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"rows.jsonl.{packing}"
    pack = PACKERS[packing]
    path.write_bytes(pack(rows(30)) + pack(b"") + pack(rows(20)))
    assert len(list(parsed_rows(path))) == 50
    if packing in ("gz", "xz"):
        path.write_bytes(pack(rows(30)) + b"\x00" * 512)
        assert len(list(parsed_rows(path))) == 30


@packings
def test_rows_before_a_break_come_out_and_the_break_is_named(tmp_path: Path, packing: str) -> None:
    content = rows(8000)
    whole = [json.loads(line) for line in content.splitlines()]
    packed = PACKERS[packing](content)
    path = tmp_path / f"rows.jsonl.{packing}"
    for cut in (len(packed) * 2 // 3, len(packed) - 1):
        path.write_bytes(packed[:cut])
        found, said = read_until_it_breaks(path)
        assert found == whole[: len(found)]
        assert len(found) > len(whole) // 4
        assert said.startswith(f"{path}:{len(found)}: behind this row: the ")
        assert "break off" in said
        assert f" {path} > rows-part.jsonl`" in said


@packings
def test_damage_in_the_middle_is_named(tmp_path: Path, packing: str) -> None:
    packed = bytearray(PACKERS[packing](rows(4000)))
    packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / f"rows.jsonl.{packing}"
    path.write_bytes(bytes(packed))
    found, said = read_until_it_breaks(path)
    assert said.startswith(str(path))
    assert "damaged" in said
    assert len(found) < 4000


def test_a_bomb_is_a_line_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    packer = zlib.compressobj(9, wbits=31)
    with path.open("wb") as file:
        file.write(packer.compress(b'{"prompt": "'))
        for _ in range(64):
            file.write(packer.compress(b"a" * 2**20))
        file.write(packer.compress(b'"}\n' + rows(3)) + packer.flush())
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    found = list(parsed_rows(path, 2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 4
    assert "line too long" in found[0][1].reason
    assert peak < 16 * 2**20, f"{peak >> 20} MiB for 64 MiB that are never wanted"


@packings
def test_pieces_are_never_larger_than_asked_for(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(PACKERS[packing](b"\x00" * 2**22))
    with unpacked(path) as (file, name):
        assert name
        raw = file.raw
        total = 0
        buffer = bytearray(1000)
        while count := raw.readinto(buffer):
            assert count <= 1000
            total += count
    assert total == 2**22


def test_a_packed_table_that_must_be_read_out_of_order_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    pa.parquet.write_table(pa.table({"prompt": ["q"]}), out)
    path = tmp_path / "rows.parquet.gz"
    path.write_bytes(gzip.compress(out.getvalue()))
    with pytest.raises(DataError, match=r"Unpack it first, with `gzip -dc`"):
        list(parsed_rows(path))
