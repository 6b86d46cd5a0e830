"""Rows that are token ids already: `input_ids`, and which of them are trained.

In: a row with `input_ids` and at most one of `labels` (-100 leaves a token untrained, as in transformers), `weights` (one
number a token) and `completion_mask` (0 or 1, as in TRL). Out: a `Document` of tokens. No template touches them and nothing
is added, so what ends an answer must stand in them. Left out on purpose: padding, which has no place in a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.data.refusal import Refused, kind_of, shown
from sapwood.records import Document, Source

UNTRAINED = -100
MASKS = ("labels", "weights", "completion_mask")


def tokenised(row: Mapping[str, Any], names: Mapping[str, str], meta: Mapping[str, Any], source: Source) -> Document:
    """The row as a document of tokens; `names` are the columns of `input_ids`, the masks and `attention_mask`. Raises `Refused`."""
    ids = row.get(names["input_ids"])
    if ids is None:
        raise Refused(f"missing column: no `{names['input_ids']}`", "give the ids of the row's tokens")
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise Refused(f"broken tokens: `{names['input_ids']}` is {kind_of(ids)}, not a list of ids", "give whole numbers, 0 or above")
    padding = row.get(names["attention_mask"])
    if padding is not None and (not isinstance(padding, list) or any(value != 1 for value in padding)):
        raise Refused("padding: `attention_mask` holds something besides 1", "give the row without padding")
    given = [name for name in MASKS if row.get(names[name]) is not None]
    if len(given) > 1:
        raise Refused(f"two masks: both `{given[0]}` and `{given[1]}` say what is trained", "keep one of the two")
    weights = _weights(given[0], row[names[given[0]]], ids) if given else [1.0] * len(ids)
    weights[:1] = [0.0] * len(weights[:1])  # nothing predicts the first token
    if not any(weights):
        raise Refused("nothing trained: no token behind the first one has a weight above 0", "train one of them, or delete the row")
    return Document(" ".join(map(str, ids)), meta, source, tuple(ids), tuple(weights))


def _weights(mask: str, values: Any, ids: Sequence[int]) -> list[float]:
    if not isinstance(values, list) or len(values) != len(ids):
        what = f"{len(values)} entries" if isinstance(values, list) else kind_of(values)
        raise Refused(f"broken mask: `{mask}` has {what} for {len(ids)} tokens", "give one for each token")
    for place, (value, token) in enumerate(zip(values, ids, strict=True)):
        if mask == "labels":
            if value not in (UNTRAINED, token) or isinstance(value, bool):
                raise Refused(
                    f"labels of other tokens: place {place} has the label {shown(value)} and the token {token}",
                    f"give the token's own id, not shifted, or {UNTRAINED}",
                )
        elif isinstance(value, bool | str) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise Refused(f"broken mask: place {place} of `{mask}` is {shown(value)}", "give a number, 0 or above")
    if mask == "labels":
        return [0.0 if value == UNTRAINED else 1.0 for value in values]
    return [float(value) for value in values]
