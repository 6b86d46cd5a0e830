"""The tree alone: paths spell their prompts whatever comes in what order, and memory stays within its bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generate.prompts_and_engines import engine, nested_prompts, prompts
from sapwood.generate import Engine
from sapwood.generate.forest_rows import ForestRows
from sapwood.generate.kept import Apart
from sapwood.generate.padded import PaddedStep
from sapwood.generate.tree import Node, Tree, anchor_of
from sapwood.records import SamplingParams

PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=9)
TOKEN_BYTES = 3 * 2 * 2 * 8 * 4


def computed(tree: Tree, end: Node) -> None:
    """Give each node on a path keys that are its tokens."""
    for node in end.path:
        if node.layers is None:
            keys = torch.from_numpy(node.tokens_T.astype(np.float64))[None, :, None]
            node.layers = Apart([(keys, keys + 100)])
    tree.touch(end.path)


def spelt(end: Node) -> list[int]:
    return [int(token) for node in end.path for token in node.tokens_T]


@given(
    batches=st.lists(st.lists(PROMPT, min_size=1, max_size=6), min_size=1, max_size=5),
    longest=st.integers(1, 9),
    min_saving=st.integers(1, 6),
    limit=st.integers(0, 20),
)
def test_paths_spell_their_prompts_and_keep_their_keys(batches: list[list[list[int]]], longest: int, min_saving: int, limit: int) -> None:
    tree = Tree(longest=longest, min_saving=min_saving)
    ends: list[tuple[list[int], Node]] = []
    for batch in batches:
        found = tree.insert([np.array(prompt) for prompt in batch])
        assert sorted(index for index, _ in found) == list(range(len(batch)))
        assert [batch[index] for index, _ in found] == sorted(batch), "depth first"
        ends += [(batch[index], end) for index, end in found]
        for prompt, end in ends:
            assert spelt(end) == prompt, "also those that came earlier, though their nodes were split"
            assert all(len(node.tokens_T) <= longest for node in end.path)
            computed(tree, end)
        for _, end in ends:
            for node in end.path:
                assert node.layers is not None
                assert node.layers[0][0][0, :, 0].tolist() == node.tokens_T.tolist()
                assert node.layers[0][1][0, :, 0].tolist() == (node.tokens_T + 100).tolist()
        tree.evict(limit)
        assert tree.held() <= limit
    for node in tree._nodes():
        assert node.active == sum(node in end.path for _, end in ends) or node.parent is None
    for _, end in ends:
        tree.withdraw(end)
    tree.evict(0)
    assert all(node.parent is None for node in tree._nodes()), "nothing is left behind"


def test_adapters_have_trees_of_their_own() -> None:
    tree = Tree(longest=9, min_saving=1)
    [(_, one)] = tree.insert([np.array([1, 2, 3])])
    [(_, other)] = tree.insert([np.array([1, 2, 3])], "law")
    assert not set(one.path) & set(other.path)


def test_pinned_and_kept_nodes_stay() -> None:
    tree = Tree(longest=9, min_saving=1)
    ends = [end for _, end in tree.insert([np.array([number] * 4) for number in range(4)])]
    for end in ends:
        computed(tree, end)
        tree.withdraw(end)
    ends[0].pins = 1
    tree.evict(0, keep=ends[1].path)
    assert [end.layers is not None for end in ends] == [True, True, False, False]
    assert tree.pinned


def test_what_is_attended_to_in_place_pays() -> None:
    tree = Tree(longest=99, min_saving=1)
    shared = list(range(10))
    ends = [end for _, end in tree.insert([np.array([*shared, 50 + number]) for number in range(6)])]
    assert anchor_of(ends[0], slots=6, keep_from=60) is ends[0].parent
    assert anchor_of(ends[0], slots=5, keep_from=60) is None, "fewer run at a time"
    assert anchor_of(ends[0], slots=6, keep_from=61) is None
    for end in ends[1:]:
        tree.withdraw(end)
    assert anchor_of(ends[0], slots=6, keep_from=1) is None, "nobody shares it any more"


def in_memory(made: Engine, rows: ForestRows) -> int:
    """Tokens that the tree and the rows hold."""
    if isinstance(rows.step, PaddedStep):
        return made._tree.held() + rows.step.cache.rows * rows.step.cache.capacity
    assert made._static is not None
    arena = made._static.arena
    held, own = made._tree.held(), sum(answer.limit for answer in rows.running)
    assert not arena.keys or arena.tokens - arena.free == held + own, "no slot is lost"
    return held + own


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(190, 900),
    slots=st.integers(2, 8),
    keep_from=st.sampled_from([1, 40, 10_000]),
)
def test_memory_never_exceeds_what_was_given(seed: int, tokens: int, slots: int, keep_from: int) -> None:
    made = engine("llama", memory=tokens * TOKEN_BYTES, slots=slots, keep_from=keep_from, min_saving=1, budget=32)
    rng = np.random.default_rng(seed)
    with made.open() as session:
        rows = session._rows
        assert isinstance(rows, ForestRows)
        for prompt in prompts(nested_prompts(seed)[1:9]):
            session.add(prompt, SamplingParams(max_new_tokens=int(rng.integers(1, 20))))
            if rng.random() < 0.5:
                session.step()
        ended = 0
        while not session.idle:
            ended += len([answer for answer in session.step() if answer.error is None])
            assert in_memory(made, rows) <= tokens
    assert ended
    assert not made._tree.pinned


def test_a_session_that_opens_again_finds_what_the_last_one_computed() -> None:
    made = engine("llama")
    with made.open() as session:
        session.add(prompts([[5, 6, 7]])[0], SamplingParams(max_new_tokens=2))
        session.step()
    assert made._tree.held() == 3, "the prompt; its answer was cancelled"
    with pytest.raises(AssertionError, match="a root has no tokens"):
        made._tree.split(next(iter(made._tree._roots.values())), 1)
