"""What was asked and what was answered, kept in a file because somebody wished it: reviewers and item sets are made of it.

In: requests with their answers, whole or in the pieces that were streamed. Out: JSON Lines of {"at", "request", "response", "arm"}, as
`sapwood review`, `sapwood items build` and `sapwood sft` read them; the arm of an experiment stands there, and pages of an open batch do
not tell it. Nothing is kept without `--keep-traffic`: what people ask is theirs. An answer that broke off is not kept.

A file that cannot be written fails no request: it is logged, and counted. Left out on purpose: masking; `sapwood items build` masks, and
who reviews a conversation needs it as it was.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import StorageError, storage

logger = logging.getLogger(__name__)
Record = dict[str, Any]


class Traffic:
    """An open file of traffic; safe for several threads, and for several servers that share the file."""

    def __init__(self, path: Path) -> None:
        """Raises `StorageError` where it cannot be opened."""
        with storage(path, "open"):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except (FileNotFoundError, FileExistsError, NotADirectoryError):
                raise StorageError(f"{path}: its folder cannot be made. Choose another file.") from None
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            size = os.fstat(self._file).st_size
            self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        self._lock = threading.Lock()
        self.lost = 0
        """Answers that could not be kept."""

    def keep(self, request: Any, response: Mapping[str, Any], arm: str | None) -> None:
        """Append one line, in one write. What a full disk or a kill has cut short ends in a line of its own, and costs no other record."""
        about = {} if arm is None else {"arm": arm}
        line = orjson.dumps({"at": time.time(), "request": request, "response": response, **about}) + b"\n"
        try:
            with self._lock:
                whole = b"\n" * self._torn + line
                written = os.write(self._file, whole)
                self._torn = written < len(whole)
                if self._torn:
                    raise OSError(f"only {written} of {len(whole)} bytes could be written")
        except OSError as error:
            self.lost += 1
            logger.error("An answer was not kept: %s", error)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def joined(chunks: Sequence[Mapping[str, Any]]) -> Record:
    """The response whose pieces these are."""
    choices: dict[int, Record] = {}
    head: Record = {}
    for chunk in chunks:
        head |= {key: value for key, value in chunk.items() if key not in ("choices", "object")}
        for piece in chunk.get("choices") or ():
            place = int(piece.get("index") or 0)
            choice = choices.setdefault(place, {"index": place})
            if "delta" in piece:
                _add(choice.setdefault("message", {"role": "assistant", "content": ""}), piece["delta"] or {})
            else:
                choice["text"] = choice.get("text", "") + (piece.get("text") or "")
            if piece.get("finish_reason") is not None:
                choice["finish_reason"] = piece["finish_reason"]
    return {**head, "choices": [choices[place] for place in sorted(choices)]}


def _add(message: Record, delta: Mapping[str, Any]) -> None:
    for key in ("content", "reasoning_content"):
        if delta.get(key):
            message[key] = (message.get(key) or "") + delta[key]
    for piece in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        place = len(calls) if piece.get("index") is None else int(piece["index"])
        while len(calls) <= place:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[place], piece.get("function") or {}
        call |= {"id": piece["id"]} if piece.get("id") else {}
        for key in ("name", "arguments"):
            call["function"][key] += function.get(key) or ""
