"""Krippendorff's alpha against the worked examples of Krippendorff (2011) and against chance."""

from __future__ import annotations

import numpy as np
import pytest

from sapwood.stats import krippendorff_alpha


def by_unit(*raters: str) -> dict[object, list[str]]:
    return {n: [value for value in unit if value != "."] for n, unit in enumerate(zip(*raters, strict=True))}


@pytest.mark.parametrize(
    ("ratings", "alpha"),
    [
        (by_unit("0100000010", "1110010000"), 0.095),  # §A, two raters, binary
        (by_unit("aabbdcccedda", "babbbccceddd"), 0.692),  # §B, two raters, names
        (by_unit("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),  # §C, four raters with gaps
    ],
)
def test_published_examples(ratings: dict[object, list[str]], alpha: float) -> None:
    assert krippendorff_alpha(ratings) == pytest.approx(alpha, abs=5e-4)


def test_agreement_and_chance() -> None:
    assert krippendorff_alpha({1: ["a", "a"], 2: ["b", "b"]}) == 1.0
    rng = np.random.default_rng(0)
    assert krippendorff_alpha({n: rng.integers(0, 3, 4).tolist() for n in range(2000)}) == pytest.approx(0, abs=0.03)


def test_nothing_to_say() -> None:
    assert krippendorff_alpha({}) is None
    assert krippendorff_alpha({1: ["a"], 2: ["b"]}) is None
    assert krippendorff_alpha({1: ["a", "a"], 2: ["a", "a"]}) is None
