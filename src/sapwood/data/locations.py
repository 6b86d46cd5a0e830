"""What a person names as data → the files of rows: a file, a folder, a pattern, a data set of the catalogue or of the hub.

In: names. Out: paths in a fixed order, each once, and a sentence for every name that is not simply a file, so that what was
taken and what was left out is seen. A path that exists wins over a pattern, a pattern over a name. A name may end in a weight,
`a.jsonl*2`: how often an epoch trains its rows, beside others.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapwood.assets import Report, resolve_data
from sapwood.data.hub import HUB, hub_files
from sapwood.data.lines import ROWS, TEXTS, holds_rows
from sapwood.errors import DataError, storage

NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that stand beside the rows of a data set and describe it."""
_WEIGHTED = re.compile(r"(.+)\*(\d+(?:\.\d*)?|\.\d+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Part:
    """What one name stands for."""

    name: str
    weight: float
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Located:
    """The files, and what a person should know about how they were found."""

    files: list[Path]
    said: list[str]
    parts: tuple[Part, ...] = ()
    """The same files by the names that they were found by."""


def locate(names: Sequence[Path | str] | Path | str, report: Report | None = None) -> Located:
    """The files that the names stand for, fetched where they are not here. A file that is missing is named as it is.

    Raises `DataError` for a folder or pattern without files of rows, for a file that is named twice, for a weight of 0, and for
    what the hub does not give; `AssetError` where a name is not known.
    """
    entries = [names] if isinstance(names, str | Path) else list(names)
    if not entries:
        raise DataError("No files to read. Name at least one: JSON Lines, CSV, Parquet, a folder of them, or a data set.")
    files: list[Path] = []
    said: list[str] = []
    parts: list[Part] = []
    for name in entries:
        plain, weight = weight_of(name)
        found, sentence = _one(plain, report)
        files += found
        said += [sentence] if sentence else []
        parts.append(Part(os.fspath(plain), weight, tuple(found)))
    return Located(_once(files), said, tuple(parts))


def weight_of(name: Path | str) -> tuple[Path | str, float]:
    """A name without the weight at its end, and that weight, or 1. What is there as a file or finds some as a pattern has none."""
    text = os.fspath(name)
    found = _WEIGHTED.fullmatch(text)
    if found is None or os.path.exists(text) or glob.glob(os.path.expanduser(text), recursive=True):
        return name, 1.0
    weight = float(found[2])
    if weight == 0:
        raise DataError(f"{text}: a weight of 0 would train none of its rows. Leave the name out, or give a number above 0.")
    return (Path(found[1]) if isinstance(name, Path) else found[1]), weight


def _one(name: Path | str, report: Report | None) -> tuple[list[Path], str]:
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text.startswith(HUB):
        return hub_files(text, report)
    if os.path.isdir(path):
        return _in_folder(path)
    if os.path.lexists(path):  # False, not an error, in folders that may not be read; what is wrong with a link, opening says better
        return [path], ""
    if glob.has_magic(text):
        return _matching(text)
    if (
        isinstance(name, str)
        and _HUB_ID.fullmatch(text)
        and not text.startswith(".")
        and not holds_rows(path)
        and not os.path.exists(path.parent)
    ):
        return hub_files(HUB + text, report)
    if isinstance(name, str) and "/" not in text and not path.suffix:
        return _one(resolve_data(text, report=report), report)
    return [path], ""


def _matching(pattern: str) -> tuple[list[Path], str]:
    """The files that a pattern finds, in the order of their names. The shell did not put them there: it was quoted, or found none."""
    found = [Path(match) for match in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]
    files = [path for path in found if path.is_file()]
    if not files:
        what = f"only folders ({found[0]}, …)" if found else "nothing"
        raise DataError(f"{pattern}: this pattern finds {what}. Check the path; `**` stands for folders in folders.")
    return files, f"{pattern}: {_count(len(files), 'file')}, from {files[0].name} to {files[-1].name}"


def _in_folder(folder: Path) -> tuple[list[Path], str]:
    """The files of rows in a folder and the folders in it, in the order of their names, and what was left out."""
    files: list[Path] = []
    left: Counter[str] = Counter()
    with storage(folder, "read"):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                left["hidden"] += 1
            elif holds_rows(path) and path.name not in NO_ROWS:
                files.append(path)
            else:
                left[f"{path.name}"] += 1
    hidden = left.pop("hidden", 0)
    others = sum(left.values())
    skipped = [f"{hidden} hidden"] * bool(hidden) + [
        f"{others} of other kinds ({', '.join(list(left)[:3])}{', …' if others > 3 else ''})"
    ] * bool(left)
    without = f"; left out: {', '.join(skipped)}" if skipped else ""
    if all((folder / name).is_file() for name in ("config.yaml", "environment.json")):
        raise DataError(f"{folder}: a run directory, not rows. The files that it was made of stand in its config.yaml under `data`.")
    if not files:
        raise DataError(
            f"{folder}: a folder without files of rows in it{without}. Known: {', '.join(ROWS)}, and {', '.join(TEXTS)} packed."
        )
    return files, f"{folder}: {_count(len(files), 'file')} of rows{without}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _once(paths: list[Path]) -> list[Path]:
    seen: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise DataError(f"{path}: given twice (it is the same file as {seen[real]}), so its rows would count twice. Name it once.")
        seen[real] = path
    return paths
