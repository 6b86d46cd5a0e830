"""The run directory: one writer, whole records, and nothing lost to a kill."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from sapwood.errors import DataError, StorageError
from sapwood.run import SCHEMA, Run, new_run_path, open_run, read_records, step_records, take_lock, write_atomic


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    opened = open_run(tmp_path / "run")
    yield opened
    opened.close()


def test_records_come_back_with_their_schema(run: Run) -> None:
    run.append("metrics", {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0})
    run.append("metrics", {"step": 3, "loss": 0.5})
    assert run.read("metrics") == [{"schema": SCHEMA, "step": step, "loss": loss} for step, loss in ((1, 2.0), (2, 1.0), (3, 0.5))]
    run.clear("metrics")
    assert run.read("metrics") == []


@pytest.mark.parametrize("torn", [b'{"schema":1,"step":2,"lo', b'{"schema":1', b"{"])
def test_a_torn_last_line_is_left_out_and_cut_before_the_next_record(run: Run, torn: bytes) -> None:
    run.append("metrics", {"step": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert [record["step"] for record in run.read("metrics")] == [1]
    run.append("metrics", {"step": 2})
    assert [record["step"] for record in run.read("metrics")] == [1, 2]


def test_a_whole_last_line_without_its_end_is_kept(run: Run) -> None:
    run.append("metrics", {"step": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"step":2}')
    assert [record["step"] for record in run.read("metrics")] == [1, 2]
    run.append("metrics", {"step": 3})
    assert [record["step"] for record in run.read("metrics")] == [1, 2, 3]


def test_damage_in_the_middle_and_newer_records_are_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"schema":1}\nrubbish\n{"schema":1}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:2: a damaged record"):
        read_records(file)
    file.write_bytes(b'{"schema":99}\n')
    with pytest.raises(DataError, match="newer Sapwood"):
        read_records(file)


def test_the_last_record_of_a_step_counts(run: Run) -> None:
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (2, 2.5), (3, 1.5)):  # killed after step 3, resumed from step 1
        run.append("metrics", {"kind": "train", "step": step, "loss": loss})
    run.append("metrics", {"kind": "eval", "step": 2, "loss": 9.0})
    found = [(record["step"], record["kind"], record["loss"]) for record in step_records(run.path / "metrics.jsonl")]
    assert found == [(1, "train", 3.0), (2, "eval", 9.0), (2, "train", 2.5), (3, "train", 1.5)]


def test_one_writer(run: Run) -> None:
    code = f"from pathlib import Path; from sapwood.run import open_run; open_run(Path({str(run.path)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "being written by another process" in other.stderr
    run.close()
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK])
def test_a_network_disk_without_locks_is_no_hindrance(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, "no locks here")

    monkeypatch.setattr("fcntl.flock", refused)
    open_run(tmp_path / "run").close()
    code = errno.EIO
    with (tmp_path / "file").open("ab") as file, pytest.raises(OSError, match="no locks here"):
        take_lock(file)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "verdict.json"
    write_atomic(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file], "no temporary file stays"


def test_names_of_runs(tmp_path: Path) -> None:
    assert new_run_path(tmp_path, "my").name == "my-1"
    (tmp_path / "my-1").mkdir()
    (tmp_path / "my-1" / "config.yaml").write_bytes(orjson.dumps({}))
    assert new_run_path(tmp_path, "my").name == "my-2"


@pytest.mark.parametrize(
    ("name", "folder"),
    [("my", "my-1"), ("train-*.jsonl", "train-.jsonl-1"), ("test@v2", "test-v2-1"), ("daté 1", "daté-1-1"), ("**", "run-1")],
)
def test_runs_are_called_after_data_but_not_after_patterns(tmp_path: Path, name: str, folder: str) -> None:
    assert new_run_path(tmp_path, name) == tmp_path / folder


def test_records_are_replaced_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append("kept", {"n": 1}, {"n": 2})
    run.replace("kept", *({**record, "n": record["n"] + 10} for record in run.read("kept")))
    assert [record["n"] for record in run.read("kept")] == [11, 12]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError):
        run.replace("kept", {"n": 0})
    assert [record["n"] for record in run.read("kept")] == [11, 12]


def test_a_folder_of_runs_is_not_made_a_run(tmp_path: Path) -> None:
    open_run(tmp_path / "runs" / "mine-1").close()
    with pytest.raises(StorageError, match=r"holds runs \(mine-1\).*--out .*runs/mine"):
        open_run(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine-1"], "nothing was written"
    open_run(tmp_path / "sweep").close()
    open_run(tmp_path / "sweep" / "lr=1").close()
    open_run(tmp_path / "sweep").close()  # what is a run itself may hold others
