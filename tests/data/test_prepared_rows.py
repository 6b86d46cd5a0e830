"""Prepared rows come back from the disk as they were made, from the cache as from nothing, and no half of them ever looks whole."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat.chat_folders import TEMPLATES, load
from data.chat_rows import conversations, write
from sapwood.chat import Chat
from sapwood.data import cache as cache_module
from sapwood.data import packed as packed_module
from sapwood.data import read
from sapwood.data import reading as reading_module
from sapwood.data.cache import folder_of_prepared
from sapwood.data.locations import locate
from sapwood.data.packed import ChunkMaker, Packed, PackedWriter
from sapwood.data.prepared import kept_scan, prepared_rows
from sapwood.data.stored import read_back, written
from sapwood.errors import DataError, StorageError
from sapwood.recipes.prepare import DataConfig, Prepared, prepare_files
from sapwood.recipes.prepare import prepare as prepare_rows
from sapwood.recipes.screen import Screen
from sapwood.records import Conversation, Document, Example, Media, Message, Row, Source, ToolCall, facts_of, hash_of_rows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_PREPARED", str(tmp_path / "prepared"))


def prepared(file: Path, chat: Chat, **knobs: object) -> Prepared:
    return prepare_files([str(file)], chat, DataConfig(max_refused=0.9, **knobs), Screen(quiet=True))  # type: ignore[arg-type]


def content(found: Prepared) -> list[object]:
    """Everything that training and evaluation could read of it."""
    both = ((found.train, found.examples), (found.held_out, found.held_out_examples))
    rows = [
        [
            (
                conversation,
                example.source,
                example.meta,
                [[array.tolist() for array in (r.prompt_T, r.completion_T, r.weights_T)] for r in example.rows],
            )
            for conversation, example in zip(*side, strict=True)
        ]
        for side in both
    ]
    records = sorted(found.ledger.records(), key=json.dumps)
    return [*rows, records, found.ledger.lines_for_people(), found.notes]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_disk_gives_what_memory_would(tmp_path: Path, name: str) -> None:
    chat = load(tmp_path / "model", name)
    file = write(tmp_path / "rows.jsonl", conversations(random.Random(1), 60))
    config = DataConfig(max_refused=0.9, held_out=8, cluster="topic")
    in_memory = prepare_rows(read([file]), chat, config)
    first, second = (prepared(file, chat, held_out=8, cluster="topic") for _ in range(2))
    not_kept = prepared(file, chat, held_out=8, cluster="topic", cache=False)
    assert [first.cached, second.cached, not_kept.cached] == [False, True, False]
    assert in_memory.ledger.refused, "some rows are refused"
    for found in (first, second, not_kept):
        assert content(found) == content(in_memory)
        assert hash_of_rows(found.examples) == hash_of_rows(in_memory.examples)
        assert np.array_equal(facts_of(found.examples).table_B, facts_of(in_memory.examples).table_B)
    assert [example.source for example in first.examples[1:4:2]] == [first.examples[place].source for place in (1, 3)]
    assert first.examples[-1].source == first.train[-1].source
    with pytest.raises(IndexError):
        first.examples[len(first.examples)]


def test_what_a_row_depends_on_makes_it_anew(tmp_path: Path) -> None:
    chat = load(tmp_path / "model", "chatml")
    file = write(tmp_path / "rows.jsonl", conversations(random.Random(2), 20))
    assert [prepared(file, chat).cached for _ in range(2)] == [False, True]
    assert prepared(file, chat, held_out=3, split_seed=4).cached, "who is held out needs no preparing"
    assert not prepared(file, chat, cluster="topic").cached
    assert not prepared(file, load(tmp_path / "other", "headers")).cached
    assert not prepared(file, load(tmp_path / "short", "chatml", config={"max_position_embeddings": 200})).cached
    stamp = file.stat()
    text = file.read_text()
    file.write_text(text.replace("a", "e", 1))
    import os

    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert not prepared(file, chat).cached, "same size, same time, other content"


@pytest.mark.parametrize("part", [*packed_module.PARTS, "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_said_and_made_good(tmp_path: Path, part: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat = load(tmp_path / "model", "chatml")
    file = write(tmp_path / "rows.jsonl", conversations(random.Random(3), 20))
    whole = content(prepared(file, chat))
    (broken,) = folder_of_prepared().glob(f"*/{part}")
    data = broken.read_bytes()
    if damage == "gone":
        broken.unlink()
    elif not data:
        broken.write_bytes(b"?")
    else:
        broken.write_bytes(data[:-1] if damage == "cut" else data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    screen = Screen()
    again = prepare_files([str(file)], chat, DataConfig(max_refused=0.9), screen)
    assert content(again) == whole
    assert not again.cached
    assert "damaged" in " ".join(capsys.readouterr().err.split())
    assert prepared(file, chat).cached


def test_a_write_that_is_broken_off_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load(tmp_path / "model", "chatml")
    file = write(tmp_path / "rows.jsonl", conversations(random.Random(4), 600))
    appended = PackedWriter.append
    chunks = 0

    def second_fails(self: PackedWriter, chunk: packed_module.Chunk) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise KeyboardInterrupt
        appended(self, chunk)

    monkeypatch.setattr(PackedWriter, "append", second_fails)
    with pytest.raises(KeyboardInterrupt):
        prepared(file, chat)
    assert not list(folder_of_prepared().glob("*/manifest.json"))
    monkeypatch.setattr(PackedWriter, "append", appended)
    assert not prepared(file, chat).cached
    assert len(list(folder_of_prepared().glob("*/manifest.json"))) == 1
    assert not list(folder_of_prepared().glob(".making*"))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load(tmp_path / "model", "chatml")
    file = write(tmp_path / "rows.jsonl", conversations(random.Random(5), 20))

    def full(self: PackedWriter, chunk: packed_module.Chunk) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PackedWriter, "append", full)
    for kept in (True, False):
        with pytest.raises(StorageError, match="the disk is full"):
            prepared(file, chat, cache=kept)
    assert not [path for path in folder_of_prepared().iterdir() if path.is_dir()]


def test_the_least_recently_used_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load(tmp_path / "model", "chatml")
    files = [write(tmp_path / f"{number}.jsonl", conversations(random.Random(number), 30)) for number in range(3)]
    for file in files[:2]:
        prepared(file, chat)
    size = sum(path.stat().st_size for path in folder_of_prepared().rglob("*") if path.is_file())
    assert prepared(files[0], chat).cached  # the first is used again, so the second is the older one
    monkeypatch.setattr(cache_module, "MOST_BYTES", size * 5 // 4)
    assert not prepared(files[2], chat).cached
    monkeypatch.setattr(cache_module, "MOST_BYTES", 1 << 40)
    assert [prepared(file, chat).cached for file in (files[0], files[2], files[1])] == [True, True, False]


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load(tmp_path / "model", "chatml")
    file = write(tmp_path / "rows.jsonl", conversations(random.Random(6), 20))
    appended = PackedWriter.append

    def and_grow(self: PackedWriter, chunk: packed_module.Chunk) -> None:
        with file.open("a") as more:
            more.write("\n")
        appended(self, chunk)

    monkeypatch.setattr(PackedWriter, "append", and_grow)
    with pytest.raises(DataError, match=r"rows\.jsonl: changed while being read"):
        prepared(file, chat)
    assert not list(folder_of_prepared().glob("*/manifest.json"))


NESTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=4), NESTS, max_size=3)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=TEXT,
    reasoning=st.none() | TEXT,
    tool_calls=st.lists(st.builds(ToolCall, TEXT, OBJECTS, st.none() | TEXT), max_size=2).map(tuple),
    tool_call_id=st.none() | TEXT,
    name=st.none() | TEXT,
    weight=st.sampled_from([0.0, 0.5, 1.0]),
    media=st.lists(st.builds(Media, st.just("image"), st.integers(0, 4), TEXT, TEXT), max_size=1).map(tuple),
)
SOURCE = Source("a.jsonl", 7)
RECORDS = st.one_of(
    st.builds(Document, TEXT, OBJECTS, st.just(SOURCE)),
    st.builds(
        Conversation, st.lists(MESSAGES, max_size=3).map(tuple), st.lists(OBJECTS, max_size=1).map(tuple), OBJECTS, OBJECTS, st.just(SOURCE)
    ),
)


@settings(max_examples=200)
@given(RECORDS)
def test_records_come_back_as_they_were(record: Conversation | Document) -> None:
    assert read_back(written(record), SOURCE) == record


def test_every_field_of_a_record_is_stored() -> None:
    """Whoever gives these a field must store it; then add it here."""
    known = {
        Message: "role content reasoning tool_calls tool_call_id name weight media",
        ToolCall: "name arguments id",
        Media: "kind at uri digest",
        Conversation: "messages tools template_arguments meta source",
        Document: "text meta source tokens weights",
        Row: "prompt_T completion_T weights_T media",
    }
    for kind, names in known.items():
        assert [field.name for field in dataclasses.fields(kind)] == names.split(), kind


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 3), min_size=1, max_size=9),
                st.lists(st.integers(0, 3), min_size=1, max_size=4),
                st.sampled_from([0.1, 0.5, 1.0]),
            ),
            min_size=1,
            max_size=4,
        ),
        max_size=5,
    )
)
def test_rows_that_share_beginnings_come_back(
    tmp_path_factory: pytest.TempPathFactory, examples: list[list[tuple[list[int], list[int], float]]]
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    record = Conversation((Message("user", "q"), Message("assistant", "a")), source=SOURCE)
    made = [
        Example(tuple(Row(np.array(p), np.array(c), np.full(len(c), w, dtype=np.float32)) for p, c, w in rows), SOURCE) for rows in examples
    ]
    writer = PackedWriter(folder)
    for example in made:
        maker = ChunkMaker()
        maker.add(record, example)
        writer.append(maker.chunk())
    writer.close()
    packed = Packed(folder, tuple(writer.files), lambda _: pytest.fail("nothing needs to be made anew"))
    assert hash_of_rows(packed.example(place) for place in range(len(packed))) == hash_of_rows(made)
    assert np.array_equal(packed.columns("fact")[0], facts_of(made).table_B)


def test_rows_of_uneven_weights_are_made_anew(tmp_path: Path) -> None:
    record = Conversation((Message("user", "q"), Message("assistant", "a")), source=SOURCE)
    example = Example((Row(np.array([1]), np.array([2, 3]), np.array([1, 0.5], dtype=np.float32)),), SOURCE)
    maker, writer = ChunkMaker(), PackedWriter(tmp_path)
    maker.add(record, example)
    writer.append(maker.chunk())
    writer.close()
    assert Packed(tmp_path, tuple(writer.files), lambda found: example if found == record else pytest.fail("another")).example(0) is example


def test_refused_rows_are_all_in_the_ledgers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sapwood.recipes.prepare as module

    monkeypatch.setattr(module, "KEPT_REFUSED", 2)
    chat = load(tmp_path / "model", "chatml")
    file = tmp_path / "rows.jsonl"
    good = json.dumps({"prompt": "q", "completion": "a"})
    file.write_text("\n".join([good] * 5 + ["{"] * 6 + [json.dumps({"prompt": "q", "completion": ""})] * 3))
    found = prepared(file, chat, held_out=0)
    assert len(found.ledger.refused) == 4
    refused = [record["line"] for record in found.ledger.records() if record.get("status") == "refused"]
    assert refused == list(range(6, 15))
    assert "  6 × broken JSON" in found.ledger.lines_for_people()
    assert "      … and 3 more" in found.ledger.lines_for_people()


def test_long_work_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and preparing say how far they are, and how fast."""
    monkeypatch.setattr(reading_module, "REPORT_ROWS", 10)
    located = locate([write(tmp_path / "rows.jsonl", conversations(random.Random(1), 35))])
    heard: list[tuple[int, int, str]] = []
    found = kept_scan(located, format=None, columns={}, only=None, keep=False, report=lambda *said: heard.append(said))
    assert [done for done, _, _ in heard] == [10, 20, 30]
    assert all("rows/s" in what for _, _, what in heard)
    heard.clear()
    prepared_rows(
        found,
        load(tmp_path / "model", "chatml"),
        cluster=None,
        keep=False,
        report=lambda *said: heard.append(said),
        say=lambda _: None,
    )
    assert heard[-1][:2] == (35, 35)
    assert "rows/s" in heard[-1][2]
