"""Planting rows with media: places, contents and positions, for random rows and against transformers' own arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.forest import axis_positions, common_prefix, cut, plant
from sapwood.records import Content, Example, MediaSpan, Row

MARK = 9
GRIDS = {0: (1, 1, 3), 1: (1, 2, 2), 2: (1, 3, 1), 3: (1, 1, 3)}
"""Contents 0 and 3 take as many places as one another, and look alike in tokens."""


def nothing() -> Mapping[str, Any]:
    return {}


CONTENTS = {
    number: Content("image", hashlib.sha256(bytes([number])).hexdigest(), int(np.prod(grid)), nothing, grid)
    for number, grid in GRIDS.items()
}


def row_of(stretches: list[int | str]) -> Row:
    """A prompt of text tokens (texts) and contents (numbers), and a completion of two tokens."""
    tokens: list[int] = [1]
    media = []
    for stretch in stretches:
        if isinstance(stretch, int):
            content = CONTENTS[stretch]
            media.append(MediaSpan(np.arange(len(tokens), len(tokens) + content.length), content))
            tokens += [MARK] * content.length
        else:
            tokens += [ord(letter) for letter in stretch]
    return Row(np.array(tokens), np.array([3, 4]), np.ones(2, np.float32), tuple(media))


rows = st.lists(st.lists(st.one_of(st.integers(0, 3), st.sampled_from(["a", "bb", "ab"])), max_size=4).map(row_of), min_size=1, max_size=6)


@given(rows=rows, min_saving=st.sampled_from([1, 4, 16]))
@settings(max_examples=120, deadline=None)
def test_every_row_finds_its_own_tokens_contents_and_positions(rows: list[Row], min_saving: int) -> None:
    forest = plant(rows, min_saving=min_saving)
    content_at: dict[int, tuple[str, int]] = {}
    for medium in forest.media:
        for places in medium.places_OF:
            for number, place in enumerate(places.tolist()):
                assert place not in content_at, "no place holds two features"
                content_at[place] = (medium.content.hash, number)
    assert len({medium.content.hash for medium in forest.media}) == len(forest.media), "each content stands once"
    with_axes = any(row.media for row in rows)
    assert (forest.axes_3T is not None) == with_axes
    for index, row in enumerate(rows):
        first = int(forest.hidden_N[forest.target_E[forest.row_E == index][0]])
        path = path_to(forest, first)
        length = len(row.prompt_T)
        assert forest.tokens_T[path].tolist() == row.prompt_T.tolist()
        wanted = {place: (span.content.hash, number) for span in row.media for number, place in enumerate(span.places_F.tolist())}
        assert [content_at.get(place) for place in path] == [wanted.get(depth) for depth in range(length)]
        if forest.axes_3T is not None:
            assert forest.axes_3T[:, path].tolist() == axis_positions(length, row.media).tolist()


def path_to(forest: Any, place: int) -> list[int]:
    """Places from the root to `place`."""
    node = next(node for node, (start, end, _) in enumerate(forest.nodes_M.tolist()) if start <= place < end)
    found = [p for ancestor in forest.ancestors(node) for p in range(*forest.nodes_M[ancestor, :2].tolist())]
    return [*found, *range(int(forest.nodes_M[node, 0]), place + 1)]


@given(left=rows, right=rows)
@settings(max_examples=60, deadline=None)
def test_what_is_shared_is_the_same_tokens_and_the_same_contents(left: list[Row], right: list[Row]) -> None:
    one, other = left[0], right[0]
    shared = common_prefix(one.keys_T, other.keys_T)
    assert np.array_equal(one.inputs_T[:shared], other.inputs_T[:shared])
    kept = [[span.content.hash for span in row.media if span.start < shared] for row in (one, other)]
    assert kept[0] == kept[1]
    batches = cut([Example((row,)) for row in (*left, *right)], 64)
    assert sorted(index for batch in batches for index in batch.examples) == list(range(len(left) + len(right)))


@given(stretches=st.lists(st.one_of(st.integers(0, 2), st.sampled_from(["a", "bb"])), max_size=6))
@settings(max_examples=60, deadline=None)
def test_positions_are_those_of_qwen2_vl(stretches: list[int | str]) -> None:
    row = row_of([part for stretch in stretches for part in (stretch, "a")])  # its own arithmetic takes neighbours for one image
    model = QWEN
    kinds = torch.zeros(1, len(row.prompt_T), dtype=torch.int)
    for span in row.media:
        kinds[0, span.places_F] = 1
    grids = [[frames, 2 * height, 2 * width] for frames, height, width in (span.content.grid for span in row.media)]  # type: ignore[misc]
    expected, _ = model.get_rope_index(
        torch.from_numpy(row.prompt_T)[None], mm_token_type_ids=kinds, image_grid_thw=torch.tensor(grids) if grids else None
    )
    assert axis_positions(len(row.prompt_T), row.media).tolist() == expected[:, 0].tolist()


def _qwen() -> Any:
    vision = {"embed_dim": 8, "depth": 1, "hidden_size": 8, "num_heads": 1, "mlp_ratio": 1, "patch_size": 2, "spatial_merge_size": 2}
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config={**text, "vocab_size": 200, "rope_parameters": rope})
    return transformers.Qwen2VLForConditionalGeneration(config).model


QWEN = _qwen()
