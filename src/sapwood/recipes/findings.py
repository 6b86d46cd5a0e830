"""What a decision found: scores, pilot trainings and prices in; the evidence for the answer and the record of the run out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean as mean
from typing import Any

import numpy as np

from sapwood.config import to_dict
from sapwood.evaluate import ArmResult, ArmScore, arm_result
from sapwood.evaluate.costs import ArmCost, break_even, hosted_cost, own_cost, with_rate
from sapwood.evaluate.decision import MORE_ROWS, Decision, Evidence, estimates
from sapwood.evaluate.format_check import Form, form_share
from sapwood.evaluate.free import FREE_ARMS
from sapwood.evaluate.hosted import HOSTED
from sapwood.evaluate.learning_curve import LearningCurve, learning_curve
from sapwood.recipes.arms import PLAIN
from sapwood.recipes.pilot import Point
from sapwood.records import Item
from sapwood.requirements import Prices
from sapwood.stats import Difference, Interval, paired_difference

TUNED_ALL = "tuned on all rows (expected)"


@dataclass
class Findings:
    """What was measured so far, and what it is weighed by."""

    items: list[Item]
    rows: int
    """To train on."""
    gain: float
    wish: float | None
    prices: Prices
    smallest: int
    """Rows that a pilot needs."""
    full_steps: int
    """Of a training on all rows."""
    scores: dict[str, list[ArmScore]] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    form: Form | None = None
    tokens_out: float = 0.0
    """Mean tokens of a reference answer."""
    missing_seconds: float | None = None

    def add(self, scores: Iterable[ArmScore]) -> None:
        """More scores, of arms that were not there."""
        for score in scores:
            self.scores.setdefault(score.arm, []).append(score)

    @property
    def largest(self) -> Point:
        """The pilot training on the most rows, the first of equals."""
        return max(self.points, key=lambda point: (point.rows, -point.seed))

    def curve(self, best: str) -> LearningCurve | None:
        """Over the items that all points and the best arm were scored on; None below two sizes, or without such items."""
        if len({point.rows for point in self.points}) < 2:
            return None
        values = {
            name: {score.item: score.value for score in self.scores[name] if score.value is not None}
            for name in (best, *(point.arm for point in self.points))
        }
        clusters = {score.item: score.cluster or score.item for score in self.scores[best]}
        items = [item.id for item in self.items if all(item.id in found for found in values.values())]
        if not items:
            return None
        scores = [[values[point.arm][item] for item in items] for point in self.points]
        base = [values[best][item] for item in items]
        return learning_curve([point.rows for point in self.points], scores, base, [clusters[item] for item in items])

    def measured(self, best: str) -> Difference | None:
        """All trainings of the largest size, taken together, minus the best arm, paired; None without items that all were scored on."""
        arms = [point.arm for point in self.points if point.rows == self.largest.rows] if self.points else []
        found = [{score.item: score.value for score in self.scores[arm] if score.value is not None} for arm in arms]
        pairs = [(score, score.value) for score in self.scores[best] if score.value is not None and all(score.item in one for one in found)]
        if not found or not pairs:
            return None
        tuned = [mean(one[score.item] for one in found) for score, _ in pairs]
        return paired_difference([value for _, value in pairs], tuned, [score.cluster or score.item for score, _ in pairs])

    def form_gain(self) -> tuple[float, float, float] | None:
        """Valid answers of the largest pilot minus those of the prompt that brings most, paired: (mean, low, high)."""
        if self.form is None or not self.points:
            return None
        valid = {
            name: {score.item: float(self.form.valid(score)) for score in scores if score.ended != "error"}
            for name, scores in self.scores.items()
        }
        prompts = [name for name in self.scores if name not in (*FREE_ARMS, HOSTED, *(point.arm for point in self.points))]
        prompts = [name for name in prompts if valid[name]]
        if not prompts:
            return None
        best = max(prompts, key=lambda name: mean(list(valid[name].values())))
        tuned = valid[self.largest.arm]
        both = [score for score in self.scores[best] if score.item in tuned and score.item in valid[best]]
        if not both:
            return None
        clusters = [score.cluster or score.item for score in both]
        d = paired_difference([valid[best][score.item] for score in both], [tuned[score.item] for score in both], clusters)
        return d.mean, d.interval.low, d.interval.high

    def evidence(self) -> Evidence:
        """What the answer rests on."""
        pilots = {point.arm for point in self.points}
        arms = {name: arm_result(scores) for name, scores in self.scores.items() if name not in pilots}
        if HOSTED not in arms and self.prices.hosted_rate is not None:
            arms[HOSTED] = ArmResult(self.prices.hosted_rate, None, 0, 0.0, 0)
        evidence = Evidence(
            arms=arms,
            items=len(self.items),
            rows=self.rows,
            gain=self.gain,
            wish=self.wish,
            smallest=self.smallest,
            missing_minutes=None if self.missing_seconds is None else self.missing_seconds / 60,
        )
        if not any(arm.rate is not None for arm in arms.values()):
            return evidence
        curve = self.curve(evidence.best)
        tuned, hosted = self._costs(curve, arms.get(HOSTED))
        return replace(
            evidence,
            curve=curve,
            measured=self.measured(evidence.best),
            largest=self.largest.rows if self.points else 0,
            forms={name: share for name, scores in self.scores.items() if self.form and (share := form_share(self.form, scores))},
            form=self.form.name if self.form else "",
            form_gain=self.form_gain(),
            tuned_cost=tuned,
            hosted_cost=hosted,
            pays=break_even(tuned, hosted, self.training_seconds, self.prices) if tuned is not None and hosted is not None else None,
        )

    def _costs(self, curve: LearningCurve | None, hosted: ArmResult | None) -> tuple[ArmCost | None, ArmCost | None]:
        """(the model tuned on all rows, at the rate that is expected; the hosted model)"""
        tuned = None
        if curve is not None:
            full = curve.rate_at(self.rows)
            measured = own_cost(TUNED_ALL, self.scores[self.largest.arm], self.prices)
            tuned = with_rate(measured, full.middle, Interval(full.low, full.high, curve.level, "learning curve"))
        if hosted is None and self.prices.hosted_in is None:
            return tuned, None
        counted = [score for score in self.scores.get(HOSTED, []) if score.tokens_in > 0]
        tokens_in = mean([score.tokens_in for score in counted or self.scores[PLAIN]])
        tokens_out = mean([score.tokens_out for score in counted]) if counted else self.tokens_out
        rate, interval = (hosted.rate, hosted.interval) if hosted is not None else (None, None)
        return tuned, hosted_cost(HOSTED, rate, interval, tokens_in, tokens_out, self.prices)

    @property
    def training_seconds(self) -> float:
        """Of a training on all rows, from the pilot's steps; 0 where there were none."""
        steps = [point.step_seconds for point in self.points if point.step_seconds > 0]
        return mean(steps) * self.full_steps if steps else 0.0


