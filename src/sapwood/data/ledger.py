"""The ledger: every row of the input ends as trained, held out, refused, or left out as asked, and they add up.

In: the number of rows, then what became of each. Out: a table for people, records for `ledger.jsonl`, and a stop where
too many rows were refused. Left out on purpose: deciding anything; whoever decides about a row enters it here.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapwood.data.refusal import Refusal, Refusals
from sapwood.errors import ConfigError, DataError
from sapwood.records import Source

MAX_REFUSED = 0.02
"""Share of refused rows from which on a run stops, unless it was told otherwise."""
_EXAMPLES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """The places of many rows: for each the number of its file among `names` (-1 where it was made in code), and its line."""

    names: Sequence[str]
    file_B: NDArray[np.int32]
    line_B: NDArray[np.int64]


class Places:
    """Where rows stand, two numbers each: a million of them are no burden. Rows made in code have the source None."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._file, self._line = array("i"), array("q")

    def add(self, source: Source | None) -> None:
        """One more."""
        self._file.append(-1 if source is None else self._names.setdefault(source.file, len(self._names)))
        self._line.append(0 if source is None else source.line)

    def add_all(self, rows: Located) -> None:
        """Many at once."""
        numbers = np.array([*(self._names.setdefault(name, len(self._names)) for name in rows.names), -1], dtype=np.int32)
        self._file.frombytes(numbers[rows.file_B].tobytes())
        self._line.frombytes(rows.line_B.astype(np.int64).tobytes())

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Source | None]:
        names = list(self._names)
        for file, line in zip(self._file, self._line, strict=True):
            yield None if file < 0 else Source(names[file], line)


