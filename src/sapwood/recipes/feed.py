"""Records of a run's metrics as they are written, for those who show or forward them while it trains.

In: `metrics.jsonl`, which the loop writes. Out: each record once, in order; those of earlier sittings first. What a person sees
and what a tracker is told is thereby what the file holds, also where a signal ends the run between a record and its report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import storage

HEAD = 512
"""Bytes at a file's beginning by which it is known again: its first record says how long a step took."""


class Feed:
    """Reads what has been appended since it was last asked."""

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.jsonl"
        self._read, self._head = 0, b""

    def new(self) -> list[dict[str, Any]]:
        """Records of training steps and evaluations that were not given out yet. A file that was begun anew is read from its start."""
        try:
            with storage(self._path, "read"), self._path.open("rb") as file:
                if file.read(len(self._head)) != self._head:
                    self._read = 0
                file.seek(self._read)
                content = file.read()
                content = content[: content.rfind(b"\n") + 1]  # a line that a killed writer tore is cut by the next one
                self._read += len(content)
                file.seek(0)
                self._head = file.read(min(HEAD, self._read))
        except FileNotFoundError:
            self._read, self._head = 0, b""
            return []
        records = [orjson.loads(line) for line in content.splitlines() if line.strip()]
        return [record for record in records if record.get("kind") in ("train", "eval")]
