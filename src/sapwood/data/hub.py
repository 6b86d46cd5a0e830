"""A data set of the Hugging Face hub → the files of rows of one split of it, fetched into the hub's own cache.

    hf://owner/name              the split `train` (or the only one) of the data set's first configuration
    hf://owner/name/test         a split, a configuration (`/german`), or a split of one (`/german/test`)
    hf://owner/name/data/*.jsonl a file, a folder or a pattern in it
    …@revision                   behind any of these, or behind the name: a branch, a tag or a commit

In: such a name. Out: paths, pinned to one commit, and a sentence that says which. Where the hub cannot be asked, or may not be
(`HF_HUB_OFFLINE`), what its cache holds is taken, and the sentence says so. Left out on purpose: data sets that are made by running a
script of theirs, and views that a server makes of them.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sapwood.assets import Report
from sapwood.config import did_you_mean
from sapwood.data.lines import holds_rows
from sapwood.errors import AssetError, DataError, storage

HUB = "hf://"
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
_SPLIT_IN_PATH = re.compile(rf"(?:^|[/_.-])({'|'.join(_SPLITS)})(?:[/_.-]|$)", re.IGNORECASE)
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@dataclass(frozen=True, slots=True)
class _Named:
    owner_and_name: str
    inside: str
    revision: str | None


def hub_files(name: str, report: Report | None = None) -> tuple[list[Path], str]:
    """The local paths of the files, and a sentence. Raises `DataError` for a name that is none, and for a split or file that is
    not there; `AssetError` where the hub does not give it: missing, gated, no network.
    """
    named = _named(name)
    sha, names, asked = _listed(named)
    rows = [file for file in names if holds_rows(Path(file)) and file.rsplit("/", 1)[-1] not in _DESCRIPTIONS]
    if not rows:
        raise DataError(
            f"{name}: this data set has no files of rows that can be read ({len(names)} files, such as {', '.join(names[:3]) or 'none'}). "
            "Choose another, or save it as JSON Lines yourself."
        )
    readme = _fetched(named, sha, ["README.md"], None)[0] if "README.md" in names else None
    layout = _layout(rows, readme)
    chosen, what = _chosen(named, rows, layout)
    files = _fetched(named, sha, chosen, report)
    return files, f"{HUB}{named.owner_and_name} at {sha[:12]}{'' if asked else ', from the cache without asking the hub'}: {what}"


def _named(name: str) -> _Named:
    rest = name.removeprefix(HUB).removeprefix("datasets/").strip("/")
    at = re.search(r"@([^/@]+)(?=/|$)", rest)
    if at:
        rest = rest[: at.start()] + rest[at.end() :]
    parts = rest.split("/")
    if len(parts) < 2 or not all(parts[:2]):
        raise DataError(f"{name}: expected {HUB}OWNER/NAME, if you like with a split or a file behind it, and @REVISION at the end.")
    return _Named("/".join(parts[:2]), "/".join(parts[2:]), at[1] if at else None)


def _listed(named: _Named) -> tuple[str, list[str], bool]:
    """The commit, the names of all files in it, and whether the hub said so (else the cache)."""
    from huggingface_hub import HfApi  # slow to import, and only wanted here

    telling = _told(named)
    try:
        with telling:
            found = HfApi(endpoint=_endpoint()).dataset_info(named.owner_and_name, revision=named.revision)
    except AssetError:
        kept = _kept(named) if telling.unheard else None
        if kept is None:
            raise
        return (*kept, False)
    return str(found.sha), [file.rfilename for file in found.siblings or ()], True


def _kept(named: _Named) -> tuple[str, list[str]] | None:
    """The same from the cache, whoever filled it: the revision that is asked for, or the newest where none is and no `main` is noted."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=named.owner_and_name, repo_type="dataset")
    reference, snapshots = folder / "refs" / (named.revision or "main"), folder / "snapshots"
    with storage(folder, "read"):
        if reference.is_file():
            kept = [snapshots / reference.read_text().strip()]
        elif named.revision is not None:
            kept = [snapshots / named.revision]
        else:
            kept = sorted(snapshots.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
        if not kept or not kept[0].is_dir():
            return None
        return kept[0].name, sorted(path.relative_to(kept[0]).as_posix() for path in kept[0].rglob("*") if path.is_file())


def _fetched(named: _Named, sha: str, files: Sequence[str], report: Report | None) -> list[Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # ours says more, and keeps to standard error
    paths = []
    for number, file in enumerate(files):
        if report is not None:
            report(number, len(files), file)
        with _told(named), storage(file, "download"):
            path = hf_hub_download(named.owner_and_name, file, repo_type="dataset", revision=sha, endpoint=_endpoint())
        paths.append(Path(path))
    return paths


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


class _told:  # noqa: N801 - reads as a statement: with _told(...)
    """Turn the hub's refusals into an `AssetError` that says what to do."""

    def __init__(self, named: _Named) -> None:
        self._named = named
        self.unheard = False
        """Whether the hub said nothing: no network, or it may not be asked."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        from huggingface_hub import errors

        name = self._named.owner_and_name
        network: tuple[type[BaseException], ...] = (errors.HfHubHTTPError, ConnectionError, TimeoutError, FileNotFoundError)
        if isinstance(error, errors.OfflineModeIsEnabled):
            self.unheard = True
            why = (
                "the environment variable HF_HUB_OFFLINE forbids to ask the hub, and its cache holds nothing of it. Unset it, or name "
                "files that are here"
            )
        elif isinstance(error, errors.GatedRepoError):
            why = "it is gated: its owner asks you to agree to terms on its page. Do that, then run `hf auth login`"
        elif isinstance(error, errors.RevisionNotFoundError):
            why = f"it has no revision {self._named.revision!r}. Name a branch, a tag or a commit that it has, or leave @… out"
        elif isinstance(error, errors.RepositoryNotFoundError):
            why = "there is none of that name, or it is private. Check the spelling; for a private one, run `hf auth login` first"
        elif isinstance(error, (*network, getattr(errors, "HTTPError", OSError))):
            self.unheard = True
            why = f"the hub could not be reached ({type(error).__name__}). Check the network, or name files that are here"
        else:
            return
        raise AssetError(f"{HUB}{name}: the data set could not be fetched: {why}.") from error


Layout = Mapping[str, Mapping[str, list[str]]]
"""Configuration → split → files."""


def _layout(rows: Sequence[str], readme: Path | None) -> Layout:
    """As the front of the data set's README says, else one configuration whose splits the files' names tell."""
    told = _front(readme) if readme is not None else {}
    layout: dict[str, dict[str, list[str]]] = {}
    for entry in told.get("configs") or ():
        if isinstance(entry, dict) and entry.get("data_files"):
            splits = layout.setdefault(str(entry.get("config_name", "default")), {})
            for split, pattern in _patterns(entry["data_files"]):
                files = [file for file in rows if _matches(file, pattern)]
                if files:
                    splits.setdefault(split, []).extend(files)
    layout = {name: splits for name, splits in layout.items() if splits}
    if layout:
        return layout
    splits = {}
    for file in rows:
        match = _SPLIT_IN_PATH.search(file)
        splits.setdefault(_SPLITS[match[1].lower()] if match else "train", []).append(file)
    return {"default": splits}


def _front(readme: Path) -> dict[str, Any]:
    text = readme.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.DOTALL)
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def _patterns(data_files: Any) -> list[tuple[str, str]]:
    """(split, pattern) of each entry of a README's `data_files`, in all the forms it may have."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    found = []
    for entry in entries:
        split, paths = (str(entry.get("split", "train")), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        found += [(split, str(path)) for path in (paths if isinstance(paths, list) else [paths]) if path]
    return found


def _matches(file: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./")
    return file == pattern or fnmatch.fnmatchcase(file, pattern) or fnmatch.fnmatchcase(file, pattern.replace("**/", ""))


def _chosen(named: _Named, rows: Sequence[str], layout: Layout) -> tuple[list[str], str]:
    """The files that are meant, and what they are in words."""
    inside = named.inside
    if inside:
        files = [file for file in rows if file == inside or file.startswith(inside + "/") or _matches(file, inside)]
        if files:
            return files, f"{_count(files)} ({files[0]}{', …' if len(files) > 1 else ''})"
    config, _, split = inside.partition("/")
    if config not in layout:
        first = "default" if "default" in layout or not layout else next(iter(layout))
        config, split = first, inside
    splits = layout[config]
    others = [other for other in layout if other != config]
    if not split:
        split = "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    if split not in splits:
        _no_such(named, split, rows, layout)
    beside = [f"splits {', '.join(name for name in splits if name != split)}"] * (len(splits) > 1)
    beside += [f"configurations {', '.join(others[:5])}{', …' if len(others) > 5 else ''}"] * bool(others)
    more = f"; there are also the {' and the '.join(beside)}: name one behind a slash" if beside else ""
    return splits[split], f"split {split}{f' of {config}' if len(layout) > 1 else ''}, {_count(splits[split])}{more}"


def _count(files: Sequence[str]) -> str:
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def _no_such(named: _Named, wanted: str, rows: Sequence[str], layout: Layout) -> NoReturn:
    splits = sorted({split for config in layout.values() for split in config})
    configs = [name for name in layout if len(layout) > 1]
    known = [*splits, *configs, *rows]
    also = f" Configurations: {', '.join(configs[:10])}." if configs else ""
    raise DataError(
        f"{HUB}{named.owner_and_name}: no split, configuration, file or folder {wanted!r} in it.{did_you_mean(wanted, known)} Splits: "
        f"{', '.join(splits)}.{also} Files: {', '.join(rows[:3])}{', …' if len(rows) > 3 else ''}."
    )
