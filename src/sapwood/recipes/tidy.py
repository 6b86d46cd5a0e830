"""Making room: old checkpoints removed, whole runs deleted. Said in bytes before anything is touched.

Never touched: a folder that is no run directory of ours, one that a process is writing, the adapter, what a stopped run needs to go
on (unless that is asked for by name), and whatever a link points to. Left out on purpose: trash, and deciding what is old by date.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapwood.errors import ConfigError, StorageError, storage
from sapwood.evaluate.report_files import mapping, number, read_run
from sapwood.recipes.runs import SWEEP, facts_of, files_below, require_run
from sapwood.run import LOCK, is_being_written, saved_steps, take_lock


@dataclass(frozen=True)
class Removal:
    """Folders that go, in runs that stay or go with them."""

    folders: dict[Path, int]
    """Folder → its bytes."""
    kept: tuple[str, ...] = ()
    """Sentences on what is not removed, and why."""

    @property
    def bytes(self) -> int:
        """What it frees."""
        return sum(self.folders.values())

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"folders": {str(path): size for path, size in self.folders.items()}, "bytes": self.bytes, "kept": list(self.kept)}


def old_checkpoints(runs: Sequence[Path], keep: int = 1, *, lose_resume: bool = False) -> Removal:
    """Checkpoints that `prune` would remove: all but the newest `keep` of each run.

    A run that is not finished keeps its newest, and the best one where held-out losses choose the result, whatever `keep` says,
    unless `lose_resume`. Raises `ConfigError` for `keep` below 0, `DataError` for a folder that is no run.
    """
    if keep < 0:
        raise ConfigError(f"keep is {keep}; give 0 or more checkpoints to keep.")
    folders: dict[Path, int] = {}
    kept: list[str] = []
    for run in runs:
        facts = facts_of(run)
        if facts.state == "running":
            kept.append(f"{run} is being written, so all of its checkpoints stay.")
            continue
        steps = saved_steps(run)
        wanted = set(steps[len(steps) - keep :]) if keep else set[int]()
        if facts.state == "stopped" and not lose_resume and steps:
            needed = {steps[-1], *_best_step(run)} & set(steps)
            if needed - wanted:
                kept.append(f"{run} is not finished: {_named(needed)} stays, for the run to go on from. --lose-resume gives that up.")
            wanted |= needed
        for step in steps:
            place = run / "checkpoints" / f"step-{step}"
            if step not in wanted and not place.is_symlink() and not place.parent.is_symlink():
                folders[place] = _size(place)
    return Removal(folders, tuple(kept))


def whole_runs(runs: Sequence[Path]) -> Removal:
    """The runs that `delete` would remove. Raises `DataError` for a folder that is no run, `StorageError` for one that is written."""
    for run in runs:
        require_run(run)
        for place in [run, *_points(run)]:
            if is_being_written(place):
                raise StorageError(f"{place} is being written by another process, so {run} is not deleted. Stop that process first.")
    return Removal({run: _size(run) for run in dict.fromkeys(runs)})


def remove(removal: Removal) -> None:
    """Remove what was listed. Raises `StorageError` where a process has begun to write a run since, or the disk refuses."""
    for folder in removal.folders:
        is_checkpoint = folder.parent.name == "checkpoints" and folder.name.startswith("step-")
        with _held(folder.parent.parent if is_checkpoint else folder), storage(folder, "remove"):
            shutil.rmtree(folder)


@contextmanager
def _held(run: Path) -> Iterator[None]:
    """Hold the run's lock, so that nobody begins to write it meanwhile."""
    require_run(run)
    with storage(run, "lock"), (run / LOCK).open("ab") as lock:
        if not take_lock(lock):
            raise StorageError(f"{run} is being written by another process, so nothing in it is removed. Wait until it ends.")
        yield


def _points(run: Path) -> list[Path]:
    return [place for place in (run / "points").glob("*") if place.is_dir()] if (run / SWEEP).is_file() else []


def _best_step(run: Path) -> list[int]:
    """The step of the lowest held-out loss, where it may become the result."""
    files = read_run(run, only=("metrics.jsonl",)) if (run / "config.yaml").is_file() else None
    train = mapping(files.config.get("train")) if files is not None else {}
    if files is None or not (train.get("keep_best") or train.get("patience")):
        return []
    losses = [(loss, int(record["step"])) for record in files.metrics if record.get("kind") == "eval" and (loss := number(record["loss"]))]
    return [min(losses)[1]] if losses else []


def _named(steps: set[int]) -> str:
    return " and ".join(f"step-{step}" for step in sorted(steps))


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in files_below(folder))
