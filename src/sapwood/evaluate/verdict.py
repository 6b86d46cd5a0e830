"""Did tuning help? The scores of all arms in, one decision with its interval and its weaknesses out.

"better" is said only where the 95 % interval of the paired difference, tuned minus the best of all other arms, lies
above 0; "worse" where it lies below; else "not shown". `verdict.json` is `Verdict.to_dict()`, and the report reads it:

    decision        "better" | "worse" | "not shown"
    line            one sentence for people; `reason` says why "not shown" where it is not for the interval
    tuned, best_other   names of the two arms compared
    difference      {mean, low, high, level, n, clusters, wins, losses, ties, p_value, minimum_detectable, method, note}
    arms            name → {rate, low, high, method, n, right, unscored, items}; shares, not percent
    worse, better   ids of the items where tuned scores lower, higher than best_other
    caveats         sentences that belong to the number
    bits_per_token  name of the texts → {before, after, change, statement}, see `bits`
    scorer, level

Left out on purpose: a verdict without another arm, one from unpaired items, and a choice of the favourable comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sapwood.errors import DataError
from sapwood.evaluate.bits import BitsChange
from sapwood.evaluate.experiment import ArmScore, over_samples
from sapwood.stats import Difference, Interval, mean_interval, paired_difference

Decision = Literal["better", "worse", "not shown"]

FEWEST_ITEMS = 20
"""Below this many paired items nothing is decided."""

FEWEST_CLUSTERS = 10
"""Below this many independent clusters nothing is decided."""

MOST_UNSCORED = 0.1
"""Above this share of items without a score on both sides nothing is decided: what is left is a selection."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one arm reached on the items it could be scored on."""

    rate: float | None
    """Mean score; None where no item could be scored."""
    interval: Interval | None
    items: int
    """Items asked, `unscored` ones included."""
    right: float
    """Sum of the scores: for right-or-wrong scorers the number of right answers."""
    unscored: int

    def to_dict(self) -> dict[str, Any]:
        """The arm's part of `verdict.json`."""
        low, high, method = (self.interval.low, self.interval.high, self.interval.method) if self.interval else (None, None, "")
        scored = self.items - self.unscored
        found: dict[str, Any] = {"rate": self.rate, "low": low, "high": high, "method": method}
        return {**found, "n": scored, "right": self.right, "unscored": self.unscored, "items": self.items}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision and everything it rests on."""

    decision: Decision
    line: str
    reason: str
    """Why nothing was decided; empty where something was."""
    tuned: str
    best_other: str
    difference: Difference
    arms: Mapping[str, ArmResult]
    worse: tuple[str, ...]
    better: tuple[str, ...]
    caveats: tuple[str, ...]
    scorer: str = ""
    bits_per_token: Mapping[str, BitsChange] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of `verdict.json`; see the module's text."""
        d = self.difference
        return {
            "decision": self.decision,
            "line": self.line,
            "reason": self.reason,
            "tuned": self.tuned,
            "best_other": self.best_other,
            "difference": {**difference_record(d), "method": f"{d.method}; {d.interval.method}"},
            "arms": {name: arm.to_dict() for name, arm in self.arms.items()},
            "worse": list(self.worse),
            "better": list(self.better),
            "caveats": list(self.caveats),
            "bits_per_token": {name: change.to_dict() for name, change in self.bits_per_token.items()},
            "scorer": self.scorer,
            "level": d.interval.level,
        }


def difference_record(found: Difference) -> dict[str, Any]:
    """A paired difference, in shares of 1."""
    return {
        "mean": found.mean,
        "low": found.interval.low,
        "high": found.interval.high,
        "level": found.interval.level,
        "n": found.n,
        "clusters": found.clusters,
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "p_value": found.p_value,
        "minimum_detectable": found.minimum_detectable,
        "method": found.method,
        "note": found.note,
    }


def decide(
    scores: Iterable[ArmScore],
    *,
    tuned: str = "tuned",
    level: float = 0.95,
    scorer: str = "",
    bits_per_token: Mapping[str, BitsChange] | None = None,
    training_runs: int = 1,
) -> Verdict:
    """Compare `tuned` with the best of all other arms, paired on items that both were scored on.

    Of the other arms the one with the highest mean score is taken, the first of equals. `training_runs` is how many
    trainings the tuned scores come from, for the caveat. Raises `DataError` where the tuned arm, any other arm, or any
    item scored on both sides is missing.
    """
    by_arm = _by_arm(scores)
    if tuned not in by_arm:
        raise DataError(f"There are no scores of an arm {tuned!r}; found {_names(by_arm)}. Run the arm, or name another one.")
    arms = {name: arm_result(list(entries.values()), level) for name, entries in by_arm.items()}
    others = {name: arm.rate for name, arm in arms.items() if name != tuned and arm.rate is not None}
    if not others:
        raise DataError(f"A verdict needs another arm with scores to compare {tuned!r} with; found {_names(by_arm)}. Run one more arm.")
    best = max(others, key=lambda name: others[name])  # the first of equals, for max keeps the first
    pairs = [(by_arm[best][item], score) for item, score in by_arm[tuned].items() if item in by_arm[best]]
    both = [(a, b, a.value, b.value) for a, b in pairs if a.value is not None and b.value is not None]
    if not both:
        raise DataError(f"{tuned!r} and {best!r} share no item that was scored in both. Evaluate both on the same items.")
    clusters = [b.cluster if b.cluster is not None else ("item", b.item) for _, b, _, _ in both]
    difference = paired_difference([entry[2] for entry in both], [entry[3] for entry in both], clusters, level)
    asked = len({*by_arm[tuned], *by_arm[best]})
    reason = _reason(difference, asked)
    decision = _decision(difference, reason)
    return Verdict(
        decision=decision,
        line=_line(decision, reason, difference, best),
        reason=reason,
        tuned=tuned,
        best_other=best,
        difference=difference,
        arms=arms,
        worse=tuple(b.item for _, b, before, after in both if after < before),
        better=tuple(b.item for _, b, before, after in both if after > before),
        caveats=tuple(_caveats(difference, arms, tuned, best, asked, training_runs, _copies(by_arm[tuned].values()))),
        scorer=scorer,
        bits_per_token=bits_per_token or {},
    )