@dataclass(slots=True)
class Ledger:
    """What became of each of `rows_in` rows. Enter each row once; `assert_whole` says whether all are there.

    A row that is entered twice is a bug of the caller: `AssertionError`. Rows made in code have the source None.
    """

    rows_in: int
    left_out: int = 0
    """Rows that `--only` did not name."""
    trained: Places = field(default_factory=Places)
    held_out: Places = field(default_factory=Places)
    refused: list[Refusal] = field(default_factory=list)
    """Refused rows that are kept whole; all of them, unless more were entered by `refuse_all`."""
    trained_tokens: int = 0
    """Completion tokens of the trained rows: those that the loss is computed on."""
    prompt_tokens: int = 0
    """Prompt tokens of the trained rows, shared ones counted in each row."""
    _entered: dict[str, bytearray] = field(default_factory=dict)
    """For each file one byte a line: whether its row is entered."""
    _beyond: Counter[str] = field(default_factory=Counter)
    _elsewhere: Callable[[], Iterator[Refusal]] | None = None

    def train(self, source: Source | None, *, trained_tokens: int = 0, prompt_tokens: int = 0) -> None:
        """Enter a row that is trained on, with its token counts where they are known."""
        self._enter(source)
        self.trained.add(source)
        self.trained_tokens += trained_tokens
        self.prompt_tokens += prompt_tokens

    def train_all(self, rows: Located, *, trained_tokens: int, prompt_tokens: int) -> None:
        """Enter many rows that are trained on."""
        self._enter_all(rows)
        self.trained.add_all(rows)
        self.trained_tokens += trained_tokens
        self.prompt_tokens += prompt_tokens

    def hold_out_all(self, rows: Located) -> None:
        """Enter many rows that are kept for evaluation."""
        self._enter_all(rows)
        self.held_out.add_all(rows)

    def hold_out(self, source: Source | None) -> None:
        """Enter a row that is kept for evaluation."""
        self._enter(source)
        self.held_out.add(source)

    def refuse(self, *refusals: Refusal) -> None:
        """Enter rows that are neither."""
        for refusal in refusals:
            self._enter(refusal.source)
            self.refused.append(refusal)

    def refuse_all(self, refusals: Iterable[Refusal], again: Callable[[], Iterator[Refusal]], keep: int) -> None:
        """Enter refused rows that lie in a file: `keep` of each kind are held, the others counted; `again` reads all of them."""
        assert self._elsewhere is None, "refused rows of a file were entered before"
        found = Refusals(limit=keep)
        for refusal in refusals:
            self._enter(refusal.source)
            found.add(refusal)
        self.refused += found.kept
        self._beyond = found.kinds - Counter(refusal.kind for refusal in found.kept)
        self._elsewhere = again

    @property
    def refusals(self) -> int:
        """Number of refused rows."""
        return len(self.refused) + self._beyond.total()

    def _enter(self, source: Source | None) -> None:
        if source is None:
            return
        lines = self._lines(source.file, source.line)
        assert not lines[source.line], f"{source} was entered into the ledger twice"
        lines[source.line] = 1

    def _enter_all(self, rows: Located) -> None:
        for number, name in enumerate(rows.names):
            line_B = rows.line_B[rows.file_B == number]
            if len(line_B):
                entered = np.frombuffer(self._lines(name, int(line_B.max())), dtype=np.uint8)
                assert not entered[line_B].any(), f"{name}: rows were entered into the ledger twice"
                entered[line_B] = 1
                assert np.count_nonzero(np.bincount(line_B) > 1) == 0, f"{name}: rows were entered into the ledger twice"

    def _lines(self, file: str, last: int) -> bytearray:
        """The bytes of a file's lines, up to `last` at least."""
        lines = self._entered.setdefault(file, bytearray())
        if last >= len(lines):
            lines.extend(bytes(max(last + 1 - len(lines), len(lines))))
        return lines

    def assert_whole(self) -> None:
        """Raise `AssertionError` unless rows in = trained + held out + refused + left out."""
        found = len(self.trained) + len(self.held_out) + self.refusals + self.left_out
        also = f"+ {self.left_out} left out " if self.left_out else ""
        assert self.rows_in == found, (
            f"the ledger does not add up: {self.rows_in} rows in, but {len(self.trained)} trained + {len(self.held_out)} held out "
            f"+ {self.refusals} refused {also}= {found}"
        )

    def check(self, max_refused: float = MAX_REFUSED) -> None:
        """Raise `DataError` if more than this share of all rows was refused, or all; may be called before all rows are entered."""
        if not (math.isfinite(max_refused) and 0 <= max_refused <= 1):
            raise ConfigError(f"max_refused is {max_refused}; give a share from 0 (stop at the first refused row) to 1 (never stop).")
        wanted = self.rows_in - self.left_out
        if self.rows_in and not wanted:
            raise DataError(f"--only names none of the {self.rows_in} rows. Check the column and its values, or leave --only out.")
        share = self.refusals / wanted if wanted else 0.0
        if not self.refusals or (share <= max_refused and self.refusals < wanted):
            return
        reasons = "\n".join(self._reason_lines())
        if self.refusals == wanted:
            what = "see the fix above" if any(refusal.fix for refusal in self.refused) else "mend the rows"
            advice = f"No row is left, so there is nothing to go on with: {what}"
        else:
            enough = math.ceil(share * 1000) / 1000
            advice = f"Mend these rows, or pass --max-refused {enough:g} to train without them"
        found = f"{self.refusals} of {wanted} rows were refused ({share:.1%}; at most {max_refused:.1%} may be)"
        raise DataError(f"{found}:\n{reasons}\n{advice}.")

    def lines_for_people(self) -> list[str]:
        """A compact table: counts, then the reasons, the most frequent first, with the first places of each and the fix."""
        self.assert_whole()
        lines = [f"rows in    {self.rows_in:>9,}"]
        for name, count in (("trained", len(self.trained)), ("held out", len(self.held_out)), ("refused", self.refusals)):
            lines.append(f"  {name:<9}{count:>9,}  {count / self.rows_in:>6.1%}" if self.rows_in else f"  {name:<9}{count:>9,}")
        if self.left_out:
            lines.append(f"  {'left out':<9}{self.left_out:>9,}  {self.left_out / self.rows_in:>6.1%}  by --only")
        if self.trained_tokens:
            total = self.trained_tokens + self.prompt_tokens
            share = f"{self.trained_tokens:,} trained ({self.trained_tokens / total:.1%}), {self.prompt_tokens:,} prompt"
            lines.append(f"tokens     {total:>9,}  {share}")
        if self.refused:
            lines += ["refused, by reason:", *self._reason_lines()]
        return lines

    def _reason_lines(self) -> Iterator[str]:
        groups: dict[str, list[Refusal]] = {}
        for refusal in self.refused:
            groups.setdefault(refusal.kind, []).append(refusal)
        counts = {kind: len(members) + self._beyond[kind] for kind, members in groups.items()}
        for kind, members in sorted(groups.items(), key=lambda group: (-counts[group[0]], group[0])):
            yield f"  {counts[kind]:,} × {kind}"
            for refusal in members[:_EXAMPLES]:
                detail = refusal.reason.removeprefix(kind).removeprefix(": ")
                yield f"      {refusal.source or 'a row made in code'}" + (f"  {detail}" if detail else "")
            if counts[kind] > _EXAMPLES:
                yield f"      … and {counts[kind] - _EXAMPLES:,} more"
            for fix in dict.fromkeys(refusal.fix for refusal in members[:_EXAMPLES] if refusal.fix):
                yield f"      fix: {fix}"

    def as_held_out(self) -> Ledger:
        """Of rows that were prepared like others, and are judged instead of trained on."""
        return replace(self, trained=self.held_out, held_out=self.trained, trained_tokens=0, prompt_tokens=0)

    def records(self) -> Iterator[dict[str, Any]]:
        """For `ledger.jsonl`: one record a row (status, file, line, reason, fix), then a summary that adds up."""
        return records_of(self)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for status, places in (("trained", self.trained), ("held_out", self.held_out)):
            for source in places:
                yield _record(status, source)
        for refusal in self.refused if self._elsewhere is None else self._elsewhere():
            yield {**_record("refused", refusal.source), "reason": refusal.reason, "fix": refusal.fix}

    def counts(self) -> dict[str, int]:
        """The numbers of the summary."""
        return {
            "rows_in": self.rows_in,
            "trained": len(self.trained),
            "held_out": len(self.held_out),
            "refused": self.refusals,
            "left_out": self.left_out,
            "trained_tokens": self.trained_tokens,
            "prompt_tokens": self.prompt_tokens,
        }


def records_of(*ledgers: Ledger) -> Iterator[dict[str, Any]]:
    """The rows of several ledgers, then one summary of all. Raises `AssertionError` where one does not add up, before any is written."""
    for ledger in ledgers:
        ledger.assert_whole()
    return _records_of(ledgers)


def _records_of(ledgers: Sequence[Ledger]) -> Iterator[dict[str, Any]]:
    counts: Counter[str] = Counter()
    for ledger in ledgers:
        yield from ledger._rows()
        counts.update(ledger.counts())
    yield {"kind": "summary", **counts}


def _record(status: str, source: Source | None) -> dict[str, Any]:
    place = {"file": source.file, "line": source.line} if source else {"file": None, "line": None}
    return {"kind": "row", "status": status, **place}
