"""The generated file: the same from the same seed, and nothing in it that Sapwood would refuse."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from bench.conversations import conversations, write_conversations

from sapwood.data import read


def test_same_seed_same_file_and_a_longer_one_begins_alike(tmp_path: Path) -> None:
    digest = write_conversations(tmp_path / "a.jsonl", 300, seed=3)
    assert digest == hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert digest == write_conversations(tmp_path / "b.jsonl", 300, seed=3)
    assert digest != write_conversations(tmp_path / "c.jsonl", 300, seed=4)
    assert list(itertools.islice(conversations(1500, 3), 1100)) == list(conversations(1100, 3))


def test_rows_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    write_conversations(tmp_path / "rows.jsonl", 600)
    rows = list(conversations(600))
    assert read([tmp_path / "rows.jsonl"]).total == 600
    assert not read([tmp_path / "rows.jsonl"]).refused
    turns = [sum(message["role"] == "user" for message in row["messages"]) for row in rows]
    assert set(turns) == {1, 2, 3}
    with_system = sum(row["messages"][0]["role"] == "system" for row in rows)
    assert 0.4 < with_system / len(rows) < 0.6
    texts = [message["content"] for row in rows for message in row["messages"] if message["role"] != "system"]
    assert len(set(texts)) > 0.99 * len(texts), "texts that repeat would measure a cache"
