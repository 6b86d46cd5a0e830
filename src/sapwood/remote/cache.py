"""Answers on a disk, by the hash of what was asked: nothing is paid twice, and a stopped evaluation goes on where it was.

In: a question (server, model, request, which of several samples) and the server's own words. Out: those words again. Each answer
is one small file, written whole or not at all, so that several processes may share a folder. A file that is damaged counts as
absent. Keys are never part of a request here, so none is written. Left out on purpose: failures, and an age at which answers end.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import storage
from sapwood.run import SCHEMA, write_atomic

_WRITING = threading.Lock()  # two threads of one process would share the name of the temporary file


class AnswerCache:
    """A folder of answers."""

    def __init__(self, folder: Path) -> None:
        """Raises `StorageError` where the folder cannot be made."""
        self.folder = folder
        with storage(folder, "create the folder of answers"):
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """The answer, if it is there."""
        try:
            with storage(self.folder, "read the answers of"):
                record = orjson.loads(self._file(question).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        whole = isinstance(record, dict) and record.get("schema") == SCHEMA and isinstance(record.get("answer"), dict)
        return record["answer"] if whole else None

    def write(self, question: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Keep an answer. Raises `StorageError` where the disk refuses."""
        file = self._file(question)
        with _WRITING:
            with storage(file.parent, "create the folder"):
                file.parent.mkdir(exist_ok=True)
            write_atomic(file, orjson.dumps({"schema": SCHEMA, "question": question, "answer": answer}))

    def _file(self, question: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(orjson.dumps(question, option=orjson.OPT_SORT_KEYS)).hexdigest()
        return self.folder / name[:2] / f"{name}.json"
