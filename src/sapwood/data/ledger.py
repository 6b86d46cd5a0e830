"""The ledger: every row of the input ends as trained, held out, refused, or left out as asked, and they add up.

In: the number of rows, then what became of each. Out: a table for people, records for `ledger.jsonl`, and a stop where
too many rows were refused. Left out on purpose: deciding anything; whoever decides about a row enters it here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sapwood.data.refusal import Refusal
from sapwood.errors import ConfigError, DataError
from sapwood.records import Source

MAX_REFUSED = 0.02
"""Share of refused rows from which on a run stops, unless it was told otherwise."""
_EXAMPLES = 3


@dataclass(slots=True)
class Ledger:
    """What became of each of `rows_in` rows. Enter each row once; `assert_whole` says whether all are there.

    A row that is entered twice is a bug of the caller: `AssertionError`. Rows made in code have the source None.
    """

    rows_in: int
    left_out: int = 0
    """Rows that `--only` did not name."""
    trained: list[Source | None] = field(default_factory=list)
    held_out: list[Source | None] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    trained_tokens: int = 0
    """Completion tokens of the trained rows: those that the loss is computed on."""
    prompt_tokens: int = 0
    """Prompt tokens of the trained rows, shared ones counted in each row."""
    _entered: set[Source] = field(default_factory=set)

    def train(self, source: Source | None, *, trained_tokens: int = 0, prompt_tokens: int = 0) -> None:
        """Enter a row that is trained on, with its token counts where they are known."""
        self._enter(source)
        self.trained.append(source)
        self.trained_tokens += trained_tokens
        self.prompt_tokens += prompt_tokens

    def hold_out(self, source: Source | None) -> None:
        """Enter a row that is kept for evaluation."""
        self._enter(source)
        self.held_out.append(source)

    def refuse(self, *refusals: Refusal) -> None:
        """Enter rows that are neither."""
        for refusal in refusals:
            self._enter(refusal.source)
            self.refused.append(refusal)

    def _enter(self, source: Source | None) -> None:
        if source is not None:
            assert source not in self._entered, f"{source} was entered into the ledger twice"
            self._entered.add(source)

    def assert_whole(self) -> None:
        """Raise `AssertionError` unless rows in = trained + held out + refused + left out."""
        found = len(self.trained) + len(self.held_out) + len(self.refused) + self.left_out
        assert self.rows_in == found, (
            f"the ledger does not add up: {self.rows_in} rows in, but {len(self.trained)} trained + {len(self.held_out)} held out "
            f"+ {len(self.refused)} refused + {self.left_out} left out = {found}"
        )

    def check(self, max_refused: float = MAX_REFUSED) -> None:
        """Raise `DataError` if more than this share of all rows was refused, or all; may be called before all rows are entered."""
        if not (math.isfinite(max_refused) and 0 <= max_refused <= 1):
            raise ConfigError(f"max_refused is {max_refused}; give a share from 0 (stop at the first refused row) to 1 (never stop).")
        wanted = self.rows_in - self.left_out
        if self.rows_in and not wanted:
            raise DataError(f"--only names none of the {self.rows_in} rows. Check the column and its values, or leave --only out.")
        share = len(self.refused) / wanted if wanted else 0.0
        if not self.refused or (share <= max_refused and len(self.refused) < wanted):
            return
        reasons = "\n".join(self._reason_lines())
        if len(self.refused) == wanted:
            advice = "No row is left, so there is nothing to go on with: mend the rows"
        else:
            enough = math.ceil(share * 1000) / 1000
            advice = f"Mend these rows, or pass --max-refused {enough:g} to train without them"
        found = f"{len(self.refused)} of {wanted} rows were refused ({share:.1%}; at most {max_refused:.1%} may be)"
        raise DataError(f"{found}:\n{reasons}\n{advice}.")

    def lines_for_people(self) -> list[str]:
        """A compact table: counts, then the reasons, the most frequent first, with the first places of each and the fix."""
        self.assert_whole()
        lines = [f"rows in    {self.rows_in:>9,}"]
        for name, count in (("trained", len(self.trained)), ("held out", len(self.held_out)), ("refused", len(self.refused))):
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
        for kind, members in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
            yield f"  {len(members):,} × {kind}"
            for refusal in members[:_EXAMPLES]:
                detail = refusal.reason.removeprefix(kind).removeprefix(": ")
                yield f"      {refusal.source or 'a row made in code'}" + (f"  {detail}" if detail else "")
            if len(members) > _EXAMPLES:
                yield f"      … and {len(members) - _EXAMPLES:,} more"
            for fix in dict.fromkeys(refusal.fix for refusal in members[:_EXAMPLES] if refusal.fix):
                yield f"      fix: {fix}"

    def records(self) -> list[dict[str, Any]]:
        """For `ledger.jsonl`: one record a row (status, file, line, reason, fix), then a summary that adds up."""
        self.assert_whole()
        rows = [_record("trained", source) for source in self.trained]
        rows += [_record("held_out", source) for source in self.held_out]
        rows += [{**_record("refused", refusal.source), "reason": refusal.reason, "fix": refusal.fix} for refusal in self.refused]
        return [*rows, {"kind": "summary", **self.counts()}]

    def counts(self) -> dict[str, int]:
        """The numbers of the summary."""
        return {
            "rows_in": self.rows_in,
            "trained": len(self.trained),
            "held_out": len(self.held_out),
            "refused": len(self.refused),
            "left_out": self.left_out,
            "trained_tokens": self.trained_tokens,
            "prompt_tokens": self.prompt_tokens,
        }


def _record(status: str, source: Source | None) -> dict[str, Any]:
    place = {"file": source.file, "line": source.line} if source else {"file": None, "line": None}
    return {"kind": "row", "status": status, **place}
