"""`a.jsonl*2`: from the name that a person gives to the rows that an epoch trains."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sapwood.chat import Chat
from sapwood.data.locations import locate, weight_of
from sapwood.errors import ConfigError, DataError
from sapwood.recipes.prepare import DataConfig, Prepared, prepare, scan_files
from tiny.folder import write_model, write_rows


def prepared(chat: Chat, *names: str, **config: object) -> Prepared:
    settings = DataConfig(**config)  # type: ignore[arg-type]
    return prepare(scan_files(names, settings, lambda done, total, what: None, weighted=True), chat, settings)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(write_model(tmp_path_factory.mktemp("model")))


def write(file: Path, letter: str, count: int) -> Path:
    rows = [[{"role": "user", "content": f"{letter} {number}"}, {"role": "assistant", "content": "yes"}] for number in range(count)]
    text = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def test_each_name_weighs_its_own_rows(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "a.jsonl", "one", 20)
    write(tmp_path / "folder" / "b.jsonl.gz", "two", 10)
    write(tmp_path / "folder" / "c.jsonl", "three", 10)
    found = prepared(chat, f"{tmp_path}/a.jsonl*2.5", f"{tmp_path}/folder*.5", held_out=0.2)
    mix = found.mixture
    assert mix is not None
    assert mix.names == (f"{tmp_path}/a.jsonl", f"{tmp_path}/folder")
    assert mix.weights == (2.5, 0.5)
    for conversation, source in zip(found.train, mix.source_B, strict=True):
        assert conversation.source is not None
        assert ("a.jsonl" in conversation.source.file) == (source == 0)
    assert mix.counts == [round(2.5 * mix.sizes[0]), round(0.5 * mix.sizes[1])]
    said = "\n".join(found.notes)
    assert f"{mix.sizes[0]:,} trained rows × 2.5 = {mix.counts[0]:,} an epoch" in said
    again = prepared(chat, f"{tmp_path}/a.jsonl", f"{tmp_path}/folder", held_out=0.2)
    assert again.mixture is None
    assert [example.where for example in again.examples] == [example.where for example in found.examples], "weights hold nothing out"


def test_a_file_that_is_called_so_and_a_pattern_that_finds_files_have_no_weight(tmp_path: Path) -> None:
    write_rows(tmp_path / "part*2")
    write_rows(tmp_path / "rows-2")
    assert weight_of(f"{tmp_path}/part*2") == (f"{tmp_path}/part*2", 1.0)
    assert weight_of(f"{tmp_path}/row*2") == (f"{tmp_path}/row*2", 1.0)
    assert weight_of(f"{tmp_path}/rows-2*3") == (f"{tmp_path}/rows-2", 3.0)
    assert weight_of("sarcasm*0.25") == ("sarcasm", 0.25)
    assert locate([tmp_path / "rows-2"]).parts[0].weight == 1.0
    with pytest.raises(DataError, match="a weight of 0 would train none"):
        locate([f"{tmp_path}/rows-2*0"])


def test_a_weight_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"weights are for training .* Give .*rows\.jsonl alone"):
        scan_files([f"{file}*2"], DataConfig(), lambda done, total, what: None)