def decision_record(found: Findings, decision: Decision, scorer: str) -> dict[str, Any]:
    """The content of `decision.json`. Rates are shares of 1, money is in the currency of the prices."""
    record: dict[str, Any] = {
        "answer": decision.answer,
        "text": decision.text,
        "why": decision.why,
        "reasons": [reason.to_dict() for reason in decision.reasons],
        "next_steps": list(decision.next_steps),
        "rows": found.rows,
        "items": len(found.items),
        "scorer": scorer,
        "gain": found.gain,
        "wish": found.wish,
        "prices": to_dict(found.prices),
    }
    if not found.scores:
        return record
    evidence = found.evidence()
    best = evidence.best if any(arm.rate is not None for arm in evidence.arms.values()) else None
    pilots = {point.arm: arm_result(found.scores[point.arm]) for point in found.points}
    record |= {
        "best_without_tuning": best,
        "arms": {name: arm.to_dict() for name, arm in {**evidence.arms, **pilots}.items()},
        "pilot": [{"arm": point.arm, "rate": pilots[point.arm].rate, **to_dict(point)} for point in found.points],
        "forms": {"name": evidence.form, "arms": {name: share.to_dict() for name, share in evidence.forms.items()}},
        "costs": {cost.arm: cost.to_dict() for cost in _all_costs(found, evidence)},
        "measured": _difference(evidence.measured),
        "training_seconds": found.training_seconds,
        "break_even": evidence.pays.to_dict() if evidence.pays is not None else None,
        "missing_minutes": evidence.missing_minutes,
    }
    return record | (_curve_record(evidence) if evidence.curve is not None else {})


def _difference(found: Difference | None) -> dict[str, Any] | None:
    """Of the largest pilot, against the best arm without tuning; shares, not points."""
    if found is None:
        return None
    return {"mean": found.mean, "low": found.interval.low, "high": found.interval.high, "level": found.interval.level, "n": found.n}


def _all_costs(found: Findings, evidence: Evidence) -> list[ArmCost]:
    """Of every arm that runs a model."""
    own = [own_cost(name, scores, found.prices) for name, scores in found.scores.items() if name not in (*FREE_ARMS, HOSTED)]
    return [*own, *(cost for cost in (evidence.tuned_cost, evidence.hosted_cost) if cost is not None)]


def _curve_record(evidence: Evidence) -> dict[str, Any]:
    curve = evidence.curve
    assert curve is not None
    sizes = sorted({int(rows) for rows in curve.rows_P})
    ahead = MORE_ROWS * max(evidence.rows, sizes[-1])
    drawn = sorted({*sizes, evidence.rows, *(round(rows) for rows in np.geomspace(sizes[0], ahead, 40))})
    targets = {"best_without_tuning_and_gain": min(1.0, evidence.best_rate + evidence.gain)} | (
        {"wish": evidence.wish} if evidence.wish else {}
    )
    needed = {name: curve.rows_for(rate) for name, rate in targets.items()}
    return {
        "curve": {
            "level": curve.level,
            "items": curve.items,
            "noise": curve.noise,
            "all_rows": estimates(curve, [evidence.rows])[0],
            "endless_rows": curve.best().to_dict(),
            "line": estimates(curve, drawn),
            "rows_for": {name: {"rate": one.rate, "rows": one.rows.to_dict(), "reached": one.reached} for name, one in needed.items()},
        }
    }
