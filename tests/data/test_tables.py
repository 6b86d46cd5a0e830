"""CSV, TSV, Parquet and Arrow: every cell comes out as it went in, every broken row with the line it stands on."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sapwood.data import Refusal, read
from sapwood.data.lines import parsed_rows
from sapwood.data.tables import FILLED
from sapwood.errors import DataError, SapwoodError

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)


def rows_of(path: Path, **how: Any) -> list[tuple[int, Any]]:
    return [(source.line, str(value) if isinstance(value, Refusal) else value) for source, value in parsed_rows(path, **how)]


@QUICK
@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6), st.sampled_from([".csv", ".tsv"]), st.sampled_from(["\n", "\r\n"]))
def test_what_a_csv_writer_writes_is_read_back(tmp_path: Path, cells: list[tuple[str, str, str]], suffix: str, end: str) -> None:
    out = io.StringIO(newline="")
    mark = "\t" if suffix == ".tsv" else ","
    writer = csv.writer(out, lineterminator=end, delimiter=mark, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "ç"), *cells])
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + out.getvalue().encode())
    found = rows_of(path)
    assert [value for _, value in found] == [dict(zip(("a", "b", "ç"), row, strict=True)) for row in cells]
    line, expected = 2, []
    for row in cells:
        expected.append(line)
        line += 1 + "".join(row).count("\n")
    assert [line for line, _ in found] == expected


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_separator_is_found_from_the_first_lines_and_said(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'prompt{mark}completion\n"a, b; c"{mark}x\nd{mark}y\n')
    reading = read([path])
    assert [[m.content for m in c.messages] for c in reading.conversations] == [["a, b; c", "x"], ["d", "y"]]
    assert any("separated by" in line for line in reading.lines_for_people()) == (mark != ",")


def test_one_column_with_separators_in_its_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\nhello; you\nand; me\n")
    assert rows_of(path) == [(2, {"text": "hello; you"}), (3, {"text": "and; me"})]


def test_tsv_with_and_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('a\tb\n"Hi" she said\tx\ny, z\t"w"\n')
    assert rows_of(path) == [(2, {"a": '"Hi" she said', "b": "x"}), (3, {"a": "y, z", "b": '"w"'})]
    path.write_text('a\tb\n"tab\there"\tx\ny\tz\n')
    assert rows_of(path)[0] == (2, {"a": "tab\there", "b": "x"})


def test_broken_rows_are_refused_by_line_and_the_others_come_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n"two\nlines",1\n\nonly one\n1,2,3\n"x"y,2\n"q\nr"s,2\n\xff,1\nok,1\n')
    found = rows_of(path)
    assert [(line, value) for line, value in found if isinstance(value, dict)] == [
        (2, {"a": "two\nlines", "b": "1"}),
        (11, {"a": "ok", "b": "1"}),
    ]
    said = {line: value for line, value in found if isinstance(value, str)}
    assert set(said) == {5, 6, 7, 8, 9, 10}, "a record of two lines whose quotes are wrong may hold two rows: both are named"
    for line, why in [
        (5, "ragged row: 1 cells, where the header has 2"),
        (6, "ragged row: 3 cells"),
        (7, "broken CSV"),
        (8, "in the record of lines 8 to 9"),
        (9, "in the record of lines 8 to 9"),
        (10, "invalid UTF-8: the cell `a`"),
    ]:
        assert said[line].startswith(f"{path}:{line}: {why}") or why in said[line]


def test_headers_and_quotes_that_spoil_a_whole_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for content, why in [
        ("a,a\n1,2\n", r"rows\.csv:1: the header names the column 'a' twice"),
        ('a,b\n1,2\n"never closed,2\n3,4\n', r"rows\.csv:3: a quote that is opened in this record is never closed"),
        (",\n1,2\n", r"rows\.csv:1: expected a header"),
    ]:
        path.write_text(content)
        with pytest.raises(DataError, match=why):
            rows_of(path)
    path.write_text(",text\n0,x\n")
    notes: Counter[str] = Counter()
    assert rows_of(path, notes=notes) == [(2, {"column 1": "0", "text": "x"})]
    assert "without a name" in next(iter(notes))
    path.write_text("a,b\n")
    with pytest.raises(DataError, match="no rows"):
        read([path])


def test_a_cell_without_end_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "x" * 5000 + ",1\nok,1\n")
    (long, why), good = rows_of(path, max_line_bytes=1000)
    assert (long, good) == (2, (3, {"a": "ok", "b": "1"}))
    assert why.startswith(f"{path}:2: line too long: at most 1,000 bytes are read")


# ------------------------------------------------------------------ Parquet and Arrow

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | CELL, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)


def save(rows: list[dict[str, Any]], path: Path, schema: pa.Schema | None = None) -> Path:
    table = pa.Table.from_pylist(rows, schema=schema)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.stem.endswith("stream"):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "stream.arrow"])
@settings(QUICK, max_examples=25)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"s": CELL, "i": st.integers(-(2**63), 2**63 - 1) | st.none(), "l": st.lists(CELL, max_size=2)}),
        min_size=1,
        max_size=5,
    )
)
def test_columns_of_one_type_come_out_as_json(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    schema = pa.schema([("s", pa.string()), ("i", pa.int64()), ("l", pa.list_(pa.string()))])
    assert rows_of(save(rows, tmp_path / name, schema)) == list(enumerate(rows, 1))


def test_types_that_json_has_not(tmp_path: Path) -> None:
    row = {
        "when": datetime.datetime(2024, 1, 2, 3, 4, 5),
        "day": datetime.date(2024, 1, 2),
        "price": Decimal("1.50"),
        "raw": b"ab",
        "not": float("nan"),
    }
    ((_, found),) = rows_of(save([row], tmp_path / "rows.parquet"))
    assert found == {"when": "2024-01-02T03:04:05", "day": "2024-01-02", "price": "1.50", "raw": "YWI=", "not": None}
    schema = pa.schema([("m", pa.map_(pa.string(), pa.int64()))])
    assert rows_of(save([{"m": [("a", 1)]}], tmp_path / "rows.parquet", schema)) == [(1, {"m": {"a": 1}})]


def calling(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    call = {"function": {"name": name, "arguments": arguments}}
    tools = [{"name": name, "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in arguments}}}]
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}], "tools": tools}


def test_arguments_lose_the_keys_that_arrow_filled_in_and_it_is_said(tmp_path: Path) -> None:
    rows = [calling("weather", {"city": "Lima"}), calling("add", {"x": "1", "y": "2"})]
    reading = read([save(rows, tmp_path / "rows.parquet")])
    assert [dict(c.messages[1].tool_calls[0].arguments) for c in reading.conversations] == [{"city": "Lima"}, {"x": "1", "y": "2"}]
    assert [list(c.tools[0]["function"]["parameters"]["properties"]) for c in reading.conversations] == [["city"], ["x", "y"]]
    assert reading.notes[FILLED] == 2
    alike = [calling("weather", {"city": "Lima"})] * 2
    assert FILLED not in read([save(alike, tmp_path / "rows.parquet")]).notes


def test_numbers_that_stand_for_names_are_written_as_names(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}}}
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())], metadata={"huggingface": json.dumps(features)})
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}, {"text": "?", "label": -1}]
    reading = read([save(rows, tmp_path / "rows.parquet", schema)], columns={"prompt": "text", "completion": "label"})
    assert [c.messages[1].content for c in reading.conversations] == ["pos", "neg", "-1"]
    assert any("stand for names" in line for line in reading.lines_for_people())


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_damaged_tables_are_named(tmp_path: Path, name: str) -> None:
    path = save([{"prompt": "q", "completion": "a" * 50}] * 9, tmp_path / name)
    content = path.read_bytes()
    for damaged in (content[:-30], content[:40], b"x" + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(SapwoodError, match=str(path)):
            rows_of(path)


def test_tables_are_read_a_batch_at_a_time(tmp_path: Path) -> None:
    """Only the batches that were asked for are turned into rows."""
    path = save([{"prompt": str(i), "completion": "a"} for i in range(2000)], tmp_path / "rows.parquet")
    rows = parsed_rows(path)
    assert [next(rows)[1]["prompt"] for _ in range(3)] == ["0", "1", "2"]
    assert sum(1 for _ in rows) == 1997
