"""Checkpoints that are whole or absent.

    checkpoints/step-N/state.safetensors    parameters, moments, masters
    checkpoints/step-N/state.json           step, what the run was made of (fingerprint), the budget, sha256 of the tensors

A checkpoint is written beside its place, flushed to the disk and renamed into it; `state.json` carries the checksum, so a
truncated or flipped file is noticed on reading and the checkpoint before it is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import safetensors.torch
from torch import Tensor

from sapwood.errors import CheckpointError, storage
from sapwood.run import SCHEMA


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    step: int
    budget: int
    tensors: dict[str, Tensor]
    path: Path


def save_checkpoint(run: Path, step: int, tensors: dict[str, Tensor], *, budget: int, fingerprint: str, keep: int) -> Path:
    """Write `checkpoints/step-N` and delete all but the newest `keep`. Raises `StorageError`; older ones are then untouched."""
    folder = run / "checkpoints"
    path, temporary = folder / f"step-{step}", folder / f".step-{step}.tmp"
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    state = {
        "schema": SCHEMA,
        "step": step,
        "budget": budget,
        "fingerprint": fingerprint,
        "sha256": {"state.safetensors": hashlib.sha256(data).hexdigest()},
    }
    with storage(path, "write the checkpoint"):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write(temporary / "state.safetensors", data)
            _write(temporary / "state.json", orjson.dumps(state))
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _sync_folder(folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for old in saved_steps(run)[:-keep]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)
    return path


def saved_steps(run: Path) -> list[int]:
    """Steps of which a checkpoint stands in the run directory, ascending."""
    names = (path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in names if name.isdigit())


def newest_checkpoint(run: Path, fingerprint: str, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named through `say` and passed over.

    Raises `CheckpointError` if the run has checkpoints but was made of other data, settings or another model, or if none
    of them is whole.
    """
    steps = saved_steps(run)
    for step in reversed(steps):
        path = run / "checkpoints" / f"step-{step}"
        try:
            return _read(path, fingerprint)
        except _DamagedError as error:
            say(f"{path} is damaged ({error}); trying the checkpoint before it.")
    if steps:
        raise CheckpointError(f"{run}: all {len(steps)} checkpoints are damaged. Delete {run / 'checkpoints'} to train from the start.")
    return None


class _DamagedError(Exception):
    pass


def _read(path: Path, fingerprint: str) -> Checkpoint:
    try:
        state = orjson.loads((path / "state.json").read_bytes())
        data = (path / "state.safetensors").read_bytes()
        expected = state["sha256"]["state.safetensors"]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _DamagedError(f"unreadable: {type(error).__name__}") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise _DamagedError("its checksum does not match")
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} belongs to a run on other data, settings or another model. To continue it, give it what it was started with; "
            "to start anew, choose another folder with --out."
        )
    return Checkpoint(state["step"], state["budget"], safetensors.torch.load(data), path)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # a rename is durable once its folder is
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
