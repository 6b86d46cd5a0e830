"""Measures every interval and rule of Sapwood where the truth is known, and writes docs/statistics.md.

`python tests/stats/statistics_page.py` writes the page; a test fails where the page is not what the run makes. Rates are enumerated:
every outcome, with its probability. The rest is simulated with fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

from sapwood.config import from_dict
from sapwood.evaluate import ArmScore
from sapwood.evaluate.shipping import Shipping, Skills, ship
from sapwood.requirements import Requirements
from sapwood.stats import (
    Interval,
    benjamini_hochberg,
    clopper_pearson,
    cluster_bootstrap,
    mean_interval,
    minimum_detectable,
    more_items,
    not_worse,
    paired_difference,
    rate_interval,
    variance_split,
    wilson,
)

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
SIZES = (20, 50, 200)
RATES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
GRID = np.linspace(0.005, 0.995, 199)
BOUNDS = {"Wilson": 0.9, "Clopper–Pearson": 0.95, "default": 0.92}
"""What each method is promised to cover at every rate of the grid; the test holds it to that."""

Row = Sequence[Any]


def table(head: Row, rows: Sequence[Row]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * share:.{digits}f} %"


def plus_minus(k: float, n: float, level: float = 0.95) -> Interval:
    """The interval that "mean ± 1.96 standard errors" stands for."""
    half = 1.959964 * math.sqrt(k / n * (1 - k / n) / n)
    return Interval(k / n - half, k / n + half, level, "±")


METHODS: dict[str, Callable[[float, float], Interval]] = {
    "± 1.96 standard errors": plus_minus,
    "Wilson": wilson,
    "Clopper–Pearson": clopper_pearson,
    "default": rate_interval,
}


@cache
def coverage(method: str, n: int) -> tuple[dict[float, float], float, float]:
    """(coverage at each of `RATES`, the least over the grid, the mean over the grid), exact."""
    intervals = [METHODS[method](k, n) for k in range(n + 1)]
    low, high = np.array([one.low for one in intervals]), np.array([one.high for one in intervals])

    def at(rate: float) -> float:
        return float(stats.binom.pmf(np.arange(n + 1), n, rate)[(low <= rate) & (rate <= high)].sum())

    over = [at(rate) for rate in GRID]
    return {rate: at(rate) for rate in RATES}, min(over), float(np.mean(over))


def rates() -> str:
    """One rate."""
    rows = []
    for n in SIZES:
        for method in METHODS:
            at, least, mean = coverage(method, n)
            rows.append([n, method, *(percent(at[rate]) for rate in RATES), percent(least), percent(mean)])
    bounds = ", ".join(f"{method} {percent(bound, 0)}" for method, bound in BOUNDS.items())
    return "\n\n".join([
        "## One rate",
        "How often a 95 % interval holds the true rate, enumerated over every outcome. The last columns are the least and the mean over "
        f"199 rates from 0.5 % to 99.5 %. Promised at every rate of that grid and every size here: {bounds}. The default is exact with "
        "fewer than 5 hits or misses and Wilson's elsewhere.",
        table(["items", "method", *(f"rate {percent(rate, 0)}" for rate in RATES), "least", "mean"], rows),
    ])  # fmt: skip


def paired() -> str:
    """The paired difference, enumerated."""
    rows = []
    for n in (20, 50):
        won, lost = map(np.array, zip(*[(w, x) for w in range(n + 1) for x in range(n + 1 - w)], strict=True))
        keep = (won <= 32) & (lost <= 32)
        won, lost = won[keep], lost[keep]
        intervals = [pair_counts(int(w), int(x), n) for w, x in zip(won, lost, strict=True)]
        low, high = np.array([one.low for one in intervals]), np.array([one.high for one in intervals])
        ways = special.gammaln(n + 1) - special.gammaln(won + 1) - special.gammaln(lost + 1) - special.gammaln(n - won - lost + 1)
        for p, q in ((0.01, 0.01), (0.05, 0.05), (0.2, 0.2), (0.1, 0.02), (0.25, 0.1)):
            chance = np.exp(ways + won * math.log(p) + lost * math.log(q) + (n - won - lost) * math.log1p(-p - q))
            covered = float(chance[(low <= p - q) & (p - q <= high)].sum())
            false = percent(float(chance[low > 0].sum()), 2) if p == q else "–"
            rows.append([n, percent(p, 0), percent(q, 0), percent(covered), false])
    return "\n\n".join([
        "## The difference of two arms on the same items",
        "The interval of Bonett and Price with Student's t, enumerated over every split of the items into better, worse and alike. The "
        "last column is how often an arm that is no better is called better: at most 2.5 % is meant.",
        table(["items", "b better", "b worse", "coverage", "called better by chance"], rows),
    ])  # fmt: skip


def pair_counts(wins: int, losses: int, n: int) -> Interval:
    """The interval of so many wins and losses."""
    rest = n - wins - losses
    return paired_difference([0.0] * wins + [1.0] * losses + [0.0] * rest, [1.0] * wins + [0.0] * losses + [0.0] * rest).interval


@cache
def clustered(groups: int, size: int, copied: float, clusters: bool, repeats: int = 2000) -> float:
    """Share of simulated sets without any true difference whose interval leaves 0 out."""
    rng, names = np.random.default_rng(11), np.repeat(range(groups), size).tolist()
    alarms = 0
    for _ in range(repeats):
        shared, own = (rng.choice([1, -1, 0], p=[0.2, 0.2, 0.6], size=shape) for shape in ((groups, 1), (groups, size)))
        change = np.where(rng.random((groups, size)) < copied, shared, own).ravel()
        found = paired_difference((change < 0).astype(float), (change > 0).astype(float), names if clusters else None)
        alarms += 0 not in found.interval
    return alarms / repeats


CLUSTERS = ((10, 5, 0.7), (20, 5, 0.7), (40, 5, 0.7), (40, 5, 0.0), (30, 10, 0.5))


def clusters() -> str:
    """Items that belong together."""
    rows = [[g, s, f"{c:.1f}", percent(clustered(g, s, c, True)), percent(clustered(g, s, c, False))] for g, s, c in CLUSTERS]
    return "\n\n".join([
        "## Items that belong together",
        "2,000 simulated sets a row, in which both arms are equally good and an item repeats its cluster's outcome with the given chance. "
        "How often the 95 % interval of the difference leaves 0 out: at most 6 % is promised. The last column is the same with the "
        "clusters left unnamed.",
        table(["clusters", "items each", "repeats", "false differences", "without naming clusters"], rows),
    ])  # fmt: skip


def needs(**parts: Any) -> Requirements:
    """Requirements of a simulation."""
    return from_dict(Requirements, {"name": "simulated", **parts}, "here")


def arms(rng: np.random.Generator, n: int, up: float, down: float, names: tuple[str, str] = ("plain", "tuned")) -> list[list[ArmScore]]:
    """Two arms on n items, of which `up` gain and `down` lose."""
    change = rng.choice([1, -1, 0], p=[up, down, 1 - up - down], size=n)
    sides = [(change < 0).astype(float).tolist(), (change > 0).astype(float).tolist()]
    return [
        [ArmScore(name, f"i{k}", None, value, None, "", "", "stop", 1, 1, 0.0) for k, value in enumerate(side)]
        for name, side in zip(names, sides, strict=True)
    ]


RULE = needs(
    slices=[{"name": "hard", "tags": ["hard"], "margin": 0.1}],
    general=[{"name": "general", "margin": 0.05}],
)
SCENARIOS = {
    "no better, no worse": (0.1, 0.1, 0.05, 0.05),
    "worse by 6 points": (0.08, 0.14, 0.05, 0.05),
    "better by 12 points, general skills kept": (0.2, 0.08, 0.05, 0.05),
    "better by 20 points, general skills kept": (0.28, 0.08, 0.04, 0.04),
    "better by 20 points, general skills lose the whole margin": (0.28, 0.08, 0.05, 0.10),
    "better by 20 points, general skills lose 12 points": (0.28, 0.08, 0.03, 0.15),
}
STUDIES = 300


@cache
def whole_rule(scenario: str, n: int = 300, general: int = 400) -> dict[str, float]:
    """How often each answer is given."""
    up, down, gained, lost = SCENARIOS[scenario]
    rng, said = np.random.default_rng(8), {"ship": 0, "don't ship": 0, "inconclusive": 0}
    tags = {f"i{k}": ("hard",) if k % 3 == 0 else ("easy",) for k in range(n)}
    for _ in range(STUDIES):
        plain, tuned = arms(rng, n, up, down)
        skills = Skills("general", *arms(rng, general, gained, lost))
        found: Shipping = ship([*plain, *tuned], RULE, candidate="tuned", alternatives=["plain"], tags=tags, general=[skills])
        said[found.answer] += 1
    return {answer: count / STUDIES for answer, count in said.items()}


def rule() -> str:
    """Ship or not."""
    rows = [[name, *(percent(share) for share in whole_rule(name).values())] for name in SCENARIOS]
    return "\n\n".join([
        "## Ship or not: the whole rule",
        f"{STUDIES} simulated studies a row, each judged by the very function that judges yours: 300 items, a third of them a slice that "
        "may lose 10 points, and 400 items of a general skill that may lose 5. What must be rare stands in the rows whose truth forbids "
        "it: a model that is no better, or that loses the margin, is shipped at most about 2.5 % of the time; a better one is refused "
        "about never, and where these items cannot tell, the answer is that they cannot.",
        table(["the truth", "ship", "don't ship", "inconclusive"], rows),
    ])  # fmt: skip


def losses() -> str:
    """Non-inferiority alone."""
    rows = []
    for lost in (0.0, 0.03, 0.06):
        rng, said = np.random.default_rng(4), {"held": 0, "open": 0, "lost": 0}
        for _ in range(600):
            change = rng.choice([1, -1, 0], p=[0.08, 0.08 + lost, 0.84 - lost], size=500)
            said[not_worse(paired_difference((change < 0).astype(float), (change > 0).astype(float)), 0.03)] += 1
        rows.append([f"{100 * lost:.0f} points", *(percent(count / 600) for count in said.values())])
    return "\n\n".join([
        "## Was something lost?",
        "600 simulated studies a row of 500 items with a margin of 3 points. Where the truth lies on the margin, or beyond it, `held` is "
        "said wrongly at most about 2.5 % of the time.",
        table(["true loss", "held", "open", "lost"], rows),
    ])  # fmt: skip


def families() -> str:
    """Many slices."""
    rng, false, any_false, naive = np.random.default_rng(6), [], 0, 0
    for _ in range(400):
        p = np.concatenate([stats.norm.sf(rng.normal(size=16)), stats.norm.sf(rng.normal(3.2, 1, size=4))])
        claimed = np.array(benjamini_hochberg(p.tolist())) <= 0.05
        false.append(float(claimed[:16].sum() / max(1, claimed.sum())))
        any_false += bool(claimed[:16].any())
        naive += bool((p[:16] <= 0.05).any())
    rows = [["share of the marked slices that are marked by chance, on average", percent(float(np.mean(false)))]]
    rows += [["studies with any slice marked by chance", percent(any_false / 400)], ["the same without adjusting", percent(naive / 400)]]
    return "\n\n".join([
        "## Many slices at once",
        "400 simulated studies with 20 slices, of which 4 truly differ; marked at 5 % after Benjamini and Hochberg.",
        table(["", ""], rows),
    ])  # fmt: skip


def sizes() -> str:
    """What a study can show, and how many items more."""
    shares = (0.1, 0.2, 0.3)
    rows = [[n, *(f"{100 * minimum_detectable(n, share):.1f}" for share in shares)] for n in (100, 200, 500, 1000, 2000)]
    rng, shown = np.random.default_rng(5), 0
    change = [1.0] * 30 + [-1.0] * 18 + [0.0] * 152
    found = paired_difference([float(c < 0) for c in change], [float(c > 0) for c in change])
    more = more_items(found)
    assert more is not None
    for _ in range(300):
        won, lost, _ = rng.multinomial(200 + more, [0.15, 0.09, 0.76])
        shown += pair_counts(int(won), int(lost), 200 + more).low > 0
    return "\n\n".join([
        "## What a study can show",
        "The smallest true difference, in points, that is shown four times in five at 95 %, by the share of items that one of the two arms "
        "alone gets right.",
        table(["items", *(f"{percent(share, 0)} differ" for share in shares)], rows),
        f"An example of “about n more items”: 30 won and 18 lost of 200 leaves it open, and {more} more are said to be needed. In 300 "
        f"simulated studies of {200 + more} items with those shares as the truth, {percent(shown / 300, 0)} showed it; 80 % is meant.",
    ])  # fmt: skip


def resampled() -> str:
    """Bootstrap, mean scores in clusters, and the split of variance."""
    rng, repeats, names = np.random.default_rng(3), 120, np.repeat(range(40), 3).tolist()
    held = {"median": 0, "ratio": 0, "mean": 0}
    for _ in range(repeats):
        values = (rng.exponential(1.0, (40, 1)) + rng.exponential(0.5, (40, 3))).ravel()
        right = rng.random(120) < 0.5

        def median(rows: Any, values: Any = values) -> float:
            return float(np.median(values[rows]))

        def ratio(rows: Any, values: Any = values, right: Any = right) -> float:
            return float(values[rows].sum() / right[rows].sum())

        held["median"] += 1.236 in cluster_bootstrap(median, names, draws=300)
        held["ratio"] += 3.0 in cluster_bootstrap(ratio, names, draws=300)
    for _ in range(600):
        shared, own = rng.random(30) < 0.6, rng.random((30, 4)) < 0.6
        values = np.where(rng.random((30, 4)) < 0.6, shared[:, None], own).astype(float)
        held["mean"] += 0.6 in mean_interval(values.ravel(), np.repeat(range(30), 4).tolist())
    rows = [
        ["median, cluster bootstrap (BCa)", "40 clusters of 3", percent(held["median"] / repeats)],
        ["ratio, such as dollars a right answer, cluster bootstrap (BCa)", "40 clusters of 3", percent(held["ratio"] / repeats)],
        ["mean score in clusters, at its effective number of items", "30 clusters of 4", percent(held["mean"] / 600)],
    ]
    parts = {"item": 4.0, "seed": 1.0, "item_and_seed": 0.5, "sampling": 2.0}
    found = [
        variance_split(
            rng.normal(0, 2, (1, 30, 1))
            + rng.normal(0, 1, (5, 1, 1))
            + rng.normal(0, 0.5**0.5, (5, 30, 1))
            + rng.normal(0, 2**0.5, (5, 30, 4))
        )
        for _ in range(300)
    ]
    split = [[name.replace("_", " "), truth, f"{np.mean([getattr(one, name) for one in found]):.2f}"] for name, truth in parts.items()]
    return "\n\n".join([
        "## Without a formula",
        "How often a 95 % interval holds the truth, simulated. A bootstrap is somewhat too narrow at such sizes; its method is always "
        + "named.",
        table(["what", "of", "coverage"], rows),
        "## What a score varies with",
        "Variance components of 300 simulated tables of 5 trainings × 30 items × 4 samples, on average. `tests/stats` also holds the "
        "split to a published one (Montgomery's measurement study).",
        table(["between", "truth", "found"], split),
    ])  # fmt: skip


HEAD = """# How the statistics hold

Every number that Sapwood shows has an interval, and every interval has a method's name. This page says how often each of them is right,
measured where the truth is known. A test run writes it (`python tests/stats/statistics_page.py`), and a test fails where it is out
of date."""

SECTIONS: tuple[Callable[[], str], ...] = (rates, paired, clusters, rule, losses, families, sizes, resampled)


def sections() -> Iterator[str]:
    """The page's parts, in order."""
    yield HEAD
    for section in SECTIONS:
        yield section()


def page() -> str:
    """The page."""
    return "\n\n".join(sections()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
