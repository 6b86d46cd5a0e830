"""Splits depend on the content alone, and keep together what belongs together."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.data import split
from sapwood.errors import DataError
from sapwood.records import Conversation, Message, Source, ToolCall


def chat(prompt: str, answer: str = "a", **meta: object) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)), meta=meta, source=Source("rows.jsonl", 1))


def many(count: int) -> list[Conversation]:
    return [chat(f"question {i}") for i in range(count)]


def prompts(conversations: list[Conversation], indices: list[int]) -> list[str]:
    return sorted(conversations[i].messages[0].content for i in indices)


ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=2, max_size=40)


def made(rows: list[tuple[int, int]]) -> list[Conversation]:
    """Rows with few prompts (spelt in different ways) and few clusters, so that both chain together."""
    return [chat(f"Q  {p}" if i % 2 else f"q {p} ", f"answer {i}", doc=d) for i, (p, d) in enumerate(rows)]


def components(rows: list[tuple[int, int]], by_cluster: bool) -> list[set[int]]:
    """The reference: grow each group until nothing joins it any more."""
    left, groups = set(range(len(rows))), []
    while left:
        group = {left.pop()}
        while more := {j for j in left if any(rows[i][0] == rows[j][0] or (by_cluster and rows[i][1] == rows[j][1]) for i in group)}:
            group |= more
            left -= more
        groups.append(group)
    return groups


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(0, 5), st.floats(0.05, 0.9), st.booleans())
def test_groups_stay_whole_and_sizes_are_near(rows: list[tuple[int, int]], seed: int, share: float, by_cluster: bool) -> None:
    conversations = made(rows)
    groups = components(rows, by_cluster)
    cluster = "doc" if by_cluster else None
    if len(groups) < 2:
        with pytest.raises(DataError, match="belong together"):
            split(conversations, held_out=share, seed=seed, cluster=cluster)
        return
    train, held = split(conversations, held_out=share, seed=seed, cluster=cluster)
    assert sorted(train + held) == list(range(len(rows)))
    assert train == sorted(train)
    assert held == sorted(held)
    assert train
    assert held
    for group in groups:
        assert group <= set(train) or group <= set(held)
    wanted = min(max(round(share * len(rows)), 1), len(rows) - 1)
    kept = [len(group) for group in groups if group <= set(train)]
    taken = [len(group) for group in groups if group <= set(held)]
    off = abs(len(held) - wanted)
    assert off <= min(kept) / 2 or len(taken) == 1 or len(kept) == 1
    if 1 in kept:
        assert off == 0 or len(kept) == 1 or len(taken) == 1


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[int, int]], shuffle: random.Random, by_cluster: bool) -> None:
    conversations = made(rows)
    cluster = "doc" if by_cluster else None
    if len(components(rows, by_cluster)) < 2:
        return
    _, held = split(conversations, held_out=0.3, seed=1, cluster=cluster)
    order = list(range(len(rows)))
    shuffle.shuffle(order)
    _, again = split([conversations[i] for i in order], held_out=0.3, seed=1, cluster=cluster)
    assert sorted(order[i] for i in again) == held


def test_the_order_does_not_matter_within_clusters_of_many_prompts() -> None:
    conversations = [chat(f"question {i}", doc=i // 5) for i in range(60)]
    _, held = split(conversations, held_out=20, seed=1, cluster="doc")
    for trial in range(5):
        order = list(range(60))
        random.Random(trial).shuffle(order)
        _, again = split([conversations[i] for i in order], held_out=20, seed=1, cluster="doc")
        assert sorted(order[i] for i in again) == held


@pytest.mark.parametrize(("wanted", "found"), [(4, 4), (5, 4), (6, 4), (7, 8), (8, 8), (1, 4), (39, 36)])
def test_clusters_of_four_are_held_out_to_the_nearest(wanted: int, found: int) -> None:
    conversations = [chat(f"question {i}", doc=i // 4) for i in range(40)]
    assert len(split(conversations, held_out=wanted, seed=0, cluster="doc")[1]) == found


def test_sizes_and_seeds() -> None:
    conversations = many(1000)
    train, held = split(conversations, held_out=0.1, seed=0)
    assert (len(train), len(held)) == (900, 100)
    assert len(split(conversations, held_out=17, seed=0)[1]) == 17
    other = split(conversations, held_out=0.1, seed=1)[1]
    assert len(set(held) & set(other)) < 40, "another seed holds out others (10 in common are expected)"
    assert split(conversations, held_out=0.1, seed=0)[1] == held
    quarters = [sum(i // 250 == q for i in held) for q in range(4)]
    assert all(10 <= count <= 40 for count in quarters), f"a fair draw: {quarters}"


def test_what_is_held_out_is_pinned() -> None:
    """Runs of different versions must compare on the same items, so the draw may never change."""
    assert split(many(20), held_out=4, seed=0)[1] == [3, 12, 13, 17]


def test_big_groups_are_not_favoured() -> None:
    """Half the rows in groups of 20, half alone: over seeds, each kind is held out about as often as it is there."""
    conversations = [chat(f"group {i // 20}", doc=i) for i in range(400)] + [chat(f"single {i}", doc=-i) for i in range(1, 401)]
    share = [sum(i < 400 for i in split(conversations, held_out=200, seed=seed)[1]) / 200 for seed in range(30)]
    assert 0.4 < sum(share) / len(share) < 0.6


def test_one_row_more_moves_few() -> None:
    """Data that grows keeps its held-out rows, all but the few that the new size asks for."""
    conversations = many(500)
    before = set(prompts(conversations, split(conversations, held_out=50, seed=3)[1]))
    grown = [*conversations, *(chat(f"new {i}") for i in range(50))]
    after = set(prompts(grown, split(grown, held_out=50, seed=3)[1]))
    assert len(before & after) >= 40


def test_the_whole_context_makes_the_prompt() -> None:
    call = Message("assistant", tool_calls=(ToolCall("f", {"x": 1}),))
    other = Message("assistant", tool_calls=(ToolCall("f", {"x": 2}),))
    ask, tool, end = Message("user", "Q"), Message("tool", "r"), Message("assistant", "a")
    same = [Conversation((ask, call, tool, end)), Conversation((Message("user", " q "), call, tool, Message("assistant", "b")))]
    with pytest.raises(DataError, match="all 2 conversations belong together"):
        split(same, held_out=1, seed=0)
    split([same[0], Conversation((ask, other, tool, end))], held_out=1, seed=0)
    split([Conversation((end,)), Conversation((Message("assistant", "b"),))], held_out=1, seed=0)  # no prompt: the answer counts


@pytest.mark.parametrize("held_out", [0, 10, -1, 0.0, 1.0, 1.5, float("nan"), True])
def test_impossible_sizes(held_out: float) -> None:
    with pytest.raises(DataError, match=r"held_out is .*\. Give|, but there are 10 conversations\. Give"):
        split(many(10), held_out=held_out, seed=0)


def test_impossible_sets_and_columns() -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        split(many(1), held_out=0.5, seed=0)
    rows = [chat("1", doc="a", page=1), chat("2", doc="b", page=1), chat("3", page=1)]
    with pytest.raises(DataError, match=r"No conversation has the cluster column 'dok'\. Did you mean 'doc'\? Columns there: doc, page\."):
        split(rows, held_out=1, seed=0, cluster="dok")
    with pytest.raises(DataError, match=r"1 of 3 conversations have no value in the cluster column 'doc'; the first is rows\.jsonl:1"):
        split(rows, held_out=1, seed=0, cluster="doc")
    with pytest.raises(DataError, match="the same prompt or the same `page`"):
        split(rows, held_out=1, seed=0, cluster="page")


def test_a_chain_of_prompts_and_clusters_is_one_group() -> None:
    """a-b share a document, b-c a prompt, c-d a document: none may be parted from the others."""
    rows = [chat("1", doc="x"), chat("2", doc="x"), chat("2", doc="y"), chat("3", doc="y"), chat("4", doc="z")]
    for seed in range(20):
        train, held = split(rows, held_out=2, seed=seed, cluster="doc")
        assert {tuple(train), tuple(held)} == {(0, 1, 2, 3), (4,)}
    assert all(a < b for a, b in pairwise(split(many(9), held_out=3, seed=0)[0]))
