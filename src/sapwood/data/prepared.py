"""Scans and prepared rows, from the cache where they were made before, else made now.

In: files and what reads them; a scan and a chat. Out: a `Scan`; a `Packed` folder of every row that can be trained exactly,
and the refusals of all others. Left out on purpose: who is held out, which needs no preparing.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sapwood.chat import Chat
from sapwood.chat.other_rows import example_of
from sapwood.data.cache import contents_of, entry, folder_of_prepared, keep_scan, key_of, scan_entry, stamps
from sapwood.data.columns import Columns, Only
from sapwood.data.formats import Format
from sapwood.data.locations import Located
from sapwood.data.media import HOLDS_MEDIA
from sapwood.data.packed import Packed, PackedWriter
from sapwood.data.preparing import Preparer, batches
from sapwood.data.reading import Recipe, Scan, scan
from sapwood.data.refusal import Refusal, Refusals
from sapwood.data.workers import prepared_chunks, workers_for
from sapwood.errors import DataError, StorageError, storage
from sapwood.records import Conversation, Document, Example, Source

Report = Callable[[int, int, str], None]
"""Called with (rows done, rows in all, a few words)."""


def kept_scan(
    located: Located,
    *,
    format: Format | None,  # noqa: A002 - the word that users know
    columns: Columns,
    only: Only | None,
    keep: bool,
    allow_urls: bool = False,
    report: Report = lambda done, total, what: None,
) -> Scan:
    """`scan`, or what it found in these very files before. Raises as `scan` does. `report` hears of rows read and their speed."""
    paths = located.files
    readable = all(os.path.isfile(path) and os.access(path, os.R_OK) for path in paths)
    key = _scan_key(paths, format, columns, only, allow_urls) if keep and readable else None
    kept = scan_entry(key) if key is not None else None
    if kept is not None:
        found = _scan_from(kept, columns, only, allow_urls)
    else:
        before = stamps(paths) if key is not None else []
        began = time.monotonic()

        def seen(path: Path, rows: int) -> None:
            report(rows, 0, f"{path.name}  {rows / max(time.monotonic() - began, 1e-3):,.0f} rows/s")

        found = scan(paths, format=format, columns=columns, only=only, allow_urls=allow_urls, report=seen)
        if HOLDS_MEDIA in found.notes:
            key = None  # what was found depends on more files than are named here
        if key is not None and stamps(paths) == before and key == _scan_key(paths, format, columns, only, allow_urls):
            with suppress(StorageError):  # it is made again next time; what is wrong with the disk is said when rows are written
                keep_scan(key, _scan_content(found))
    return replace(found, guess="\n".join([*located.said, found.guess]), parts=located.parts)


def prepared_rows(
    found: Scan, chat: Chat, *, cluster: str | None, keep: bool, report: Report, say: Callable[[str], None]
) -> tuple[Packed, bool]:
    """Every row of a scan, prepared, and whether that was done before.

    `cluster` is the column whose digests are kept for splitting. Raises `DataError` naming the row where preparing fails,
    or the files if they changed since they were scanned, and `StorageError` where the disk refuses.
    """
    recipe = found.recipe
    paths = [Path(file) for file in recipe.formats]
    preparer = Preparer(chat, recipe.columns, cluster, recipe.allow_urls)
    made = False

    def fill(folder: Path) -> Mapping[str, Any]:
        nonlocal made
        made = True
        return _fill(folder, found, preparer, report)

    keep = keep and chat.plan() is not None  # a row with images depends on more files than are named here
    if keep:
        chat_facts = [chat.fingerprint, chat.context_length, _days(chat)]
        reading = [
            contents_of(paths),
            dict(recipe.formats),
            _columns_content(recipe.columns),
            str(recipe.only),
            recipe.max_line_bytes,
            recipe.allow_urls,
        ]
        folder, manifest = entry(key_of(["rows", reading, chat_facts, cluster]), fill, say)
    else:
        folder = _passing_folder()
        try:
            with storage(folder, "write prepared rows to"):
                manifest = dict(fill(folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    if manifest["examples"] + manifest["refused"] + found.left_out != found.total:
        raise _changed(paths)
    packed = Packed(folder, tuple(manifest["files"]), partial(_made_anew, chat))
    if not keep:
        weakref.finalize(packed, shutil.rmtree, folder, ignore_errors=True)
    return packed, not made


def _fill(folder: Path, found: Scan, preparer: Preparer, report: Report) -> dict[str, Any]:
    """Write all rows into the files of a folder; what its manifest says of them."""
    total = found.total - found.left_out
    began, done = time.monotonic(), 0
    paths = [Path(file) for file in found.recipe.formats]
    before = stamps(paths)
    writer = PackedWriter(folder)
    try:
        for chunk in prepared_chunks(preparer, batches(found.recipe.rows()), workers_for(total)):
            writer.append(chunk)
            done += chunk.examples + chunk.refused
            report(done, total, f"{done / max(time.monotonic() - began, 1e-3):,.0f} rows/s")
    finally:
        writer.close()
    if done != total or stamps(paths) != before:
        raise _changed(paths)
    return {"examples": writer.examples, "refused": writer.refused, "files": list(writer.files), "sums": writer.sums()}


def _changed(paths: Sequence[Path]) -> DataError:
    names = ", ".join(map(str, paths[:3])) + (", …" if len(paths) > 3 else "")
    return DataError(f"{names}: changed while being read, so the rows do not add up. Try again when nothing writes to it any more.")


def _made_anew(chat: Chat, record: Conversation | Document) -> Example:
    return example_of(chat, record)


def _passing_folder() -> Path:
    """A folder for rows that are not kept: beside the cache, where there is room, else where the system keeps such things."""
    parent = folder_of_prepared()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".passing-", dir=parent))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="sapwood-"))


def _days(chat: Chat) -> list[str]:
    """What the templates can see of today's date: nothing, the texts that they ask for, or, where that cannot be told, all of it."""
    found: list[str] = []
    for source in chat.template_sources:
        asked = re.findall(r"strftime_now\s*\(\s*(?:'([^'\\]*)'|\"([^\"\\]*)\")\s*\)", source)
        if len(asked) != source.count("strftime_now"):
            names = source.count("strftime_now is defined") + source.count("strftime_now is not defined")
            if len(asked) + names != source.count("strftime_now"):
                return [chat.today.isoformat()]
        found += [chat.today.strftime(one or other) for one, other in asked]
    return found


