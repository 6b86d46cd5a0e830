"""Which questions a run was trained on, by their content: a copy of a file is the same rows, wherever it lies.

In: the rows that a run trains. Out: `trained.keys` in its directory, 16 bytes for each distinct question, and later the answer to
"which of these rows were among them?". Left out on purpose: near duplicates, which need a threshold, and the answers: a question
that was trained with another answer was seen, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sapwood.data.sequences import PackedRecords
from sapwood.data.splitting import Keys, prompt_key, turns_key
from sapwood.errors import DataError, storage
from sapwood.records import Conversation, Document
from sapwood.run import Run, write_atomic

FILE = "trained.keys"
_WIDTH = 16


def remember(run: Run, rows: Sequence[Conversation | Document]) -> None:
    """Write down what is trained. Raises `StorageError`."""
    write_atomic(run.path / FILE, np.unique(_keys(rows)).tobytes())


def trained_among(run: Path, rows: Sequence[Conversation | Document]) -> list[int] | None:
    """Indices of the rows whose question the run was trained on; None for a run that did not write them down.

    Raises `DataError` where the file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    with storage(path, "read"):
        content = path.read_bytes()
    if len(content) % _WIDTH:
        raise DataError(f"{path}: damaged, so nobody can tell what was trained. Evaluate what the run held out: sapwood eval {run}")
    trained = np.frombuffer(content, dtype=f"V{_WIDTH}")
    return np.flatnonzero(np.isin(_keys(rows), trained)).tolist()


def _keys(rows: Sequence[Conversation | Document]) -> Keys:
    if isinstance(rows, PackedRecords):
        return rows.keys
    return np.array([_key(row) for row in rows], dtype=f"V{_WIDTH}")


def _key(row: Conversation | Document) -> bytes:
    """A prompt without its answer is asked as a whole."""
    if isinstance(row, Conversation) and row.messages[-1].role != "assistant":
        return turns_key(row.messages)
    return prompt_key(row)
