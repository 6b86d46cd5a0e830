"""The forest holds exactly its rows, each beginning once, and never loses a target."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.forest import Forest, common_prefix, cut, plant, sort_key, unique_tokens
from sapwood.records import Example, Row

TOKENS = st.integers(0, 3)  # few tokens, so that beginnings are shared and branch deep


@st.composite
def rows(draw: st.DrawFn) -> Row:
    ids = np.array(draw(st.lists(TOKENS, min_size=2, max_size=12)), dtype=np.int64)
    cut_at = draw(st.integers(1, len(ids) - 1))
    weights = np.array(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(ids) - cut_at, max_size=len(ids) - cut_at)), np.float32)
    return Row(ids[:cut_at], ids[cut_at:], weights)


FORESTS = st.lists(rows(), min_size=1, max_size=9)


def paths(forest: Forest) -> list[list[int]]:
    """Tokens from the root through each place, by walking parents."""
    found: list[list[int]] = [[] for _ in range(forest.num_tokens)]
    for node, (start, end, _) in enumerate(forest.nodes_M.tolist()):
        above = [
            token
            for ancestor in forest.ancestors(node)
            for token in forest.tokens_T[forest.nodes_M[ancestor, 0] : forest.nodes_M[ancestor, 1]].tolist()
        ]
        for place in range(start, end):
            above = [*above, int(forest.tokens_T[place])]
            found[place] = above
    return found


@given(FORESTS, st.sampled_from([1, 3, 16]))
def test_every_use_is_predicted_from_exactly_what_its_row_has_seen(given_rows: list[Row], min_saving: int) -> None:
    forest = plant(given_rows, min_saving=min_saving)
    seen = paths(forest)
    uses = sorted(zip(forest.row_E, forest.place_E, forest.target_E, forest.weight_E, strict=True), key=lambda use: use[:2])
    expected = [(index, place) for index, row in enumerate(given_rows) for place in range(len(row.completion_T))]
    assert [(int(row), int(place)) for row, place, _, _ in uses] == expected, "every completion token of every row is used once"
    for row_index, place, target, weight in uses:
        row = given_rows[row_index]
        assert forest.token_N[target] == row.completion_T[place]
        assert weight == row.weights_T[place]
        assert seen[forest.hidden_N[target]] == [*row.prompt_T, *row.completion_T[:place]]


@given(FORESTS)
def test_each_distinct_beginning_stands_once_when_all_is_shared(given_rows: list[Row]) -> None:
    forest = plant(given_rows, min_saving=1)
    beginnings = {tuple(row.inputs_T[:length]) for row in given_rows for length in range(1, len(row.inputs_T) + 1)}
    assert forest.num_tokens == len(beginnings)
    assert len({tuple(path) for path in paths(forest)}) == forest.num_tokens


@given(FORESTS, st.sampled_from([1, 3]))
def test_shape_of_the_arrays(given_rows: list[Row], min_saving: int) -> None:
    forest = plant(given_rows, min_saving=min_saving)
    starts, ends, parents = forest.nodes_M.T
    assert [0, *ends] == [*starts, forest.num_tokens], "nodes tile the flat row"
    assert (parents < np.arange(len(parents))).all(), "parents stand before their children"
    for node, behind in enumerate(forest.subtree_end_M):
        below = [other for other in range(len(parents)) if node in forest.ancestors(other)]
        assert behind == max([ends[node], *ends[below]]), "descendants lie right behind a node"
        assert all(node < other for other in below)
        assert not below or ends[below].max() - ends[node] == sum(ends[below] - starts[below]), "and nothing else lies between"
    assert [len(path) - 1 for path in paths(forest)] == forest.positions_T.tolist()
    assert len({*zip(forest.hidden_N.tolist(), forest.token_N.tolist(), strict=True)}) == len(forest.token_N)


@given(FORESTS)
def test_the_order_of_rows_changes_nothing_but_their_index(given_rows: list[Row]) -> None:
    one, other = plant(given_rows, min_saving=1), plant(given_rows[::-1], min_saving=1)
    assert one.tokens_T.tolist() == other.tokens_T.tolist()
    assert one.nodes_M.tolist() == other.nodes_M.tolist()


@given(st.lists(st.lists(rows(), min_size=1, max_size=3).map(lambda r: Example(tuple(r))), min_size=1, max_size=8), st.integers(1, 60))
def test_micro_batches_hold_each_example_once_and_keep_to_the_budget(examples: list[Example], budget: int) -> None:
    batches = cut(examples, budget)
    assert sorted(index for batch in batches for index in batch.examples) == list(range(len(examples)))
    for batch in batches:
        alone = len(batch.examples) == 1
        shared = plant([row for index in batch.examples for row in examples[index].rows], min_saving=1).num_tokens
        assert shared <= budget or alone
        assert batch.forest.num_rows == sum(len(examples[index].rows) for index in batch.examples)
    assert sum(float(batch.forest.weight_E.sum()) for batch in batches) == pytest.approx(sum(example.weight for example in examples))


def test_a_shared_prompt_is_kept_together() -> None:
    prompts = [np.arange(100) + 1000 * group for group in range(3)]
    examples = [
        Example((Row(prompts[group], np.array([5, index + 10]), np.ones(2, np.float32)),)) for index in range(6) for group in range(3)
    ]
    batches = cut(examples, 130)
    assert len(batches) == 3
    assert all(batch.forest.num_tokens == 100 + 1 for batch in batches), "one prompt and one shared first token each"
    assert unique_tokens(examples[0]) == 101


@given(st.lists(TOKENS, max_size=6), st.lists(TOKENS, max_size=6))
def test_keys_sort_like_token_lists(left: list[int], right: list[int]) -> None:
    a, b = np.array(left, dtype=np.int64), np.array(right, dtype=np.int64)
    assert (sort_key(a) < sort_key(b)) == (left < right)
    shared = common_prefix(a, b)
    assert left[:shared] == right[:shared]
    assert shared == min(len(left), len(right)) or left[shared] != right[shared]


@given(lengths=st.lists(st.integers(5, 400), min_size=1, max_size=10), budget=st.integers(50, 1000))
def test_equally_cheap_cuts_are_even(lengths: list[int], budget: int) -> None:
    """Where nothing is shared, all cuts into as few passes as possible cost the same: no other one has a smaller sum of squares."""
    lengths = sorted(lengths)
    examples = [
        Example((Row(np.full(length, place), np.array([1]), np.ones(1, np.float32)),)) for place, length in enumerate(lengths, start=100)
    ]
    sizes = [batch.forest.num_tokens for batch in cut(examples, budget)]
    others = [
        [sum(lengths[a:b]) for a, b in itertools.pairwise((0, *edges, len(lengths)))]
        for edges in itertools.combinations(range(1, len(lengths)), len(sizes) - 1)
    ]
    fitting = [other for other in others if all(size <= budget or size in lengths for size in other)]
    assert sum(size * size for size in sizes) == min(sum(size * size for size in other) for other in fitting)


def test_a_step_that_does_not_fit_is_halved_not_filled() -> None:
    examples = [Example((Row(np.full(100, place), np.array([1]), np.ones(1, np.float32)),)) for place in range(10)]
    assert [batch.forest.num_tokens for batch in cut(examples, 900)] == [500, 500]
