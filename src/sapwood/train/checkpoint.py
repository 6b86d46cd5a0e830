"""Checkpoints that are whole or absent.

    checkpoints/step-N/state.safetensors    parameters, moments, masters
    checkpoints/step-N/state.json           step, what the run was made of (fingerprint) and with (versions), the budget, sha256 of the
                                            tensors and of itself

A checkpoint is written beside its place, flushed to the disk and renamed into it; `state.json` carries the checksums, so a
truncated or flipped file, be it of tensors or of numbers, is noticed on reading and the checkpoint before it is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import safetensors.torch
import torch
from torch import Tensor

from sapwood.errors import CheckpointError, storage
from sapwood.model import device_for, device_name
from sapwood.run import SCHEMA, saved_steps

PARTS = {"rows": "other rows", "settings": "other settings", "model": "another model"}
"""What a fingerprint holds, and what is said where a part of it differs."""

PACKAGES = ("sapwood", "torch", "transformers", "peft")
ROOMS = ("attention", "forest", "model", "records", "train")
"""Folders of Sapwood whose code decides what a step computes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    step: int
    budget: int
    tensors: dict[str, Tensor]
    path: Path


@cache
def made_with() -> dict[str, str]:
    """What computes here: versions, and a hash of the code that training runs, by name. Read once a process."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for file in sorted((Path(__file__).parent.parent / room).glob("*.py")):
            digest.update(file.read_bytes())
    return {name: version(name) for name in PACKAGES} | {
        "device": device_name(device_for()),
        "Sapwood's training code": digest.hexdigest()[:12],
    }


def save_checkpoint(
    run: Path,
    step: int,
    tensors: dict[str, Tensor],
    *,
    budget: int,
    fingerprint: Mapping[str, str],
    keep: int,
    pinned: int | None = None,
) -> Path:
    """Write `checkpoints/step-N` and keep it with the `keep - 1` before it. Raises `StorageError`; older ones are then untouched.

    Later ones are deleted too: they are damaged, or this step would not have been reached from before them. The one of step
    `pinned` stays however old it is.
    """
    folder = run / "checkpoints"
    path, temporary = folder / f"step-{step}", folder / f".step-{step}.tmp"
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    state = {
        "schema": SCHEMA,
        "step": step,
        "budget": budget,
        "fingerprint": dict(fingerprint),
        "made_with": {**made_with(), "threads": str(torch.get_num_threads())},
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with storage(path, "write the checkpoint"):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write(temporary / "state.safetensors", data)
            _write(temporary / "state.json", orjson.dumps({**state, "seal": _seal(state)}))
            _sync_folder(temporary)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _sync_folder(folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    steps = saved_steps(run)
    kept = [saved for saved in steps if saved <= step][-keep:]
    for other in steps:
        if other not in kept and other != pinned:
            shutil.rmtree(folder / f"step-{other}", ignore_errors=True)
    return path


def newest_checkpoint(run: Path, fingerprint: Mapping[str, str], say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named through `say` and passed over, and so is what computes otherwise now.

    Raises `CheckpointError` if the run has checkpoints but was made of other data, settings or another model, or if none
    of them is whole.
    """
    steps = saved_steps(run)
    for step in reversed(steps):
        path = run / "checkpoints" / f"step-{step}"
        try:
            return _read(path, fingerprint, say)
        except _DamagedError as error:
            say(f"{path} is damaged ({error}); trying the checkpoint before it.")
    if steps:
        raise CheckpointError(f"{run}: all {len(steps)} checkpoints are damaged. Delete {run / 'checkpoints'} to train from the start.")
    return None


def checkpoint_at(run: Path, step: int, fingerprint: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint of one step, or None where it does not stand whole. Raises `CheckpointError` if it is another run's."""
    try:
        return _read(run / "checkpoints" / f"step-{step}", fingerprint, lambda _: None)
    except _DamagedError:
        return None


class _DamagedError(Exception):
    pass


def _read(path: Path, fingerprint: Mapping[str, str], say: Callable[[str], None]) -> Checkpoint:
    try:
        state = orjson.loads((path / "state.json").read_bytes())
        data = (path / "state.safetensors").read_bytes()
    except FileNotFoundError as error:
        raise _DamagedError(f"{Path(str(error.filename)).name} is missing") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise _DamagedError(f"state.json or state.safetensors cannot be read: {error}") from None
    if isinstance(state, dict) and "seal" not in state:
        raise _DamagedError("state.json has no checksum: an earlier Sapwood wrote it, or another program")
    if not isinstance(state, dict) or state.pop("seal") != _seal(state):
        raise _DamagedError("state.json does not match its checksum")
    if hashlib.sha256(data).hexdigest() != state["sha256"]:
        raise _DamagedError("state.safetensors does not match its checksum")
    before = state["fingerprint"] if isinstance(state["fingerprint"], dict) else {}
    changed = [what for part, what in PARTS.items() if before.get(part) != fingerprint.get(part)]
    if changed:
        raise CheckpointError(
            f"{path} belongs to a run on {' and '.join(changed)}. To continue it, give it what it was started with; "
            "to start anew, choose another folder with --out."
        )
    now = {**made_with(), "threads": str(torch.get_num_threads())}
    was = state.get("made_with", {})
    moved = [f"{name} ({was.get(name, 'unknown')} then, {now[name]} now)" for name in now if was.get(name) != now[name]]
    if moved:
        say(f"Since {path.name} something has changed: {', '.join(moved)}. The run goes on, on the same rows, but not to the same bits.")
    return Checkpoint(state["step"], state["budget"], safetensors.torch.load(data), path)


def _seal(state: dict[str, Any]) -> str:
    """Checksum of what `state.json` says: a flipped digit of the step would resume at the wrong place and look whole."""
    return hashlib.sha256(orjson.dumps(state)).hexdigest()


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
