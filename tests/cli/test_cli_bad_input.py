"""Whatever a person gets wrong: one clear paragraph, an exit code, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sapwood.cli.main import main
from tiny.folder import write_model, write_rows

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), context=128)


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect a refusal, and give its words."""
    assert main(arguments) != 0
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    paragraph = error[error.rindex("sapwood ") :] if "sapwood " in error else error
    assert paragraph
    return error


def rows(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


CASES = {
    "an empty file": ([], "empty"),
    "a broken line": ([GOOD, '{"messages": [', GOOD], ":2"),
    "no assistant turn": ([GOOD, {"messages": [{"role": "user", "content": "hi"}]}], "assistant"),
    "an unknown role": ([GOOD, {"messages": [{"role": "asistant", "content": "hi"}]}], "asistant"),
    "an empty completion": ([GOOD, {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}], "empty"),
    "a row longer than the context": (
        [GOOD, {"messages": [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "hello"}]}],
        "at most 128 are allowed",
    ),
    "two formats": ([GOOD, {"prompt": "a", "completion": "b"}], "messages"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_rows(case: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, expected = CASES[case]
    file = rows(tmp_path / "my.jsonl", *lines)
    before = file.read_bytes()
    error = refuse(["sft", str(file), "--model", str(model), "--out", str(tmp_path / "run")], capsys)
    assert expected in error
    assert "my.jsonl" in error
    assert file.read_bytes() == before
    assert not (tmp_path / "run").exists(), "nothing is begun"


def test_a_gigabyte_line(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my.jsonl"
    with file.open("wb") as out:
        out.truncate(1 << 30)  # sparse
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refuse(["sft", str(file), "--model", str(model)], capsys)
    assert "my.jsonl" in error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000, "kibibytes: the line is not held in memory"


def test_a_folder_without_a_file_that_can_be_read(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.docx").write_bytes(b"PK")
    error = refuse(["sft", str(tmp_path / "data"), "--model", str(model)], capsys)
    assert str(tmp_path / "data") in error
    assert ".jsonl" in error


def test_a_model_without_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "bare", template=None)
    error = refuse(["sft", str(write_rows(tmp_path / "my.jsonl")), "--model", str(folder)], capsys)
    assert "template" in error
    assert "--template" in error


def test_unknown_options_and_keys(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "my.jsonl")
    assert "Did you mean 'epochs'" in refuse(["sft", str(file), "--epoch", "2"], capsys)
    assert "Did you mean 'r' or 'lr'?" in refuse(["sft", str(file), "--lora.r", "2"], capsys), "written as a sweep's knobs are"
    (tmp_path / "run.yaml").write_text("train:\n  optim:\n    lrr: 1\n")
    error = refuse(["sft", str(tmp_path / "run.yaml")], capsys)
    assert "train.optim.lrr" in error
    assert "Did you mean 'train.optim.lr'" in error
    assert "held_out is 3.5" in refuse(["sft", str(file), "--model", str(model), "--held-out", "3.5"], capsys)


def test_no_permission_to_write(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "my.jsonl")
    if os.geteuid() == 0:
        target = "/proc/sapwood"  # not even root may write here
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = str(tmp_path / "locked" / "run")
    error = refuse(["sft", str(file), "--model", str(model), "--out", target], capsys)
    assert target in error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes, where ENOSPC is real."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def fill(mount: Path) -> None:
    """Take every byte that is free there."""
    with (mount / "filler").open("ab", buffering=0) as filler:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):  # ENOSPC
                while True:
                    filler.write(b"x" * size)


def sft_there(mount: Path, file: Path, model: Path, *more: str) -> list[str]:
    arguments = ["sft", str(file), "--model", str(model), "--out", str(mount / "run"), "--dtype", "fp32", "--shots", "2", "--dev", "4"]
    arguments += ["--max-new-tokens", "4", "--held-out", "24", "--save-every", "2", "--budget", "512", *more]
    return [sys.executable, "-m", "sapwood", *arguments]


def test_a_disk_that_is_too_small_is_told_before_training(small_disk: Path, tmp_path: Path, model: Path) -> None:
    file = write_rows(tmp_path / "my.jsonl", 200)
    fill(small_disk)
    os.truncate(small_disk / "filler", (4 << 20) - (400 << 10))
    done = subprocess.run(sft_there(small_disk, file, model, "--r", "32"), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "KiB are free. Free some space, name another disk with --out" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (small_disk / "run" / "checkpoints").exists(), "nothing was trained"


def test_a_full_disk_loses_nothing(small_disk: Path, tmp_path: Path, model: Path) -> None:
    """Somebody else fills the disk while a run that had room trains on it; with room again, the run goes on from what it had saved."""
    file = write_rows(tmp_path / "my.jsonl", 200)
    command = sft_there(small_disk, file, model, "--epochs", "6", "--keep", "1")
    checkpoints = small_disk / "run" / "checkpoints"
    said = tmp_path / "said.txt"
    with said.open("w") as screen, subprocess.Popen(command, stderr=screen, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(checkpoints.glob("step-*")):
            time.sleep(0.02)
        while process.poll() is None:
            fill(small_disk)
            time.sleep(0.02)
    error = said.read_text()
    assert process.returncode == 1, error
    assert "disk is full" in error
    assert "Traceback" not in error
    left = [path.name for path in (small_disk / "run").rglob("*") if path.name.endswith(".tmp")]
    assert left == [], "no half file"
    [saved] = checkpoints.glob("step-*")
    (small_disk / "filler").unlink()
    done = subprocess.run([sys.executable, "-m", "sapwood", "sft", str(small_disk / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Continuing from {saved.name}." in done.stderr


def test_a_file_of_rows_behind_json_is_not_written_over(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([GOOD, GOOD], indent=1))
    before = file.read_bytes()
    assert "not written over" in refuse(["doctor", "--model", str(model), "--json", str(file)], capsys)
    assert file.read_bytes() == before
