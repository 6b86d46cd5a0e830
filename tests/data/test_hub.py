"""Data sets of the hub, from a server on this machine that speaks the few words that are needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from sapwood.data import read
from sapwood.data.hub import hub_files
from sapwood.errors import AssetError, DataError
from tiny.hub import OTHER, SHA, hub_of

README = b"""---
configs:
- config_name: german
  data_files:
  - split: train
    path: de/train-*.jsonl
  - split: test
    path: [de/test.jsonl]
- config_name: english
  data_files: en/*.jsonl
---
# A data set
"""


def row(text: str) -> bytes:
    return json.dumps({"prompt": "q", "completion": text}).encode() + b"\n"


PLAIN = {
    "data/train-0.jsonl": row("t0"),
    "data/train-1.jsonl": row("t1"),
    "data/test.csv": b"prompt,completion\nq,e\n",
    ".gitattributes": b"",
}
CONFIGS = {
    "README.md": README,
    "de/train-0.jsonl": row("d0"),
    "de/train-1.jsonl": row("d1"),
    "de/test.jsonl": row("dt"),
    "en/all.jsonl": row("en"),
}
SETS = {"owner/plain": PLAIN, "owner/configs": CONFIGS, "owner/script": {"script.py": b""}, "owner/one": {"dev.jsonl": row("v")}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with hub_of(SETS, tmp_path, monkeypatch) as asked:
        monkeypatch.chdir(tmp_path)
        yield asked


def answers(name: str) -> list[str]:
    return [c.messages[-1].content for c in read([name]).conversations]


def test_the_training_split_unless_another_is_named(hub: list[str]) -> None:
    assert answers("owner/plain") == answers("hf://owner/plain") == answers("hf://datasets/owner/plain") == ["t0", "t1"]
    assert answers("hf://owner/plain/test") == ["e"]
    assert answers("hf://owner/plain/data") == ["t0", "t1", "e"]
    assert answers("hf://owner/plain/data/train-1.jsonl") == answers("hf://owner/plain/data/*1.jsonl") == ["t1"]
    assert answers("owner/one") == ["v"], "the only one"
    said = read(["owner/plain"]).guess.split("\n")[0]
    assert said == f"hf://owner/plain at {SHA[:12]}: split train, 2 files; there are also the splits test: name one behind a slash"


def test_configurations_of_the_readme(hub: list[str]) -> None:
    assert answers("owner/configs") == answers("hf://owner/configs/german") == ["d0", "d1"]
    assert answers("hf://owner/configs/german/test") == answers("hf://owner/configs/test") == ["dt"]
    assert answers("hf://owner/configs/english") == ["en"]
    _, said = hub_files("hf://owner/configs")
    assert "split train of german, 2 files; there are also the splits test and the configurations english" in said


def test_a_revision_is_pinned_to_its_commit(hub: list[str]) -> None:
    for name in ("hf://owner/plain@v2", "hf://owner/plain@v2/test", "hf://owner/plain/test@v2"):
        files, said = hub_files(name)
        assert OTHER[:12] in said
        assert all(OTHER in str(path) for path in files)
    assert f"datasets/owner/plain/resolve/{OTHER}/data/train-0.jsonl" in hub
    before = len(hub)
    hub_files("hf://owner/plain@v2/test")
    assert not any("resolve" in path for path in hub[before:]), "what is in the cache is not fetched again"


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("owner/missing", AssetError, "there is none of that name, or it is private. Check the spelling"),
        ("owner/gated", AssetError, "it is gated: its owner asks you to agree to terms"),
        ("hf://owner/plain@v9", AssetError, "it has no revision 'v9'"),
        ("hf://owner/plain/tset", DataError, "no split, configuration, file or folder 'tset' in it. Did you mean 'test'"),
        ("hf://owner/configs/german/dev", DataError, "Splits: test, train. Configurations: german, english"),
        ("owner/script", DataError, "no files of rows that can be read (1 files, such as script.py)"),
        ("hf://owner", DataError, "expected hf://OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_give(hub: list[str], name: str, error: type[Exception], why: str) -> None:
    with pytest.raises(error) as caught:
        read([name])
    text = str(caught.value)
    assert why in text
    assert "owner" in text
    assert "\n" not in text


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssetError, match=r"hf://owner/plain: the data set could not be fetched: the hub could not be reached"):
        read(["owner/plain"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AssetError, match=r"the environment variable HF_HUB_OFFLINE forbids to ask the hub, and its cache holds nothing"):
        read(["owner/plain"])


def test_without_a_network_the_cache_serves(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched once is found again: offline by order, and where nobody answers; and nothing else is."""
    assert answers("owner/plain") == ["t0", "t1"]
    assert answers("hf://owner/plain/test@v2") == ["e"]
    os.utime(tmp_path / "hub/datasets--owner--plain/snapshots" / OTHER, (1, 1))
    count = len(hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _, said = hub_files("owner/plain")
    assert said.startswith(f"hf://owner/plain at {SHA[:12]}, from the cache without asking the hub: split train, 2 files"), "the newest"
    assert answers(f"hf://owner/plain@{OTHER}/test") == ["e"], "a commit by its name"
    (tmp_path / "hub/datasets--owner--plain/refs").mkdir()
    (tmp_path / "hub/datasets--owner--plain/refs/main").write_text(OTHER)
    assert answers("hf://owner/plain/test") == ["e"], "what `hf download` noted as main goes first"
    with pytest.raises(DataError, match="no split, configuration, file or folder 'dev' in it"):
        read(["hf://owner/plain/dev"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert answers("hf://owner/plain/test") == ["e"]
    for name in ("owner/one", "hf://owner/plain@v7"):
        with pytest.raises(AssetError, match="could not be reached"):
            read([name])
    assert len(hub) == count


def test_a_refusal_of_the_hub_is_no_reason_to_take_the_cache(hub: list[str], tmp_path: Path) -> None:
    """Access that was taken away stays away, whatever was fetched before."""
    kept = tmp_path / "hub/datasets--owner--gated/snapshots" / SHA
    kept.mkdir(parents=True)
    (kept / "train.jsonl").write_bytes(row("secret"))
    with pytest.raises(AssetError, match="it is gated"):
        read(["owner/gated"])
