"""Sapwood's preparation of a file of conversations: what `sapwood sft` does with it before the model loads.

validate    read every row, check it, enter it into the ledger
prepare     the same, then render and tokenise every trained turn; what `Prepared` holds is ready for the first step
dump        the ids of each conversation's last row, for the comparison with the peer's
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.contestant import Request, serve, versions_of
from sapwood.chat import Chat
from sapwood.data import Ledger
from sapwood.recipes.prepare import DataConfig, Prepared, prepare, read_files

CONFIG = DataConfig(held_out=0)
_last: list[Prepared] = []


def validate(request: Request) -> dict[str, Any]:
    """Rows in, conversations checked, each entered into the ledger."""
    begin = time.perf_counter()
    reading = read_files([request["file"]], CONFIG, _silent)
    ledger = Ledger(reading.total)
    ledger.refuse(*reading.refused)
    for conversation in reading.conversations:
        ledger.train(conversation.source)
    ledger.check(CONFIG.max_refused)
    ledger.assert_whole()
    return {"seconds": time.perf_counter() - begin, "rows": ledger.rows_in, "refused": len(ledger.refused)}


def prepare_file(request: Request) -> dict[str, Any]:
    """The file's rows, ready to train on; the cache in `cache` is used and filled."""
    os.environ["SAPWOOD_CACHE"] = request["cache"]
    _last.clear()
    chat = Chat.load(Path(request["model"]))
    begin = time.perf_counter()
    prepared = _prepared(request["file"], chat)
    seconds = time.perf_counter() - begin
    _last[:] = [prepared]
    counts = prepared.ledger.counts()
    return {"seconds": seconds, "rows": counts["trained"], "refused": counts["refused"], "trained_tokens": prepared.ledger.trained_tokens}


def _prepared(file: str, chat: Chat) -> Prepared:
    """The one place that calls the preparation."""
    return prepare(read_files([file], CONFIG, _silent), chat, CONFIG)


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
        {"validate": validate, "prepare": prepare_file, "dump": dump},
        versions_of(["sapwood", "tokenizers", "jinja2", "orjson", "numpy"]),
    )
