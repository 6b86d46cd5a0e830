"""Conversations → (train, held out). What belongs together stays on one side, and the content alone decides which.

Rows with the same prompt are one group, as are rows of one cluster (a document, a user, a function): a model that has
seen one of them has seen the question of the others. Left out on purpose: near duplicates, which need a threshold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence

import orjson

from sapwood.config import did_you_mean
from sapwood.errors import DataError
from sapwood.records import Conversation, Message


def split(
    conversations: Sequence[Conversation], *, held_out: float | int, seed: int, cluster: str | None = None
) -> tuple[list[int], list[int]]:
    """Indices of the conversations to train on and of those to hold out, each in ascending order.

    `held_out` is a share (a float between 0 and 1) or a number of conversations (an int, at least 1). The result is a
    function of the contents and the seed: the order of the rows does not matter. Groups are taken in the order of a
    hash; as long as neither side is empty, the number held out misses what was asked by at most half the size of the
    smallest group left for training. Raises `DataError` if a side would be empty, or if a conversation has no value
    in the column `cluster`.
    """
    wanted = _wanted(len(conversations), held_out)
    keys = [prompt_key(conversation) for conversation in conversations]
    labels = _clusters(conversations, cluster) if cluster is not None else None
    groups = sorted(_groups(keys, labels), key=lambda members: _rank(seed, min(keys[i] for i in members)))
    if len(groups) < 2:
        together = f"the same prompt or the same `{cluster}`" if cluster else "the same prompt"
        raise DataError(
            f"Cannot hold anything out: all {len(conversations)} conversations belong together (they share {together}), and what "
            "belongs together must stay on one side. Add other conversations, or choose another cluster column."
        )
    chosen = _choose([len(members) for members in groups], wanted)
    held = sorted(i for g in chosen for i in groups[g])
    kept = set(held)
    return [i for i in range(len(conversations)) if i not in kept], held


def prompt_key(conversation: Conversation) -> bytes:
    """Digest of what stands before the last assistant turn; upper and lower case and white space do not count.

    A conversation that begins with its only answer has no prompt, so the answer itself is its key.
    """
    messages = conversation.messages
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=len(messages))
    asked = messages[:last] or messages
    return hashlib.blake2b(orjson.dumps([_normalised(m) for m in asked], option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


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


def _clusters(conversations: Sequence[Conversation], column: str) -> list[bytes]:
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
    return [orjson.dumps(c.meta[column], option=orjson.OPT_SORT_KEYS) for c in conversations]


def _groups(keys: Sequence[Hashable], labels: Sequence[Hashable] | None) -> list[list[int]]:
    """Union-find over equal keys and equal labels: the indices of each connected group."""
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for column in (keys, labels) if labels is not None else (keys,):
        _join_equal(column, parent, root)
    members: dict[int, list[int]] = {}
    for i in range(len(keys)):
        members.setdefault(root(i), []).append(i)
    return list(members.values())


def _join_equal(column: Sequence[Hashable], parent: list[int], root: Callable[[int], int]) -> None:
    first: dict[Hashable, int] = {}
    for i, value in enumerate(column):
        parent[root(i)] = root(first.setdefault(value, i))


def _rank(seed: int, key: bytes) -> bytes:
    """Place of a group in the order of this seed: a hash, so that neither size nor file order has a say."""
    return hashlib.blake2b(f"{seed}:".encode() + key, digest_size=16).digest()


def _choose(sizes: list[int], wanted: int) -> list[int]:
    """Indices of groups whose sizes sum to about `wanted`: each that still fits, in order; then one more if that is nearer."""
    chosen, missing = [], wanted
    for group, size in enumerate(sizes):
        if size <= missing:
            chosen.append(group)
            missing -= size
    left = sorted(set(range(len(sizes))) - set(chosen), key=lambda group: (sizes[group], group))
    nearer = sizes[left[0]] - missing < missing
    if not chosen or (nearer and len(left) > 1):
        chosen.append(left[0])
    return chosen
