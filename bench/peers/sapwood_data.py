"""Sapwood's preparation of a file of conversations: what `sapwood sft` does with it before the model loads.

validate    read every row, check it, enter it into the ledger
prepare     the same, then render and tokenise every trained turn; what comes out is ready for the first step
dump        the ids of each conversation's last row, for the comparison with the peer's
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.contestant import Request, serve, versions_of
from sapwood.chat import Chat
from sapwood.data import Ledger
from sapwood.data.ledger import Located
from sapwood.data.reading import Scan
from sapwood.recipes.prepare import DataConfig, Prepared, prepare_files, scan_files
from sapwood.recipes.screen import Screen

CONFIG = DataConfig(held_out=0)
_last: list[Prepared] = []


def validate(request: Request) -> dict[str, Any]:
    """Every row read and checked, none kept, each entered into the ledger."""
    begin = time.perf_counter()
    found = scan_files([request["file"]], replace(CONFIG, cache=False), _silent)
    assert isinstance(found, Scan)
    ledger = Ledger(found.total)
    ledger.refuse(*found.refused.kept)
    taken = found.total - len(found.refused.kept)
    ledger.train_all(
        Located(list(found.recipe.formats), np.zeros(taken, np.int32), np.arange(1, taken + 1)), trained_tokens=0, prompt_tokens=0
    )
    ledger.check(CONFIG.max_refused)
    ledger.assert_whole()
    return {"seconds": time.perf_counter() - begin, "rows": ledger.rows_in, "refused": ledger.refusals}


def prepare(request: Request) -> dict[str, Any]:
    """The file's rows, ready to train on; the cache in `cache` is used and filled."""
    os.environ["SAPWOOD_CACHE"] = request["cache"]
    _last.clear()
    chat = Chat.load(Path(request["model"]))
    begin = time.perf_counter()
    prepared = prepare_files([request["file"]], chat, CONFIG, Screen(quiet=True))
    seconds = time.perf_counter() - begin
    _last[:] = [prepared]
    counts = prepared.ledger.counts()
    return {"seconds": seconds, "rows": counts["trained"], "refused": counts["refused"], "cached": prepared.cached}


def dump(request: Request) -> dict[str, Any]:
    """Write the ids of each conversation's last row, prompt and completion: the whole conversation up to its stop token."""
    ids, lengths, order = [], [], []
    for example in _last[0].examples:
        row = example.rows[-1]
        ids.append(np.concatenate([row.prompt_T, row.completion_T]).astype(np.int32))
        lengths.append(len(ids[-1]))
        order.append(example.source.line if example.source else 0)
    assert order == sorted(order), "examples come in the file's order"
    np.save(request["ids"], np.concatenate(ids))
    np.save(request["lengths"], np.array(lengths, dtype=np.int64))
    return {"rows": sum(len(example.rows) for example in _last[0].examples)}


def _silent(done: int, total: int, what: str) -> None:
    pass


if __name__ == "__main__":
    serve(
        {"validate": validate, "prepare": prepare, "dump": dump},
        versions_of(["sapwood", "tokenizers", "jinja2", "orjson", "numpy"]),
    )