def _by_arm(scores: Iterable[ArmScore]) -> dict[str, dict[str, ArmScore]]:
    by_arm: dict[str, dict[str, ArmScore]] = {}
    for score in over_samples(scores):
        by_arm.setdefault(score.arm, {})[score.item] = score
    return by_arm


def arm_result(scores: Sequence[ArmScore], level: float = 0.95) -> ArmResult:
    """The rate of one arm with an interval over its clusters; items without a score are counted, and left out of the rate."""
    if any(score.sample for score in scores):
        scores = over_samples(scores)
    scored = [(score, score.value) for score in scores if score.value is not None]
    if not scored:
        return ArmResult(None, None, len(scores), 0.0, len(scores))
    values = [value for _, value in scored]
    named = any(score.cluster is not None for score, _ in scored)
    clusters = [score.cluster if score.cluster is not None else ("item", score.item) for score, _ in scored] if named else None
    rate = sum(values) / len(values)
    return ArmResult(rate, mean_interval(values, clusters, level), len(scores), sum(values), len(scores) - len(scored))


def paired_scores(before: Sequence[ArmScore], after: Sequence[ArmScore], level: float = 0.95) -> Difference | None:
    """After minus before over the items that were scored on both sides; None where there is none. One score an item each."""
    values = {score.item: score.value for score in before}
    pairs = [(a, score.value, score) for score in after if score.value is not None and (a := values.get(score.item)) is not None]
    if not pairs:
        return None
    clusters = [score.cluster if score.cluster is not None else ("item", score.item) for _, _, score in pairs]
    return paired_difference([a for a, _, _ in pairs], [b for _, b, _ in pairs], clusters, level)


def _reason(difference: Difference, asked: int) -> str:
    if difference.n < FEWEST_ITEMS:
        return f"only {difference.n} items were scored on both sides, and {FEWEST_ITEMS} are needed"
    if difference.clusters < FEWEST_CLUSTERS:
        return f"the items come from only {difference.clusters} independent clusters, and {FEWEST_CLUSTERS} are needed"
    if asked - difference.n > MOST_UNSCORED * asked:
        return f"{asked - difference.n} of {asked} items lack a score on one side, which is more than {MOST_UNSCORED:.0%}"
    return ""


def _decision(difference: Difference, reason: str) -> Decision:
    if reason:
        return "not shown"
    if difference.interval.low > 0:
        return "better"
    return "worse" if difference.interval.high < 0 else "not shown"


def _line(decision: Decision, reason: str, difference: Difference, best: str) -> str:
    low, high = _points(difference.interval.low, ""), _points(difference.interval.high, "")
    over = "over" if difference.mean >= 0 else "against"
    words = f"{_points(difference.mean)} points [{low}, {high}] {over} the best other arm ({best})"
    if reason:
        words += f": nothing is shown, because {reason}"
    elif decision == "not shown":
        words += (
            f": not shown to be better or worse; a comparison of this size shows {100 * difference.minimum_detectable:.1f} points or more"
        )
    verb = "item" if difference.n == 1 else "items"
    return f"{words}; {difference.losses} of {difference.n} {verb} got worse"


def _points(share: float, plus: str = "+") -> str:
    points = round(100 * share, 1)
    sign = "−" if points < 0 else plus if points > 0 else ""
    return f"{sign}{abs(points):.1f}"


def _caveats(
    difference: Difference, arms: Mapping[str, ArmResult], tuned: str, best: str, asked: int, training_runs: int, copies: int
) -> list[str]:
    runs = "one training run" if training_runs == 1 else f"{training_runs} training runs"
    units = f"{difference.n} item" + "s" * (difference.n != 1)
    units += "" if difference.clusters == difference.n else f" in {difference.clusters} clusters"
    said = [
        f"The interval is over {units}, of {runs}: it says how the result would vary with other such items, "
        "not how it would vary with another training seed.",
        f"True differences below {100 * difference.minimum_detectable:.1f} points would usually be missed here "
        "(four times in five one of that size is found).",
    ]
    if len([arm for name, arm in arms.items() if name != tuned and arm.rate is not None]) > 1:
        said.append(
            f"The best other arm ({best}) was picked by its rate on these very items, which flatters it a little: "
            "if anything the difference is too small."
        )
    if asked > difference.n:
        said.append(f"{asked - difference.n} of {asked} items have no score on one side and are left out of the difference.")
    said += [
        f"{arm.unscored} of {arm.items} items of the arm {name!r} could not be scored; they count neither as right nor as wrong."
        for name, arm in arms.items()
        if arm.unscored
    ]
    if copies:
        said.append(f"{copies} rows asked and expected the very same as another and count once.")
    if difference.note:
        said.append(f"{difference.note[0].upper()}{difference.note[1:]}.")
    return said


def _copies(scores: Iterable[ArmScore]) -> int:
    return sum(score.copies - 1 for score in scores)


def _names(by_arm: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, by_arm)) or "none at all"
