"""A run that is killed again and again ends with the very bytes of one that was left alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from sapwood.run import read_records, saved_steps
from train.killed_runs import STEPS, kill_after, last_step, start
from train.tiny_training import trained_steps

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")]
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    finish(folder)
    return folder


def finish(folder: Path) -> None:
    process = start(folder)
    process.join()
    assert process.exitcode == 0


def assert_same(folder: Path, untouched: Path) -> None:
    assert (folder / ADAPTER).read_bytes() == (untouched / ADAPTER).read_bytes()
    ours, theirs = trained_steps(folder), trained_steps(untouched)
    assert [record["step"] for record in ours] == list(range(1, STEPS + 1))
    for key in ("loss", "lr", "grad_norm", "row_tokens", "unique_tokens"):
        assert [record[key] for record in ours] == [record[key] for record in theirs], key


def test_killed_ten_times(tmp_path: Path, untouched: Path) -> None:
    folder = tmp_path / "run"
    rng = np.random.default_rng(0)
    kills = 0
    for goal in [0, *np.linspace(1, STEPS - 6, 9).astype(int).tolist()]:
        begun_at = max(saved_steps(folder), default=0)
        process = start(folder)
        kills += kill_after(process, folder, max(goal, begun_at + 1) if goal else 0, float(rng.uniform(0, 0.03)))
    assert kills == 10
    finish(folder)
    assert_same(folder, untouched)
    repeated = len([r for r in read_records(folder / "metrics.jsonl") if r["kind"] == "train"]) - STEPS
    assert repeated >= 0
    assert (folder.with_suffix(".said")).read_text().count("Continuing from") >= 8


def test_killed_and_its_checkpoints_damaged(tmp_path: Path, untouched: Path) -> None:
    folder, damaged = tmp_path / "run", []
    for number, goal in enumerate((6, 14, 22, 29)):
        assert kill_after(start(folder), folder, goal, 0.004 * number)
        newest = folder / "checkpoints" / f"step-{saved_steps(folder)[-1]}"
        damaged.append(newest.name)
        match number:
            case 0:
                os.truncate(newest / "state.safetensors", 1000)
            case 1:
                content = bytearray((newest / "state.safetensors").read_bytes())
                content[len(content) // 2] ^= 1
                (newest / "state.safetensors").write_bytes(content)
            case 2:
                (newest / "state.safetensors").unlink()
            case 3:
                state = (newest / "state.json").read_text()
                (newest / "state.json").write_text(state.replace('"budget":120', '"budget":125'))
    assert last_step(folder) < STEPS
    finish(folder)
    assert_same(folder, untouched)
    said = folder.with_suffix(".said").read_text()
    for name in damaged:
        assert f"{name} is damaged" in said
