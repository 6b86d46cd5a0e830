"""The verdict: decisions, what they rest on, what is left out, and bits per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from sapwood.errors import DataError
from sapwood.evaluate import ArmScore, BitsChange, Verdict, bits_change, bits_per_token, decide
from sapwood.records import Example, Row, Source
from sapwood.run import open_run
from sapwood.stats import paired_difference


def arm(name: str, values: Sequence[float | None], clusters: Sequence[str] | None = None) -> list[ArmScore]:
    return [
        ArmScore(name, f"i{n}", clusters[n] if clusters else None, value, None, "", "", "stop", 1, 1, 0.0) for n, value in enumerate(values)
    ]


def pattern(right: int, n: int, start: int = 0) -> list[float | None]:
    return [float(start <= k < start + right) for k in range(n)]


def test_better_against_the_best_of_all_other_arms() -> None:
    verdict = decide(
        [*arm("plain", pattern(0, 96)), *arm("few-shot 4", pattern(10, 96)), *arm("tuned", pattern(40, 96, 2))], scorer="exact"
    )
    assert verdict.decision == "better"
    assert (verdict.best_other, verdict.reason) == ("few-shot 4", "")
    assert verdict.worse == ("i0", "i1")
    assert len(verdict.better) == 32
    expected = paired_difference(pattern(10, 96), pattern(40, 96, 2))
    assert verdict.difference == expected
    low, high = (f"{100 * bound:.1f}" for bound in (expected.interval.low, expected.interval.high))
    assert verdict.line == f"+31.2 points [{low}, {high}] over the best other arm (few-shot 4); 2 of 96 items got worse"
    assert any("one training run" in caveat for caveat in verdict.caveats)
    assert any("picked by its rate" in caveat for caveat in verdict.caveats)


def test_one_strong_arm_is_enough_to_show_nothing() -> None:
    scores = [*arm("plain", pattern(0, 96)), *arm("tuned", pattern(40, 96))]
    assert decide(scores).decision == "better"
    verdict = decide([*scores, *arm("nearest training row", pattern(39, 96))])
    assert verdict.decision == "not shown"
    assert verdict.best_other == "nearest training row"
    assert "not shown to be better or worse" in verdict.line
    assert f"{100 * verdict.difference.minimum_detectable:.1f} points or more" in verdict.line


def test_worse_and_equal_others() -> None:
    verdict = decide([*arm("tuned", pattern(10, 60)), *arm("b", pattern(40, 60)), *arm("a", pattern(40, 60))])
    assert verdict.decision == "worse"
    assert verdict.best_other == "b", "of equals the first"
    assert verdict.line.startswith("−50.0 points [−")
    assert "] against the best other arm (b); 30 of 60 items got worse" in verdict.line
    assert len(verdict.worse) == 30


@pytest.mark.parametrize(("n", "groups", "reason"), [(19, 19, "only 19 items"), (40, 9, "only 9 independent clusters")])
def test_too_little_shows_nothing_however_large(n: int, groups: int, reason: str) -> None:
    clusters = [f"c{k % groups}" for k in range(n)]
    scores = [*arm("plain", [0.0] * n, clusters), *arm("tuned", [1.0] * n, clusters)]
    verdict = decide(scores)
    assert verdict.decision == "not shown"
    assert reason in verdict.reason
    assert reason in verdict.line
    assert verdict.difference.interval.low > 0


def test_clusters_widen_the_interval() -> None:
    before, after = pattern(20, 100), pattern(45, 100)
    clusters = [f"c{k // 5}" for k in range(100)]
    alone, grouped = (decide([*arm("plain", before, c), *arm("tuned", after, c)]).difference for c in (None, clusters))
    assert grouped.interval.high - grouped.interval.low > 1.5 * (alone.interval.high - alone.interval.low)
    assert (alone.clusters, grouped.clusters) == (100, 20)


def test_items_without_a_score_are_left_out_and_reported() -> None:
    plain: list[float | None] = [*pattern(5, 97), None, None, None]
    verdict = decide([*arm("plain", plain), *arm("tuned", pattern(60, 100))])
    assert verdict.decision == "better"
    assert (verdict.difference.n, verdict.arms["plain"].unscored, verdict.arms["plain"].items) == (97, 3, 100)
    assert verdict.arms["plain"].rate == pytest.approx(5 / 97)
    assert any("3 of 100 items have no score" in caveat for caveat in verdict.caveats)
    assert any("'plain' could not be scored" in caveat for caveat in verdict.caveats)
    many = decide([*arm("plain", [*pattern(5, 80), *[None] * 20]), *arm("tuned", pattern(60, 100))])
    assert (many.decision, "20 of 100" in many.reason) == ("not shown", True)


def test_pairs_are_made_by_item_never_by_place() -> None:
    tuned = arm("tuned", pattern(40, 60))
    assert decide([*arm("plain", pattern(40, 60)), *reversed(tuned)]).difference.ties == 60


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (arm("plain", [1.0]), "no scores of an arm 'tuned'"),
        (arm("tuned", [1.0]), "another arm"),
        ([*arm("tuned", [1.0]), *arm("plain", [None])], "another arm"),
        ([*arm("tuned", [None, 1.0]), *arm("plain", [1.0])], "share no item"),
        (arm("tuned", [1.0]) * 2, "scored twice"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores: list[ArmScore], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decide(scores)


def test_the_file_says_all_that_the_report_reads(tmp_path: Path) -> None:
    verdict = decide([*arm("plain", pattern(5, 50)), *arm("tuned", pattern(30, 50))], scorer="exact", bits_per_token={"held-out": change()})
    run = open_run(tmp_path / "run")
    run.write_json("verdict", verdict.to_dict())
    run.close()
    found = orjson.loads((tmp_path / "run" / "verdict.json").read_bytes())
    assert found["arms"]["tuned"]["rate"] == 0.6
    assert {"rate", "low", "high", "n", "right", "unscored"} <= found["arms"]["plain"].keys()
    expected = {
        "mean",
        "low",
        "high",
        "level",
        "n",
        "clusters",
        "wins",
        "losses",
        "ties",
        "p_value",
        "minimum_detectable",
        "method",
        "note",
    }
    assert found["difference"].keys() == expected
    assert found["difference"]["low"] == verdict.difference.interval.low
    for key in ("decision", "line", "tuned", "best_other", "worse", "better", "caveats", "scorer"):
        assert found[key] == _plain(getattr(verdict, key))
    assert {"mean", "low", "high"} <= found["bits_per_token"]["held-out"]["before"].keys()


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_by_chance_better_is_rare() -> None:
    rng, called = np.random.default_rng(4), 0
    for _ in range(400):
        names = {name: (rng.random(60) < 0.3).astype(float).tolist() for name in ("a", "b", "c", "tuned")}
        verdict: Verdict = decide([score for name, values in names.items() for score in arm(name, values)])
        called += verdict.decision == "better"
    assert called / 400 <= 0.03


class Prober:
    """A `LogProber` that gives every token of id k the probability 2^-k, times `better`."""

    def __init__(self, better: float = 1.0) -> None:
        self.better = better

    def logprobs(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        return [-row.completion_T * math.log(2) * self.better for row in rows]


def example(*completions: list[int], weights: list[float] | None = None) -> Example:
    rows = [Row(np.array([0]), np.array(ids), np.array(weights or [1.0] * len(ids), dtype=np.float32)) for ids in completions]
    return Example(tuple(rows), Source("data.jsonl", 9))


EXAMPLES = [example([1, 3], [2]), example([4]), example([2, 9, 2], weights=[1.0, 0.0, 1.0])]


def change() -> BitsChange:
    return bits_change(bits_per_token(Prober(), EXAMPLES), bits_per_token(Prober(0.5), EXAMPLES))


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_bits_are_a_mean_over_trained_tokens(at_once: int) -> None:
    bits = bits_per_token(Prober(), EXAMPLES, at_once=at_once)
    assert bits.mean == pytest.approx((1 + 3 + 2 + 4 + 2 + 2) / 6)
    assert bits.tokens == 6
    assert bits.bits_B == pytest.approx((6, 4, 4))
    assert bits.mean in bits.interval


def test_bits_are_compared_example_by_example() -> None:
    found = change()
    assert found.mean == pytest.approx(found.after.mean - found.before.mean)
    rng = np.random.default_rng(0)
    many = [example(rng.integers(1, 12, 8).tolist()) for _ in range(30)]
    before, after = bits_per_token(Prober(), many), bits_per_token(Prober(0.95), many)
    paired = bits_change(before, after)
    assert paired.interval.high < 0, "a small change on every example shows"
    assert after.interval.high > before.interval.low, "which two separate intervals would not show"
    with pytest.raises(DataError, match="same examples"):
        bits_change(before, bits_per_token(Prober(), EXAMPLES))


def test_bits_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        bits_per_token(Prober(), [])
    with pytest.raises(DataError, match=r"data.jsonl:9.*weight"):
        bits_per_token(Prober(), [example([1], weights=[0.0])])
    with pytest.raises(DataError, match=r"data.jsonl:9.*finite"):
        bits_per_token(Prober(math.inf), [example([1])])
