"""Conversations → (train, held out). What belongs together stays on one side, and the content alone decides which.

Rows with the same prompt are one group, as are rows of one cluster (a document, a user, a function): a model that has
seen one of them has seen the question of the others. Left out on purpose: near duplicates, which need a threshold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sapwood.config import did_you_mean
from sapwood.errors import DataError
from sapwood.records import Conversation, Document, Message

Keys = NDArray[np.void]
"""16 bytes a row."""
Places = NDArray[np.int64]
_WORDS = np.dtype([("high", ">u8"), ("low", ">u8")])
"""16 bytes as two numbers that sort as the bytes do."""


def split(
    conversations: Sequence[Conversation | Document], *, held_out: float | int, seed: int, cluster: str | None = None
) -> tuple[list[int], list[int]]:
    """Indices of the conversations to train on and of those to hold out, each in ascending order.

    `held_out` is a share (a float between 0 and 1) or a number of conversations (an int, at least 1). The result is a
    function of the contents and the seed: the order of the rows does not matter. Groups are taken in the order of a
    hash; as long as neither side is empty, the number held out misses what was asked by at most half the size of the
    smallest group left for training. Raises `DataError` if a side would be empty, or if a conversation has no value
    in the column `cluster`.
    """
    wanted = _wanted(len(conversations), held_out)
    key_B = np.array([prompt_key(conversation) for conversation in conversations], dtype="V16")
    label_B = np.array(_clusters(conversations, cluster), dtype="V16") if cluster is not None else None
    kept, held = split_keys(key_B, label_B, wanted=wanted, seed=seed, cluster=cluster)
    return kept.tolist(), held.tolist()


def split_keys(key_B: Keys, label_B: Keys | None, *, wanted: int, seed: int, cluster: str | None = None) -> tuple[Places, Places]:
    """`split` by digests alone: `prompt_key` of each row, and of its cluster where there are clusters. Memory: some 100 bytes a row.

    `wanted` is the number to hold out. Raises `DataError` where everything belongs together.
    """
    prompt_B, rank_P = _ranked(key_B, seed)
    group_B = prompt_B if label_B is None else _joined(prompt_B, _numbered(label_B)[0])
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    if groups < 2:
        together = f"the same prompt or the same `{cluster}`" if cluster else "the same prompt"
        other = ", choose another cluster column" if cluster else ""
        raise DataError(
            f"Cannot hold anything out: all {len(key_B)} conversations belong together (they share {together}), and what "
            f"belongs together must stay on one side. Add other conversations{other}, or hold nothing out (--held-out 0): then "
            "nothing is judged."
        )
    first_G = np.full(groups, len(rank_P), dtype=np.int64)  # a group's prompt of the least key decides its rank
    np.minimum.at(first_G, group_B, prompt_B)
    order_G = np.lexsort((rank_P["low"][first_G], rank_P["high"][first_G]))
    size_G = np.bincount(group_B, minlength=groups)
    chosen_G = np.zeros(groups, dtype=bool)
    chosen_G[order_G[_choose(size_G[order_G], wanted)]] = True
    held_B = chosen_G[group_B]
    return np.flatnonzero(~held_B), np.flatnonzero(held_B)


def prompt_key(conversation: Conversation | Document) -> bytes:
    """Digest of what stands before the last assistant turn; upper and lower case and white space do not count.

    A conversation that begins with its only answer has no prompt, so the answer itself is its key; so is a document's text. Of tokens
    it is those before the first that is trained, or all of them.
    """
    if isinstance(conversation, Document) and conversation.tokens:
        first = next(place for place, weight in enumerate(conversation.weights) if weight)
        asked = conversation.tokens[:first] if first > 1 else conversation.tokens
        return hashlib.blake2b(orjson.dumps(asked), digest_size=16).digest()
    if isinstance(conversation, Document):
        return hashlib.blake2b(" ".join(conversation.text.casefold().split()).encode(), digest_size=16).digest()
    messages = conversation.messages
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=len(messages))
    return turns_key(messages[:last] or messages)


def turns_key(turns: Sequence[Message]) -> bytes:
    """The digest of turns that are asked, as `prompt_key` takes it of a conversation."""
    return hashlib.blake2b(orjson.dumps([_normalised(turn) for turn in turns], option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _normalised(message: Message) -> list[object]:
    text = " ".join(message.content.casefold().split())
    calls = [[call.name, call.arguments] for call in message.tool_calls]
    return [message.role, text, calls, *(medium.identity for medium in message.media)]


def _wanted(total: int, held_out: float | int) -> int:
    """The number of conversations asked for."""
    if total < 2:
        raise DataError(f"Cannot hold anything out of {total} conversations: at least 2 are needed, one for each side.")
    if isinstance(held_out, int) and not isinstance(held_out, bool):
        if 1 <= held_out < total:
            return held_out
        raise DataError(
            f"held_out is {held_out}, but there are {total} conversations. Give a number from 1 to {total - 1}, or a share such as 0.1."
        )
    if not 0 < held_out < 1:
        raise DataError(f"held_out is {held_out}. Give a share between 0 and 1 (such as 0.1), or a number of conversations (such as 100).")
    return min(max(round(held_out * total), 1), total - 1)


def _clusters(conversations: Sequence[Conversation | Document], column: str) -> list[bytes]:
    without = [c for c in conversations if c.meta.get(column) is None]
    if len(without) == len(conversations):
        known = sorted({name for c in conversations for name in c.meta})
        there = f"Columns there: {', '.join(known[:20])}." if known else "The rows have no columns besides those of their format."
        raise DataError(f"No conversation has the cluster column {column!r}.{did_you_mean(column, known)} {there}")
    if without:
        raise DataError(
            f"{len(without)} of {len(conversations)} conversations have no value in the cluster column {column!r}; the first is "
            f"{without[0].where}. Give each row a value (a unique one for a row that belongs with no other)."
        )
    return [label_key(c.meta[column]) for c in conversations]


def label_key(value: Any) -> bytes:
    """Digest of a value of the cluster column."""
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _numbered(key_B: Keys) -> tuple[Places, NDArray[Any]]:
    """The place of each key among the distinct ones, in their order as bytes, and those distinct ones."""
    words_B = np.frombuffer(key_B.tobytes(), dtype=_WORDS)
    order_B = np.lexsort((words_B["low"], words_B["high"]))
    sorted_B = words_B[order_B]
    new_B = np.ones(len(sorted_B), dtype=bool)
    new_B[1:] = sorted_B[1:] != sorted_B[:-1]
    number_B = np.empty(len(sorted_B), dtype=np.int64)
    number_B[order_B] = np.cumsum(new_B) - 1
    return number_B, sorted_B[new_B]


def _ranked(key_B: Keys, seed: int) -> tuple[Places, NDArray[Any]]:
    """Distinct prompts by number, and their rank in the order of this seed: a hash, so that neither size nor file order has a say."""
    prompt_B, distinct_P = _numbered(key_B)
    lead = f"{seed}:".encode()
    raw = distinct_P.tobytes()
    ranks = (hashlib.blake2b(lead + raw[place : place + 16], digest_size=16).digest() for place in range(0, len(raw), 16))
    return prompt_B, np.fromiter(ranks, dtype="V16", count=len(distinct_P)).view(_WORDS)


def _joined(prompt_B: Places, label_B: Places) -> Places:
    """Number of each row's group where rows of one prompt and rows of one label belong together, however long the chain."""
    from scipy.sparse import coo_array  # only those who name a cluster wait for this import
    from scipy.sparse.csgraph import connected_components

    prompts, labels = int(prompt_B.max(initial=-1)) + 1, int(label_B.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(prompt_B), dtype=bool), (prompt_B, prompts + label_B)), shape=(prompts + labels,) * 2)
    _, part = connected_components(edges, directed=False)
    return np.unique(part[prompt_B], return_inverse=True)[1].astype(np.int64)


def _choose(size_G: NDArray[np.int64], wanted: int) -> list[int]:
    """Places of groups whose sizes sum to about `wanted`: each that still fits, in order; then one more if that is nearer."""
    chosen, missing = [], wanted
    for group, size in enumerate(size_G.tolist()):
        if not missing:
            break
        if size <= missing:
            chosen.append(group)
            missing -= size
    left_G = np.ones(len(size_G), dtype=bool)
    left_G[chosen] = False
    places = np.flatnonzero(left_G)
    smallest = int(places[np.argmin(size_G[places])])
    nearer = size_G[smallest] - missing < missing
    if not chosen or (nearer and len(places) > 1):
        chosen.append(smallest)
    return chosen
