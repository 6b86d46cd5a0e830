"""Checkpoints are whole or absent, and what is damaged is noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.errors import CheckpointError, StorageError
from sapwood.run import saved_steps
from sapwood.train import checkpoint as checkpoint_file
from sapwood.train.checkpoint import made_with, newest_checkpoint, save_checkpoint


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), float(step)), "step.a": torch.tensor(float(step)), "bf16": torch.ones(4, dtype=torch.bfloat16)}


MINE = {"rows": "a", "settings": "b", "model": "c"}


def save(run: Path, step: int, *, keep: int = 2, **other: str) -> Path:
    return save_checkpoint(run, step, tensors(step), budget=1024, fingerprint={**MINE, **other}, keep=keep)


def read(run: Path) -> tuple[int | None, list[str]]:
    """Step of the checkpoint that is used, and what was said."""
    said: list[str] = []
    found = newest_checkpoint(run, MINE, said.append)
    if found is None:
        return None, said
    assert found.budget == 1024
    for name, tensor in tensors(found.step).items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    return found.step, said


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    assert read(tmp_path) == (None, [])
    save(tmp_path, 7)
    assert read(tmp_path) == (7, [])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept_by_number_not_by_name(tmp_path: Path, keep: int) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=keep)
    assert saved_steps(tmp_path) == [8, 9, 10, 11][-keep:]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(f"step-{s}" for s in [8, 9, 10, 11][-keep:])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "tensors truncated": lambda p: os.truncate(p / "state.safetensors", 40),
    "tensors empty": lambda p: os.truncate(p / "state.safetensors", 0),
    "tensors flipped": lambda p: flip(p / "state.safetensors", -3),
    "tensors deleted": lambda p: (p / "state.safetensors").unlink(),
    "numbers truncated": lambda p: os.truncate(p / "state.json", 20),
    "numbers empty": lambda p: os.truncate(p / "state.json", 0),
    "numbers deleted": lambda p: (p / "state.json").unlink(),
    "numbers garbage": lambda p: (p / "state.json").write_bytes(b"\xff\x00{"),
    "numbers of another kind": lambda p: (p / "state.json").write_text("[1, 2]"),
    "numbers without keys": lambda p: (p / "state.json").write_text("{}"),
    "another step": lambda p: edit(p, "step", 3),
    "another budget": lambda p: edit(p, "budget", 2048),
    "another fingerprint": lambda p: edit(p, "fingerprint", "nine"),
    "folder emptied": lambda p: (shutil.rmtree(p), p.mkdir()),
    "a file in its place": lambda p: (shutil.rmtree(p), p.write_text("")),
}


def edit(path: Path, key: str, value: object) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, key: value}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 2)
    DAMAGES[damage](save(tmp_path, 4))
    step, said = read(tmp_path)
    assert step == 2
    assert len(said) == 1
    assert "step-4 is damaged" in said[0]
    assert "checkpoint before" in said[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_whole_is_an_error_not_a_start_from_zero(tmp_path: Path, damage: str) -> None:
    for path in [save(tmp_path, 2), save(tmp_path, 4)]:
        DAMAGES[damage](path)
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints are damaged\. Delete .*checkpoints"):
        read(tmp_path)


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run = tmp_path_factory.mktemp("flip")
    save(run, 2)
    path = save(run, 4) / data.draw(st.sampled_from(["state.json", "state.safetensors"]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    else:
        path.write_bytes(content[:place])
    step, said = read(run)
    assert (step, len(said)) == (2, 1)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"rows": "x"}, "on other rows"),
        ({"settings": "x"}, "on other settings"),
        ({"model": "x"}, "on another model"),
        ({"rows": "x", "model": "x"}, "on other rows and another model"),
    ],
)
def test_a_run_of_something_else_is_refused_by_what_differs(tmp_path: Path, other: dict[str, str], named: str) -> None:
    save(tmp_path, 2, **other)
    with pytest.raises(CheckpointError, match=rf"step-2 belongs to a run {named}\. .*--out"):
        read(tmp_path)


def test_what_computes_otherwise_now_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 2)
    now = made_with()
    assert set(now) == {"sapwood", "torch", "transformers", "peft", "device", "Sapwood's training code"}
    monkeypatch.setattr(checkpoint_file, "made_with", lambda: {**now, "torch": "9.9", "Sapwood's training code": "abc"})
    step, said = read(tmp_path)
    assert step == 2
    [sentence] = said
    assert f"torch ({now['torch']} then, 9.9 now)" in sentence
    assert "training code" in sentence
    assert "peft" not in sentence
    assert "on the same rows, but not to the same bits" in sentence


def test_a_good_checkpoint_outlives_a_damaged_later_one(tmp_path: Path) -> None:
    """Resumed from step 4 with another interval: step 6 must not be deleted in favour of the damaged step 8."""
    save(tmp_path, 4)
    DAMAGES["tensors flipped"](save(tmp_path, 8))
    assert read(tmp_path)[0] == 4
    save(tmp_path, 6, keep=1)
    assert saved_steps(tmp_path) == [6]
    assert read(tmp_path) == (6, [])


class CrashError(BaseException):
    """The power is cut: nothing after it runs but what the interpreter insists on."""


def boundaries(monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException) -> list[str]:
    """Let the `fail_at`-th call that touches the disk fail; returns the calls seen, filled as they come."""
    seen: list[str] = []

    def wrap(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def failing(*arguments: object, **keywords: object) -> object:
            seen.append(name)
            if len(seen) == fail_at:
                raise error
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, failing)

    wrap(os, "fsync")
    wrap(os, "replace")
    wrap(checkpoint_file, "_write")
    wrap(Path, "mkdir")
    return seen


@pytest.mark.parametrize("error", [CrashError(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only")])
def test_a_crash_at_any_write_leaves_whole_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    save(tmp_path / "count", 2)
    with monkeypatch.context() as patch:
        calls = boundaries(patch, 0, error)
        save(tmp_path / "count", 4)
    assert {"fsync", "replace", "_write", "mkdir"} <= set(calls)
    assert calls.index("replace") > max(i for i, name in enumerate(calls) if name == "_write"), "renamed before it was written"
    for place in range(1, len(calls) + 1):
        run = tmp_path / f"run-{place}"
        save(run, 2)
        save(run, 4)
        before = {path.name: path.read_bytes() for path in (run / "checkpoints" / "step-4").iterdir()}
        with monkeypatch.context() as patch:
            boundaries(patch, place, error)
            expected = StorageError if isinstance(error, OSError) else CrashError
            with pytest.raises(expected):
                save(run, 6)
        assert {path.name: path.read_bytes() for path in (run / "checkpoints" / "step-4").iterdir()} == before
        assert 2 in saved_steps(run), "the older ones are untouched"
        step, said = read(run)
        assert step in (4, 6)
        assert said == []
        save(run, 6)
        assert read(run) == (6, [])
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-4", "step-6"], "nothing is left over"


def test_the_seal_covers_every_number(tmp_path: Path) -> None:
    state = orjson.loads((save(tmp_path, 2) / "state.json").read_bytes())
    assert set(state) == {"schema", "step", "budget", "fingerprint", "made_with", "sha256", "seal"}
