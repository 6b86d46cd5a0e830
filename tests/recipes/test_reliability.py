"""What goes wrong around a run is told in a sentence, costs nothing that was saved, and the run goes on afterwards to the same end."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors
import torch

import sapwood
from sapwood.cli.main import main
from sapwood.errors import CheckpointError, StorageError, storage
from sapwood.run import read_records, saved_steps
from sapwood.train.step import is_out_of_memory
from tiny.folder import write_model, write_rows

KNOBS = {"dtype": "fp32", "max_new_tokens": 2, "shots": [], "held_out": 12, "batch": 4, "save_every": 3, "samples": 1, "quiet": True}
ADAPTER = Path("adapter") / "adapter_model.safetensors"


@contextmanager
def no_file_longer_than(count: int) -> Iterator[None]:
    """What a full disk does, without one: the system refuses to write more than so many bytes into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reliability")
    write_model(folder / "model")
    write_rows(folder / "my.jsonl", 48)
    train(folder, folder / "whole")
    return folder


def train(place: Path, run: Path, **turned: object) -> None:
    sapwood.sft(place / "my.jsonl", model=place / "model", out=run, **{"budget": 512, **KNOBS, **turned})


@pytest.mark.parametrize(("count", "what"), [(4_000, ".jsonl"), (40_000, "the adapter"), (150_000, "the checkpoint")])
def test_a_disk_that_refuses_is_told_and_the_run_goes_on_where_it_was(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, what: str
) -> None:
    run = tmp_path / "run"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in KNOBS.items() if name not in ("shots", "quiet")]
    words = ["sft", str(place / "my.jsonl"), "--model", str(place / "model"), "--out", str(run), "--budget=512", "--shots", "", *flags]
    with no_file_longer_than(count):
        assert main(words) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("sapwood sft: Could not write ")
    assert what in last
    assert "larger than is allowed here" in last
    assert not (run / "adapter").exists(), "nothing half written looks whole"
    train(place, run)
    assert (run / ADAPTER).read_bytes() == (place / "whole" / ADAPTER).read_bytes()


def test_a_full_disk_in_words_of_other_languages_is_the_same(tmp_path: Path) -> None:
    error = safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match="disk is full"), storage(tmp_path, "write"):
        raise error
    with pytest.raises(safetensors.SafetensorError, match="header"), storage(tmp_path, "read"):
        raise safetensors.SafetensorError("header too large")
    with pytest.raises(ValueError, match="os error 28"), storage(tmp_path, "read"):
        raise ValueError("a user's own (os error 28)")


@pytest.mark.parametrize("name", ["metrics", "samples", "scores"])
def test_a_disk_that_is_full_at_any_record_leaves_a_run_that_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The last record of each file is torn in its middle, as by a disk that has room for half of it."""
    run = tmp_path / "run"
    whole = read_records(place / "whole" / f"{name}.jsonl")
    original, written = sapwood.run.Run.append, []

    def append(self: sapwood.run.Run, to: str, *records: dict[str, object]) -> None:
        written.extend(records if to == name else [])
        if len(written) == len(whole) and to == name:
            with (self.path / f"{name}.jsonl").open("ab") as file:
                file.write(b'{"schema": 1, "st')
            with storage(self.path, "write"):
                raise OSError(errno.ENOSPC, "No space left on device")
        original(self, to, *records)

    with monkeypatch.context() as patch:
        patch.setattr(sapwood.run.Run, "append", append)
        with pytest.raises(StorageError, match="disk is full"):
            train(place, run)
    train(place, run)
    assert (run / ADAPTER).read_bytes() == (place / "whole" / ADAPTER).read_bytes()
    kept = {
        (record.get("step"), record.get("kind"), record.get("item"), record.get("arm")) for record in read_records(run / f"{name}.jsonl")
    }
    assert kept == {(record.get("step"), record.get("kind"), record.get("item"), record.get("arm")) for record in whole}


def test_rows_that_changed_in_any_way_are_another_run(place: Path, tmp_path: Path) -> None:
    lines = (place / "my.jsonl").read_text().splitlines()
    changed = {
        "edited": [lines[0].replace("blue", "red"), *lines[1:]],
        "added": [*lines, lines[0].replace("0: ", "99: ")],
        "reordered": [*lines[1:], lines[0]],
        "left out": lines[1:],
    }
    before = {path: path.read_bytes() for path in (place / "whole").rglob("*") if path.is_file()}
    for what, rows in changed.items():
        (tmp_path / what).mkdir()
        (tmp_path / what / "my.jsonl").write_text("\n".join(rows) + "\n")
        config = (place / "whole" / "config.yaml").read_text()
        run = place / "whole"
        try:
            (run / "config.yaml").write_text(config.replace(str(place / "my.jsonl"), str(tmp_path / what / "my.jsonl")))
            with pytest.raises(CheckpointError, match="begun with other rows"):
                sapwood.sft(tmp_path / what / "my.jsonl", model=place / "model", out=run, **{"budget": 512, **KNOBS})
        finally:
            (run / "config.yaml").write_text(config)
    assert {path: path.read_bytes() for path in (place / "whole").rglob("*") if path.is_file()} == before


def test_what_does_not_change_the_result_may_be_turned_when_a_run_goes_on(place: Path, tmp_path: Path) -> None:
    """The advice of a run that has no memory left is a smaller budget: the run that stopped must take it."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        stop_after(place, run, 4)
    assert saved_steps(run)[-1] >= 4
    train(place, run, budget=64, save_every=2, keep=1, eval_every=2, samples=2)
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (place / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [{record["step"]: record["loss"] for record in records if record["kind"] == "train"} for records in (told, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(saved_steps(run)) == 1
    for turned in ({"lr": 1e-5}, {"seed": 1}, {"batch": 2}, {"epochs": 2.0}):
        with pytest.raises(CheckpointError, match="other settings"):
            train(place, run, budget=64, save_every=2, keep=1, eval_every=2, samples=2, **turned)


def stop_after(place: Path, run: Path, step: int) -> None:
    """A run that the keyboard stops behind a step."""
    live = sys.modules["sapwood.recipes.live"]
    with pytest.MonkeyPatch.context() as patch:
        original = live.Watch.report

        def report(self: object, done: object) -> None:
            original(self, done)
            if done.step == step:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        patch.setattr(live.Watch, "report", report)
        train(place, run)


def test_questions_are_asked_once_a_step_however_often_a_run_stops(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            stop_after(place, run, step)
    train(place, run)
    asked = [(record["step"], record["item"]) for record in read_records(run / "samples.jsonl")]
    assert len(set(asked)) == len(asked)
    assert asked == [(record["step"], record["item"]) for record in read_records(place / "whole" / "samples.jsonl")]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is read-only to this user")
def test_a_folder_that_cannot_be_written_is_told_before_the_model_loads(place: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="no permission there"):
        train(place, tmp_path / "locked" / "run")


def test_memory_that_ran_out_is_known_by_what_torch_really_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