def _columns_content(columns: Columns) -> dict[str, Any]:
    return {field: value if isinstance(value, str) else [value.template] for field, value in columns.items()}


def _scan_key(paths: Sequence[Path], format: Format | None, columns: Columns, only: Only | None, allow_urls: bool) -> str:  # noqa: A002
    return key_of(["scan", contents_of(paths), format, _columns_content(columns), str(only), allow_urls])


def _scan_content(found: Scan) -> dict[str, Any]:
    return {
        "formats": dict(found.recipe.formats),
        "max_line_bytes": found.recipe.max_line_bytes,
        "total": found.total,
        "left_out": found.left_out,
        "guess": found.guess,
        "notes": dict(found.notes),
        "places": {note: [place.file, place.line] for note, place in found.note_places.items()},
        "kinds": dict(found.refused.kinds),
        "refused": [[*_place(refusal.source), refusal.reason, refusal.fix] for refusal in found.refused.kept],
    }


def _scan_from(content: Mapping[str, Any], columns: Columns, only: Only | None, allow_urls: bool) -> Scan:
    refused = Refusals(limit=len(content["refused"]))
    refused.kept = [Refusal(Source(file, line), reason, fix) for file, line, reason, fix in content["refused"]]
    refused.kinds.update(content["kinds"])
    places = {note: Source(*place) for note, place in content["places"].items()}
    recipe = Recipe(content["formats"], columns, only, content["max_line_bytes"], allow_urls)
    return Scan(recipe, content["total"], refused, content["guess"], content["notes"], places, content["left_out"])


def _place(source: Source | None) -> tuple[str | None, int]:
    return (None, 0) if source is None else (source.file, source.line)
