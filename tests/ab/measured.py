"""What docs/ab-tests.md says was measured: `python tests/ab/measured.py` runs it all (minutes) and writes the page's table.

The suite runs the same functions with fewer repetitions.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import select

from ab.trial import PLAN, Clock, plan_with, trial
from postgres_server import postgres_url
from sapwood.ab.analysis import SPLIT_ALPHA, alphas
from sapwood.ab.assign import unit_of
from sapwood.ab.plan import Arm, Step
from sapwood.ab.records import EXPOSURES, UNITS, reopen
from sapwood.stats import evidence, split_evidence, units_of

PAGE = Path(__file__).parents[2] / "docs" / "ab-tests.md"
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "ab-tests.json"
BEGIN, END = "<!-- measured by tests/ab/measured.py -->\n", "<!-- end -->\n"
UNITS_EACH = 1000
"""Units of a simulated experiment; after each of them somebody looks."""


def uniformity(units: int) -> dict[str, float]:
    """p-values of χ² over equal bins of [0, 1)."""
    places = np.array([unit_of(PLAN, f"user-{number}").place for number in range(units)])
    return {str(bins): float(stats.chisquare(np.histogram(places, bins, (0, 1))[0]).pvalue) for bins in (2, 10, 1000)}


def ramped(units: int) -> dict[str, int]:
    """Units that come back in every step of a ramp, to a process that was started anew: how many were ever in two arms."""
    ramp = tuple(Step(after=f"{hours}h", to=to) for hours, to in ((0, 0.02), (1, 0.1), (2, 0.5), (3, 1.0)))
    plan = plan_with(arms=(PLAN.arms[0], Arm(name="a", share=0.3), Arm(name="b", share=0.4)), ramp=ramp)
    clock, seen = Clock(), {}
    moved = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for hour in range(len(ramp)):
            running = trial(plan, Path(folder) / "ab.db", clock)
            running.asked = 10_000_000 * hour
            for number in range(units * (hour + 1) // len(ramp)):
                arm = running.ask(f"user-{number}")
                moved += seen.setdefault(number, arm) != arm
            running.book.close()
            clock.now += 3600
    return {"units": len(seen), "moved": moved, "arms": len(set(seen.values()))}


def _in_process(place: str, seed: int, names: int) -> None:
    running = trial(PLAN, place)
    running.asked = seed * 1_000_000
    for number in np.random.default_rng(seed).permutation(names):
        running.ask(f"user-{number}")
    running.book.close()


def two_processes(names: int) -> dict[str, int]:
    """Two processes meet the same units in other orders on one PostgreSQL."""
    place = postgres_url()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_in_process, args=(place, seed, names)) for seed in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    book = reopen(None, place)
    with book._store.reading() as connection:
        units = connection.execute(select(UNITS.c.id, UNITS.c.arm)).all()
        exposures = connection.execute(select(EXPOSURES.c.unit, EXPOSURES.c.served)).all()
    book.close()
    arms = dict(map(tuple, units))
    other = sum(arms[unit] != served for unit, served in exposures)
    failed = sum(process.exitcode != 0 for process in processes)
    return {"names": names, "units": len(units), "exposures": len(exposures), "in_another_arm": other, "failed": failed}


RATES = ((0.5, 0.55), (0.5, 0.6), (0.1, 0.15), (0.6, 0.7), (0.9, 0.95))
"""(control, treated) of the table of power."""
Draw = Callable[[np.random.Generator, int], np.ndarray]
COURSES: dict[str, tuple[Draw, np.ndarray]] = {
    "half resolve": (lambda rng, n: (rng.random(n) < 0.5).astype(float), np.full(UNITS_EACH, 0.5)),
    "one in ten resolves": (lambda rng, n: (rng.random(n) < 0.1).astype(float), np.full(UNITS_EACH, 0.5)),
    "one in fifty resolves": (lambda rng, n: (rng.random(n) < 0.02).astype(float), np.full(UNITS_EACH, 0.5)),
    "outcomes between 0 and 1": (lambda rng, n: rng.beta(2, 5, n), np.full(UNITS_EACH, 0.5)),
    "a ramp of 2, 10, 50 %, while outcomes drift from 0.2 to 0.8": (
        lambda rng, n: (rng.random(n) < np.linspace(0.2, 0.8, n)).astype(float),
        np.repeat([0.02, 0.1, 0.5], [300, 300, 400]),
    ),
}


def false_alarms(course: str, times: int, seed: int = 1) -> dict[str, float]:
    """Shares of A/A experiments that are ever called different, by the interval and by a z test at each unit from the hundredth on."""
    draw, chances = COURSES[course]
    rng, ours, naive = np.random.default_rng(seed), 0, 0
    for _ in range(times):
        outcome, treated = draw(rng, len(chances)), rng.random(len(chances)) < chances
        above, below = evidence(units_of(treated, chances, outcome, planned=UNITS_EACH))
        ours += max(above.max(), below.max()) >= math.log(2 / 0.05)
        naive += z_test_ever(treated, outcome)
    return {"times": times, "sequence": float(ours / times), "z_test": float(naive / times)}


def whole_experiments(times: int, seed: int = 2) -> dict[str, float]:
    """Share of A/A experiments with a guardrail in which anything at all is ever alarmed: gain, harm, guardrail or split."""
    alpha, guard = alphas(PLAN)
    rng, alarms, chances = np.random.default_rng(seed), 0, np.full(UNITS_EACH, 0.5)
    for _ in range(times):
        treated = rng.random(UNITS_EACH) < 0.5
        primary = evidence(units_of(treated, chances, (rng.random(UNITS_EACH) < 0.3).astype(float), planned=UNITS_EACH))
        seconds = 1 - np.minimum(rng.exponential(5, UNITS_EACH), 20) / 20
        harm = evidence(units_of(treated, chances, seconds, planned=UNITS_EACH))[1]
        split = split_evidence(treated.astype(int), [0.5, 0.5])
        alarms += (
            max(side.max() for side in primary) >= math.log(2 / alpha)
            or harm.max() >= math.log(1 / guard)
            or split.max() >= math.log(1 / SPLIT_ALPHA)
        )
    return {"times": times, "alarms": float(alarms / times)}


def power(control: float, treated: float, most: int, times: int, seed: int = 3) -> dict[str, Any]:
    """How often the gain is shown by 500, 1,000, … units, someone looking after each; and the median of when."""
    rng, first = np.random.default_rng(seed), []
    chances = np.full(most, 0.5)
    for _ in range(times):
        arm = rng.random(most) < 0.5
        outcome = (rng.random(most) < np.where(arm, treated, control)).astype(float)
        above = evidence(units_of(arm, chances, outcome, planned=UNITS_EACH))[0]
        found = np.flatnonzero(above >= math.log(2 / 0.05))
        first.append(float(found[0]) + 1 if len(found) else math.inf)
    shown = {str(n): float(np.mean(np.array(first) <= n)) for n in (500, 1000, 2000, 5000) if n <= most}
    median = float(np.median(first))
    p = (control + treated) / 2
    fixed = (1.959964 + 0.841621) ** 2 * 4 * p * (1 - p) / (treated - control) ** 2
    return {
        "times": times,
        "control": control,
        "treated": treated,
        "shown": shown,
        "median": median if math.isfinite(median) else None,
        "fixed_80": fixed,
    }


def planted_split(share: float, most: int, times: int, seed: int = 4) -> dict[str, Any]:
    """When a split of `share` that should be a half is found."""
    first = []
    for number in range(times):
        arms = (np.random.default_rng((seed, number)).random(most) < share).astype(int)
        found = np.flatnonzero(split_evidence(arms, [0.5, 0.5]) >= math.log(1 / SPLIT_ALPHA))
        first.append(float(found[0]) + 1 if len(found) else math.inf)
    found_n = int(np.isfinite(first).sum())
    median = float(np.median(first))
    return {"share": share, "times": times, "most": most, "found": found_n, "median": median if math.isfinite(median) else None}


def z_test_ever(treated: np.ndarray, outcome: np.ndarray) -> bool:
    """Whether a fixed-size test, made after every unit from the hundredth on, ever calls them different."""
    n1, n0 = treated.cumsum(), (~treated).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        m1, m0 = (outcome * treated).cumsum() / n1, (outcome * ~treated).cumsum() / n0
        v1, v0 = (outcome**2 * treated).cumsum() / n1 - m1**2, (outcome**2 * ~treated).cumsum() / n0 - m0**2
        z = (m1 - m0) / np.sqrt(v1 / n1 + v0 / n0)
    return bool((np.abs(z[100:]) > 1.959964).any())


def measure_all(say: Callable[[str], None]) -> dict[str, Any]:
    """Everything at full size."""
    found: dict[str, Any] = {}
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("uniformity", lambda: uniformity(1_000_000)),
        ("ramped", lambda: ramped(2000)),
        ("two_processes", lambda: two_processes(1000)),
        ("false_alarms", lambda: {course: false_alarms(course, 2000) for course in COURSES}),
        ("whole_experiments", lambda: whole_experiments(2000)),
        ("power", lambda: [power(*rates, 5000, 500) for rates in RATES]),
        ("split_right", lambda: planted_split(0.5, 20_000, 1000)),
        ("split_wrong", lambda: [planted_split(0.51, 200_000, 100), planted_split(0.4975, 1_500_000, 10)]),
    ]
    for name, step in steps:
        found[name] = step()
        say(f"{name}: {found[name]}")
    return found


def table(found: dict[str, Any]) -> str:
    """The page's part."""
    two, ramp, whole = found["two_processes"], found["ramped"], found["whole_experiments"]
    uniform = ", ".join(f"{p:.2f} over {int(bins):,}" for bins, p in found["uniformity"].items())
    lines = [
        "| claim | measured |",
        "|---|---|",
        f"| a million units are uniform | χ² p = {uniform} bins |",
        f"| ramps move nobody | {ramp['units']:,} units, 3 arms, 4 steps, a restart before each: {ramp['moved']} moved |",
        f"| two processes on one PostgreSQL agree | {two['names']:,} units met by both: {two['units']:,} recorded, "
        f"{two['exposures']:,} answers, "
        f"{two['in_another_arm']} in another arm |",
        f"| nothing false in a whole experiment (gain, harm, guardrail, split) | {100 * whole['alarms']:.1f} % of {whole['times']:,} A/A |",
        f"| a right split is not called broken | {found['split_right']['found']} of {found['split_right']['times']:,}, "
        f"looked at after each of {found['split_right']['most']:,} units |",
    ]
    for one in found["split_wrong"]:
        what = "1 point too many (51 to 49)" if one["share"] > 0.5 else "1 % of one arm's units lost"
        median = f"median after {one['median']:,.0f} units" if one["median"] else "no median"
        lines.append(f"| {what} is found | {one['found']} of {one['times']} within {one['most']:,}, {median} |")
    lines += ["", f"A/A experiments of {UNITS_EACH:,} units, looked at after every unit: how many were ever called different.", ""]
    lines += ["| outcomes | experiments | interval of Sapwood | z test |", "|---|---|---|---|"]
    for course, one in found["false_alarms"].items():
        lines.append(f"| {course} | {one['times']:,} | {100 * one['sequence']:.1f} % | {100 * one['z_test']:.0f} % |")
    each = found["power"][0]["times"]
    lines += ["", f"How often a true gain was shown by then, planned for {UNITS_EACH:,} units ({each} experiments each).", ""]
    sizes = list(found["power"][0]["shown"])
    heads = "".join(f" {int(n):,} |" for n in sizes)
    lines += [f"| control → treated |{heads} median | one look at a fixed size, 80 % |", "|---|" + "---|" * (len(sizes) + 2)]
    for one in found["power"]:
        cells = "".join(f" {100 * one['shown'][n]:.0f} % |" for n in sizes)
        median = f"{one['median']:,.0f}" if one["median"] else "later"
        lines.append(f"| {one['control']:g} → {one['treated']:g} |{cells} {median} | {one['fixed_80']:,.0f} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, found: dict[str, Any]) -> str:
    """The page with the table in it."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + table(found) + END + rest.partition(END)[2]


if __name__ == "__main__":
    results = measure_all(lambda line: print(line, flush=True))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
