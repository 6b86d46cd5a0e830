"""The split of `bench.together`: families lie on one side, and no more is trained on than asked for."""

from __future__ import annotations

import numpy as np
from bench.together import ALIKE, split
from hypothesis import given
from hypothesis import strategies as st

from sapwood.records import Example, Row


@given(st.lists(st.integers(1, 6), min_size=6, max_size=30), st.integers(4, 60), st.integers(0, 5))
def test_no_family_is_trained_on_and_held_out(sizes: list[int], most: int, seed: int) -> None:
    examples = []
    for family, size in enumerate(sizes):
        for member in range(size):
            prompt = np.array([*([family] * ALIKE), 1000 + member])
            examples.append(Example((Row(prompt, np.array([7, 8]), np.ones(2, np.float32)),)))
    trained, held = split(examples, most, seed)
    families = [{int(one.rows[0].prompt_T[0]) for one in side} for side in (trained, held)]
    assert not families[0] & families[1]
    assert len(trained) <= most
    assert len(held) <= most // 4
    assert trained
