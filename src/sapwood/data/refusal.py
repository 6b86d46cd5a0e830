"""Why a row was not taken. Readers raise `Refused` inside one row; `read` turns it into a `Refusal` with its place."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sapwood.records import Source

IN_UTF_8 = "save the file as UTF-8 (for example `iconv -f CP1252 -t UTF-8 FILE > NEW`; from Excel, as “CSV UTF-8”)"
"""What to do about bytes that are no UTF-8: nearly always an export from Windows."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row that is not trained on, where it stands, why, and the nearest fix.

    `reason` reads "kind: what was found and what was expected"; the ledger groups by the kind.
    """

    source: Source | None
    reason: str
    fix: str = ""

    @property
    def kind(self) -> str:
        """The part of the reason that rows with the same trouble share."""
        return self.reason.split(": ", 1)[0]

    def __str__(self) -> str:
        place = f"{self.source}: " if self.source else ""
        return f"{place}{self.reason}" + (f" ({self.fix})" if self.fix else "")


@dataclass(slots=True)
class Refusals:
    """Refused rows: all are counted by kind, and of each kind the first `limit` are kept whole."""

    limit: int | None = None
    kept: list[Refusal] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, refusal: Refusal) -> None:
        """One more."""
        kind = refusal.kind
        self.kinds[kind] += 1
        if self.limit is None or self.kinds[kind] <= self.limit:
            self.kept.append(refusal)

    def extend(self, others: Refusals) -> None:
        """Those of another part of the rows."""
        held = Counter(refusal.kind for refusal in others.kept)
        for refusal in others.kept:
            self.add(refusal)
        self.kinds.update(others.kinds - held)

    def __len__(self) -> int:
        return self.kinds.total()


class Refused(Exception):  # noqa: N818 - a signal to whoever reads one row or message, not an error for people
    """Raised while one row, or one message of a server or its client, is read."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", type(None): "null"}


def kind_of(value: Any) -> str:
    """What JSON calls the value, in words for a message."""
    return _KINDS.get(type(value), type(value).__name__)


def shown(value: Any, limit: int = 60) -> str:
    """The value as a message quotes it: on one line, and not longer than `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
