"""What went wrong, and how bad: the error types of requirements.yaml counted in scores and in what people said.

In: scores, labels of people, error types. Out: for each arm how many answers have each error, and the harm of an answer: the sum of the
severities of its errors. An error that only people can find is counted among the answers that people looked at, and nowhere else.
Left out on purpose: guessing what people would have said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sapwood.evaluate.experiment import ArmScore
from sapwood.records import Ended
from sapwood.requirements import CUT, MATCHES, NO_ANSWER, PEOPLE, WRONG, ErrorType
from sapwood.stats import Difference, Interval, mean_interval, paired_difference

Labels = Mapping[tuple[str, str, int], Mapping[str, float | None]]
"""(arm, item, sample) → the errors that people found there, each with the severity of its worst occurrence (None is the error type's own);
empty where they looked and found none."""


@dataclass(frozen=True, slots=True)
class FaultCount:
    """One error type in one arm."""

    error: str
    arm: str
    count: int
    of: int
    """Answers that were looked at for it; 0 where nobody has."""
    interval: Interval | None
    items: tuple[str, ...]
    """Where it was found."""


def faults_in(score: ArmScore, errors: Sequence[ErrorType], labels: Labels) -> dict[str, bool | None]:
    """Error name → whether this answer has it; None where nobody has looked, or nothing could be judged."""
    seen = labels.get((score.arm, score.item, score.sample))
    return {error.name: _found(error, score, seen) for error in errors}


def count_faults(scores: Sequence[ArmScore], errors: Sequence[ErrorType], labels: Labels, level: float = 0.95) -> list[FaultCount]:
    """Each error type in each arm, in the order of the taxonomy and of first sight. Scores may hold several samples of an item."""
    arms = dict.fromkeys(score.arm for score in scores)
    by_arm = {arm: [(score, faults_in(score, errors, labels)) for score in scores if score.arm == arm] for arm in arms}
    counts = []
    for error in errors:
        for arm, found in by_arm.items():
            looked = [(score, faults[error.name]) for score, faults in found if faults[error.name] is not None]
            items = tuple(dict.fromkeys(score.item for score, has in looked if has))
            number = sum(bool(has) for _, has in looked)
            interval = _interval([(score, bool(has)) for score, has in looked], level) if looked else None
            counts.append(FaultCount(error.name, arm, number, len(looked), interval, items))
    return counts


def _interval(looked: Sequence[tuple[ArmScore, bool]], level: float) -> Interval:
    """Of the share of answers, over items: several samples of one are one share."""
    of_item: dict[str, list[bool]] = {}
    for score, has in looked:
        of_item.setdefault(score.item, []).append(has)
    clusters = {score.item: score.cluster if score.cluster is not None else ("item", score.item) for score, _ in looked}
    named = any(score.cluster is not None for score, _ in looked)
    shares = [sum(found) / len(found) for found in of_item.values()]
    return mean_interval(shares, [clusters[item] for item in of_item] if named else None, level)


def harm(score: ArmScore, errors: Sequence[ErrorType], labels: Labels) -> float | None:
    """The sum of the severities of an answer's errors; None where none of its error types was looked for."""
    found, said = faults_in(score, errors, labels), labels.get((score.arm, score.item, score.sample), {})
    known = [cost_of(error, said) * float(bool(found[error.name])) for error in errors if found[error.name] is not None]
    return sum(known) if known else None


def cost_of(error: ErrorType, said: Mapping[str, float | None]) -> float:
    """What this error of an answer costs: as people weighed it, else as its type is weighed."""
    weighed = said.get(error.name)
    return error.severity if weighed is None else weighed


def harm_difference(
    before: Sequence[ArmScore], after: Sequence[ArmScore], errors: Sequence[ErrorType], labels: Labels, level: float = 0.95
) -> Difference | None:
    """Harm of `after` minus harm of `before`, item by item; None where there is nothing to compare. Lower is better."""
    of_before = {score.item: harm(score, errors, labels) for score in before}
    pairs = [(of_before.get(score.item), harm(score, errors, labels), score) for score in after]
    known = [(a, b, score) for a, b, score in pairs if a is not None and b is not None]
    if not known:
        return None
    clusters = [score.cluster if score.cluster is not None else ("item", score.item) for _, _, score in known]
    return paired_difference([a for a, _, _ in known], [b for _, b, _ in known], clusters, level, bounded=False)


def _found(error: ErrorType, score: ArmScore, seen: Mapping[str, float | None] | None) -> bool | None:
    if seen is not None and error.name in seen:
        return True
    machine = _BY_MACHINE.get(error.found_by)
    if machine is not None:
        return machine(score)
    if error.found_by.startswith(MATCHES):
        return None if score.ended == Ended.ERROR else re.search(error.found_by.removeprefix(MATCHES), score.text) is not None
    return None if seen is None else False


_BY_MACHINE: dict[str, Callable[[ArmScore], bool | None]] = {
    WRONG: lambda score: None if score.value is None else score.value < 1,
    NO_ANSWER: lambda score: None if score.ended == Ended.ERROR else not (score.answer or "").strip(),
    CUT: lambda score: None if score.ended == Ended.ERROR else score.ended == Ended.LENGTH,
}
assert PEOPLE not in _BY_MACHINE
