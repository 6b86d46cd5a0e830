"""Prepared rows, kept under the hash of all that they depend on: files by content, chat, knobs, and the code that prepares.

    prepared/KEY/            rows (see `packed`) and manifest.json with the size and sha256 of each file
    prepared/scan-KEY.json   what a pass over the files found, with its own sha256

In: a key and a function that makes what is missing. Out: a folder or a scan, whole. Entries are written elsewhere and appear
under their name when they are on the disk; every entry is checked when it is used, and made again if it is damaged. The
least recently used give way when there is too much. Left out on purpose: trusting a file's time or size instead of reading it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

import sapwood
from sapwood.assets.cache import build, cache_root, locked, sweep
from sapwood.errors import storage
from sapwood.run import write_atomic

MOST_BYTES = 32 * 2**30
"""All entries together; beyond it, those that were not used for the longest time go."""
MANIFEST = "manifest.json"
_BLOCK = 1 << 20
_ROOMS = ("records", "chat", "data")
"""Whose code a prepared row depends on."""

Say = Callable[[str], None]


def folder_of_prepared() -> Path:
    """Where entries lie: $SAPWOOD_PREPARED, else `prepared` in the cache folder. It need not exist yet."""
    chosen = os.environ.get("SAPWOOD_PREPARED")
    return Path(chosen).expanduser().absolute() if chosen else cache_root() / "prepared"


def key_of(content: Any) -> str:
    """Hash of everything that an entry depends on, with the code itself."""
    return hashlib.sha256(orjson.dumps([_code(), content], option=orjson.OPT_SORT_KEYS)).hexdigest()


@cache
def _code() -> str:
    """Hash of the code that reads, renders and tokenises: a changed line makes every row anew, and nobody has to think of it."""
    digest = hashlib.sha256()
    package = Path(sapwood.__file__).parent
    for room in _ROOMS:
        for path in sorted((package / room).rglob("*")):
            if path.suffix in (".py", ".jinja"):
                digest.update(path.name.encode() + path.read_bytes())
    for name in ("tokenizers", "jinja2", "orjson", "numpy"):
        digest.update(f"{name} {version(name)}".encode())
    return digest.hexdigest()


def contents_of(files: Sequence[Path]) -> list[list[str]]:
    """Name and sha256 of each file, read whole."""
    return [[str(path), _sha256(path)] for path in files]


def stamps(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Size and time of each file: whether anything was written to it meanwhile."""
    return [(found.st_size, found.st_mtime_ns) for found in (path.stat() for path in files)]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def entry(key: str, fill: Callable[[Path], Mapping[str, Any]], say: Say) -> tuple[Path, dict[str, Any]]:
    """The folder of an entry and its manifest; `fill` writes its files and returns what the manifest shall say of them.

    Of two processes that want the same, one makes it and the other waits. Raises `StorageError` where the disk refuses.
    """
    folder = folder_of_prepared() / key
    with storage(folder, "write prepared rows to"), locked(folder_of_prepared() / f".{key}.lock", lambda *_: None):
        manifest = _whole(folder, say)
        if manifest is None:
            build(folder, lambda place: _filled(place, fill))
            manifest = _whole(folder, say)
            assert manifest is not None, f"{folder} was written and is not whole"
            _make_room(folder, say)
    _used(folder / MANIFEST)
    return folder, manifest


def _used(path: Path) -> None:
    """Note that an entry was used now, to the nanosecond: the system's own stamps are coarser than a quick start."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _filled(place: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    content = fill(place)
    (place / MANIFEST).write_bytes(_sealed(content))


def _sealed(content: Mapping[str, Any]) -> bytes:
    """JSON with its own hash before it."""
    return orjson.dumps([hashlib.sha256(orjson.dumps(content)).hexdigest(), content])


def _unsealed(data: bytes) -> dict[str, Any]:
    """The content. Raises `ValueError` if it is not what was sealed."""
    sha256, content = orjson.loads(data)
    if hashlib.sha256(orjson.dumps(content)).hexdigest() != sha256:
        raise ValueError(f"{MANIFEST} is not as it was written")
    found: dict[str, Any] = content
    return found


def _whole(folder: Path, say: Say) -> dict[str, Any] | None:
    """The manifest of a folder whose files are as it says; None, with a word where there was something, if there is no such folder."""
    try:
        manifest = _unsealed((folder / MANIFEST).read_bytes())
        for name, (size, sha256) in manifest["sums"].items():
            if (folder / name).stat().st_size != size or _sha256(folder / name) != sha256:
                raise ValueError(f"{name} is not as it was written")
    except FileNotFoundError:
        if not folder.exists():
            return None
        say(f"Prepared rows in {folder} were damaged (a file is missing); they are made again.")
    except (ValueError, KeyError, TypeError) as error:
        say(f"Prepared rows in {folder} were damaged ({error}); they are made again.")
    else:
        return manifest
    return None


def scan_entry(key: str) -> dict[str, Any] | None:
    """The content of a scan that was kept, if it is there and undamaged."""
    path = folder_of_prepared() / f"scan-{key}.json"
    try:
        content = _unsealed(path.read_bytes())
        _used(path)
    except (OSError, ValueError, TypeError):
        return None  # it is made again in a moment
    return content


def keep_scan(key: str, content: Mapping[str, Any]) -> None:
    """Keep what a scan found. Raises `StorageError` where the disk refuses."""
    path = folder_of_prepared() / f"scan-{key}.json"
    with storage(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _sealed(content))


def _make_room(new: Path, say: Say) -> None:
    """Remove what was not used for the longest time until the rest is small enough; never what was made just now."""
    entries = sorted(_entries(new.parent), key=lambda found: found[0])
    total = sum(size for _, size, _ in entries)
    if total > MOST_BYTES:
        say(f"Prepared rows take more than {MOST_BYTES / 2**30:.0f} GiB; those not used for the longest time are removed.")
    for _, size, path in entries:
        if total <= MOST_BYTES:
            return
        if path == new:
            continue
        total -= size
        if path.is_dir():
            sweep(path.parent, path.name)
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _entries(parent: Path) -> Iterable[tuple[int, int, Path]]:
    """When each was last used, its bytes, its path. What a killed process left half made counts as never used."""
    for path in parent.iterdir():
        if path.suffix == ".lock":
            continue
        try:
            if path.is_dir():
                used = (path / MANIFEST).stat().st_mtime_ns if (path / MANIFEST).exists() else path.stat().st_mtime_ns
                yield used, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()), path
            else:
                yield path.stat().st_mtime_ns, path.stat().st_size, path
        except FileNotFoundError:
            continue  # another process has just removed it
