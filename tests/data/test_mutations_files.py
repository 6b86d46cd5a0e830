"""Every kind of file in every format, damaged at random: right rows, or errors with file and line; none is lost, nothing crashes.

Through the chat as well: what was read becomes a row with its stop token, or a refusal with its place, and the ledger adds up.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat.chat_folders import load
from data.test_mutations import JUNK, damage_bytes, damage_structure
from sapwood.chat import Chat
from sapwood.chat.other_rows import example_of, preference_example
from sapwood.data import FORMATS, Format, Ledger, Reading, Refusal, read
from sapwood.data.reading import scan
from sapwood.errors import DataError, SapwoodError, TemplateError
from sapwood.records import Example, Preference

TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": 'q, "é"\n'}, {"role": "assistant", "content": "a"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}]}
FORM: dict[Format, dict[str, Any]] = {
    "messages": {
        "messages": [*TALK, {"role": "user", "content": "r"}, CALL],
        "tools": [{"name": "f", "parameters": {"type": "object"}}],
        "id": 3,
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
    "prompt-completion": {"prompt": TALK[:2], "completion": "a", "topic": "t"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "alpaca": {"instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]]},
    "question-answer": {"question": "q", "answer": "a", "topic": None},
    "input-ideal": {"input": TALK[:2], "ideal": ["a", "b"]},
    "prompts": {"prompt": "q", "level": 1},
    "text": {"text": "once <|im_end|> upon", "page": 1},
}
"""One row of each format, with all that it may hold."""


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_table(rows: list[dict[str, Any]], mark: str = ",") -> bytes:
    """As people save tables: lists and objects as JSON text."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["a"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=mark)
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name) for name in names)
        writer.writerow(["" if cell is None else cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return out.getvalue().encode("utf-8", "replace")


def as_arrow(rows: list[dict[str, Any]], *, parquet: bool) -> bytes:
    """Columns whose values have no common type become JSON text."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["a"]
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            columns[name] = pa.array([json.dumps(value) for value in values])
    table, out = pa.table(columns), io.BytesIO()
    if parquet:
        try:
            pq.write_table(table, out, row_group_size=3)
        except pa.ArrowNotImplementedError:  # objects without keys
            table, out = pa.table({name: [json.dumps(row.get(name)) for row in rows] for name in names}), io.BytesIO()
            pq.write_table(table, out, row_group_size=3)
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


KINDS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": as_lines,
    "rows.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "rows.csv": as_table,
    "rows.tsv": lambda rows: as_table(rows, "\t"),
    "rows.parquet": lambda rows: as_arrow(rows, parquet=True),
    "rows.arrow": lambda rows: as_arrow(rows, parquet=False),
    "rows.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "rows.csv.bz2": lambda rows: bz2.compress(as_table(rows)),
    "rows.jsonl.xz": lambda rows: lzma.compress(as_lines(rows)),
    "rows.jsonl.zst": lambda rows: bytes(pa.compress(as_lines(rows), codec="zstd", asbytes=True)),
}


def whole(reading: Reading, path: Path) -> None:
    """The reading adds up, every row has its place once, and every refusal says what and where."""
    records = [*reading.conversations, *reading.documents, *reading.preferences]
    places = [record.source for record in records] + [refusal.source for refusal in reading.refused]
    assert reading.total == len(places) > 0
    assert len({(place.file, place.line) for place in places if place}) == len(places)
    assert all(place and place.file == str(path) and place.line > 0 for place in places)
    for refusal in reading.refused:
        assert refusal.reason
        assert refusal.fix
        assert str(refusal).startswith(f"{path}:")
    for record in records:
        json.dumps(record.meta)


def read_or_refused(path: Path, form: Format | None) -> Reading | str:
    reading, said = None, ""
    try:
        reading = read([path], format=form)
    except SapwoodError as error:
        said = str(error)
    if reading is None:
        assert said.startswith(str(path)), said
        assert "\n" not in said
        return said
    whole(reading, path)
    found = scan([path], format=form)
    assert (found.total, len(found.refused), found.left_out) == (reading.total, len(reading.refused), 0), "holding rows changes none"
    return reading


@pytest.mark.parametrize("name", sorted(KINDS))
def test_rows_damaged_before_they_are_written(tmp_path: Path, name: str) -> None:
    """240 rows a kind of file: what was not damaged comes out as it is without damage; each damaged row comes out once."""
    random_, path = random.Random(name), tmp_path / name
    outcomes = {"taken": 0, "refused": 0, "file": 0}
    for form, row in FORM.items():
        rows = [row if i % 2 else damage_structure(row, random_) for i in range(26)]
        path.write_bytes(KINDS[name]([row] * 3))
        good = read_or_refused(path, form)
        assert isinstance(good, Reading)
        assert len(good.refused) == 0, good.refused
        first = (good.conversations or good.documents or good.preferences)[0]
        path.write_bytes(KINDS[name](rows))
        found = read_or_refused(path, form)
        if isinstance(found, str):  # a zero byte at the beginning of a table, which makes it a binary file
            outcomes["file"] += 1
            continue
        assert found.total == len(rows)
        outcomes["refused"] += len(found.refused)
        outcomes["taken"] += found.total - len(found.refused)
        if name in ("rows.jsonl", "rows.jsonl.gz", "rows.json"):
            records = {r.source.line: r for r in [*found.conversations, *found.documents, *found.preferences] if r.source}
            for line in range(2, len(rows) + 1, 2):
                same = records[line]
                assert {**vars_of(same), "source": None} == {**vars_of(first), "source": None}
    assert outcomes["refused"] > 20
    assert outcomes["taken"] > 100
    assert outcomes["file"] < 5


def vars_of(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_bytes_damaged_after_they_were_written(tmp_path: Path, name: str) -> None:
    """Any byte of any kind of file: a reading that adds up, or one paragraph that begins with the file."""
    random_, path = random.Random(name), tmp_path / name
    outcomes: list[Reading | str] = []
    for trial in range(70):
        form = random_.choice(list(FORM))
        data = KINDS[name]([FORM[form]] * random_.randrange(1, 9))
        path.write_bytes(damage_bytes(data, random_))
        outcomes.append(read_or_refused(path, form if trial % 2 else None))
    assert any(isinstance(found, str) for found in outcomes)
    packed = name.endswith(("gz", "bz2", "xz", "zst", "parquet", "arrow"))
    assert packed or any(isinstance(found, Reading) and found.refused for found in outcomes)


CELLS = st.text(st.sampled_from('ab,;"\n\r\t|é\ufeff'), max_size=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CELLS, max_size=4), min_size=1, max_size=7), st.sampled_from([",", ";", "\t"]), st.booleans())
def test_tables_of_the_worst_letters(tmp_path: Path, rows: list[list[str]], mark: str, tabs: bool) -> None:
    """Cells put side by side without quoting: whatever stands there is a row, a refusal by line, or an error of the file."""
    path = tmp_path / ("rows.tsv" if tabs else "rows.csv")
    path.write_bytes("\n".join(mark.join(row) for row in [["prompt", "completion"], *rows]).encode())
    read_or_refused(path, "prompt-completion")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.sampled_from(JUNK),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMATS), st.data())
def test_any_json_in_the_columns_of_any_format(tmp_path: Path, form: Format, data: st.DataObject) -> None:
    columns = [*FORM.get(form, {"question": 0, "answer": 0, "input": 0, "output": 0, "response": 0}), "tools", "template_arguments"]
    rows = data.draw(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(columns, JSON)), min_size=1, max_size=4))
    path = tmp_path / "rows.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    found = read_or_refused(path, form)
    assert isinstance(found, Reading) or "none of its" in found
    assert isinstance(found, str) or found.total == len(rows)


# ------------------------------------------------------------------ through the chat


def entered(chat: Chat, reading: Reading) -> tuple[Ledger, list[Example]]:
    """Every row of the reading in a ledger, as preparation enters them."""
    ledger, examples = Ledger(reading.total), []
    ledger.refuse(*reading.refused)
    made: Example | str
    for record in [*reading.conversations, *reading.documents, *reading.preferences]:
        try:
            made = preference_example(chat, record) if isinstance(record, Preference) else example_of(chat, record)
        except (DataError, TemplateError) as error:
            made = str(error)
        if isinstance(made, str):
            assert made.startswith(record.where), made
            ledger.refuse(Refusal(record.source, made, "mend it"))
        else:
            ledger.train(record.source)
            examples.append(made)
    ledger.assert_whole()
    return ledger, examples


@pytest.mark.parametrize("name", ["chatml", "toolful", "headers", "brackets", "two-roles", "empty-thought", "prefilled"])
def test_damaged_rows_through_the_chat(tmp_path: Path, name: str) -> None:
    chat, random_, path = load(tmp_path / "model", name), random.Random(name), tmp_path / "rows.jsonl"
    trained = refused = 0
    for form, row in FORM.items():
        rows = [damage_structure(row, random_) for _ in range(22)]
        path.write_bytes(as_lines([row, *rows]))
        reading = read([path], format=form)
        ledger, examples = entered(chat, reading)
        trained, refused = trained + len(ledger.trained), refused + len(ledger.refused)
        for example in examples:
            for one in example.rows:
                assert one.weights_T.sum() > 0
                assert one.prompt_T.min() >= 0
                assert max(one.prompt_T.max(), one.completion_T.max()) < chat.tokens.vocabulary
                control = [token for token in one.completion_T.tolist() if token in chat.stop_ids]
                assert control == [one.completion_T[-1]], "the end of the turn is trained, once"
    assert trained > 10
    assert refused > 30
    assert not any(isinstance(entry, Refusal) for entry in ledger.trained)
