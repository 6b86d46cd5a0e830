"""A result as a file, and the parts of a page that follow from committed results.

In: what a workload measured; a page's marks. Out: NAME.json in a folder that is made; what stands between two marks of a page, written anew
by `python -m bench.…_page` and held to the results by a test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from bench.setting import ROOT
from sapwood.errors import storage
from sapwood.run import write_atomic


def make_folder(folder: Path) -> None:
    """Before anything is measured. Raises `StorageError` where it cannot be."""
    with storage(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Raises `StorageError` where the disk refuses."""
    write_atomic(path, orjson.dumps(result, option=orjson.OPT_INDENT_2, default=str) + b"\n")


def result_of(name: str) -> dict[str, Any] | None:
    """A committed result; None where there is none."""
    path = ROOT / "bench" / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def between(page: str, module: str, block: str = "measured") -> list[str]:
    """The lines between the marks of a block that `module` writes."""
    begin, end = _marks(module, block)
    return page[page.index(begin) + len(begin) : page.index(end)].strip().splitlines()


def write_blocks(page: Path, module: str, blocks: Mapping[str, Sequence[str]]) -> None:
    """Write what stands between the marks of each block anew."""
    text = page.read_text()
    for block, lines in blocks.items():
        begin, end = _marks(module, block)
        written = "\n".join(lines)
        text = text[: text.index(begin)] + f"{begin}\n\n{written}\n\n" + text[text.index(end) :]
    page.write_text(text)


def _marks(module: str, block: str) -> tuple[str, str]:
    return f"<!-- {block}: written by `python -m {module}` -->", f"<!-- end of {block} -->"
