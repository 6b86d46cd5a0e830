"""Should you fine-tune? Measured arms, a pilot's learning curve, forms and costs in; yes, no or not yet, and why, out.

Three reasons can speak for it, and each holds, does not hold, or is open:

    performance    all of the rows would gain at least `gain` over the best arm that needs no tuning
    cost           a tuned model of one's own answers as well as a hosted one, and costs less
    format         tuned answers have the form that is needed, where prompts do not bring it

Yes where one of them holds, no where nothing is to be won, not yet where something that can be got is missing: the answer
then says what. Left out on purpose: reasons that no measurement sees, such as data that must not leave the house.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sapwood.evaluate.costs import ArmCost, BreakEven
from sapwood.evaluate.format_check import FormShare
from sapwood.evaluate.free import FREE_ARMS, MOST_COMMON
from sapwood.evaluate.hosted import HOSTED
from sapwood.evaluate.learning_curve import Estimate, LearningCurve, Needed
from sapwood.evaluate.verdict import FEWEST_ITEMS, ArmResult
from sapwood.stats import Difference

Word = Literal["yes", "no", "not yet"]

ENOUGH_VALID = 0.95
"""A prompt whose answers are valid this often brings the form by itself."""
MORE_ROWS = 10
"""Beyond this many times the rows there are, more rows are no plan."""
WORKS = 0.5
"""An arm that is right less often is nothing to recommend."""
FEW_SHOT = "few-shot"
"""Arms of such names have long prompts, which a tuned model saves."""
PAYBACK_MONTHS = 24.0
"""A saving that needs longer than this is none."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One of the three. `holds` is None where it is open, or was not asked."""

    name: str
    holds: bool | None
    line: str

    def to_dict(self) -> dict[str, Any]:
        """{name, holds, line}"""
        return {"name": self.name, "holds": self.holds, "line": self.line}


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. `text` is one paragraph: the answer, why, and what next."""

    answer: Word
    why: str
    reasons: tuple[Reason, ...]
    next_steps: tuple[str, ...]

    @property
    def text(self) -> str:
        """One paragraph for people."""
        return " ".join([f"{self.answer.capitalize()}: {self.why}", *self.next_steps])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything the answer rests on."""

    arms: Mapping[str, ArmResult]
    """Without the pilot's."""
    items: int
    rows: int
    """To train on."""
    gain: float
    """The least gain that is worth it, as a share: 0.05 is five points."""
    wish: float | None = None
    curve: LearningCurve | None = None
    measured: Difference | None = None
    """The largest pilot minus the best arm, on the same items."""
    largest: int = 0
    """Rows of the largest pilot."""
    smallest: int = 50
    """Rows that a pilot needs."""
    missing_minutes: float | None = None
    """What a pilot would take, where the time given was too short for one."""
    forms: Mapping[str, FormShare] = field(default_factory=dict)
    form: str = ""
    form_gain: tuple[float, float, float] | None = None
    """(mean, low, high) of valid answers, tuned minus the best prompt, paired."""
    tuned_cost: ArmCost | None = None
    hosted_cost: ArmCost | None = None
    pays: BreakEven | None = None

    @property
    def best(self) -> str:
        """The best arm of one's own that needs no tuning; of equals the first, so that what needs no model goes before."""
        known = {name: arm.rate for name, arm in self.arms.items() if arm.rate is not None and name != HOSTED}
        return max(known, key=lambda name: known[name])

    @property
    def best_rate(self) -> float:
        """Its rate."""
        rate = self.arms[self.best].rate
        assert rate is not None
        return rate


def before_pilot(e: Evidence) -> Decision | None:
    """An answer that needs no training to give, or None."""
    if e.items < FEWEST_ITEMS:
        wanted = f"at least {FEWEST_ITEMS} items, better 100"
        return _decision("not yet", f"only {e.items} held-out items could be scored, and nothing is decided on fewer than {FEWEST_ITEMS}.",
                         (), f"Collect more rows, or hold more out with --held-out: {wanted}.")  # fmt: skip
    if all(arm.rate is None for arm in e.arms.values()):
        return _decision("not yet", "none of the answers could be judged.", (), "Name another --scorer, or --reference.")
    interval = e.arms[e.best].interval
    assert interval is not None
    goal = 1 - e.gain if e.wish is None else e.wish
    if interval.low >= goal or (e.wish is None and e.best_rate > goal):  # what is left to win is less than what is worth it
        reason = Reason("performance", False, f"{_upper(_arm(e.best))} is right in {_share(e.best_rate)} already.")
        return _decision("no", f"{_solved(e)}", (reason,), _instead(e))
    if e.rows < e.smallest:
        reason = Reason("performance", None, f"{e.rows} rows are too few for a pilot.")
        return _decision("not yet", f"there are only {e.rows} rows to train on, and the smallest pilot takes {e.smallest}.", (reason,),
                         f"Until there are more, use the best arm: {_arm(e.best)} ({_share(e.best_rate)}).")  # fmt: skip
    return None


def after_pilot(e: Evidence) -> Decision:
    """The answer from everything there is."""
    early = before_pilot(e)
    if early is not None:
        return early
    performance, cost, form = _performance(e), _cost(e), _form(e)
    reasons = (performance, cost, form)
    if e.curve is None:
        return _decision("not yet", f"{performance.line}", reasons, _more_time(e))
    full = e.curve.rate_at(e.rows)
    hosted = e.arms[HOSTED].rate if HOSTED in e.arms else None
    if hosted is not None and hosted > e.best_rate and hosted - full.high > e.gain and cost.holds is not True:
        why = f"a hosted model is right in {_share(hosted)}, and this model, tuned on all {e.rows:,} rows, is expected at {_range(full)}."
        return _decision(
            "no", why, reasons, "Where your data may not leave the house, decide again with a larger model of your own (--model)."
        )
    if performance.holds:
        if e.wish is not None and full.middle < e.wish:
            short = "short" if full.high < e.wish else "probably short"
            why = f"{_lower(performance.line)} That is {short} of the {_share(e.wish)} you wish for."
            return _decision("not yet", why, reasons, _rows_needed(e, e.curve.rows_for(e.wish)))
        return _decision("yes", _lower(performance.line), reasons, *_how_far(e), *_also(cost, form))
    if cost.holds:
        return _decision("yes", _lower(cost.line), reasons, *_how_far(e), performance.line)
    if form.holds and performance.holds is None:
        next_step = "A grammar that forces the form while decoding brings the form alone without training."
        return _decision("yes", _lower(form.line), reasons, performance.line, next_step)
    if performance.holds is None:
        return _decision("not yet", _lower(performance.line), reasons, _settle(e))
    wanted = min(1.0, max(e.best_rate + e.gain, e.wish or 0.0))
    if e.curve.chance(MORE_ROWS * e.rows, gain=e.gain) >= 0.5:
        return _decision("not yet", _lower(performance.line), reasons, _rows_needed(e, e.curve.rows_for(wanted)))
    return _decision("no", _lower(performance.line), reasons, _instead(e))


def _performance(e: Evidence) -> Reason:
    best = f"the best arm without tuning ({e.best}, {_share(e.best_rate)})"
    if e.curve is None and e.largest and e.missing_minutes is None:
        return Reason("performance", None, "What tuning would give is not known: no item could be scored in every pilot training.")
    if e.curve is None:
        minutes = "" if e.missing_minutes is None else f" The pilot takes about {math.ceil(e.missing_minutes)} minutes."
        return Reason("performance", None, f"What tuning would give was not measured: there was no time for a pilot.{minutes}")
    full, gain = e.curve.rate_at(e.rows), e.curve.gain_at(e.rows)
    found = f"all {e.rows:,} rows would bring this model to {_range(full)}, {_points(gain)} against {best}."
    shown = False
    if e.measured is not None:
        ends = e.measured.interval
        found += f" Measured after {e.largest:,}: {_signed(e.measured.mean)} points [{_signed(ends.low)}, {_signed(ends.high)}]."
        shown = ends.low > 0 and e.measured.mean >= e.gain
    if shown or (gain.low > 0 and gain.middle >= e.gain):
        return Reason("performance", True, f"Tuning on {found}")
    if gain.high < e.gain:
        return Reason("performance", False, f"Tuning on {found} That is less than the {100 * e.gain:g} points that are worth it.")
    return Reason("performance", None, f"Tuning on {found} That may be worth it or not: the pilot cannot tell.")


def _cost(e: Evidence) -> Reason:
    tuned, hosted = e.tuned_cost, e.hosted_cost
    if hosted is None:
        return Reason("cost", None, "Cost was not weighed: there is no hosted model to compare with (--hosted, --hosted-in, --hosted-out).")
    if tuned is None or tuned.a_thousand is None or hosted.a_thousand is None or e.pays is None:
        return Reason("cost", None, "Cost was not weighed: name the prices of both sides (--hosted-in, --hosted-out, --machine-hour).")
    money = f"a thousand queries cost {dollars(tuned.a_thousand)} tuned and {dollars(hosted.a_thousand)} hosted"
    if e.curve is None or hosted.rate is None:
        return Reason("cost", None, f"{_upper(money)}; how often each is right is not known, so this decides nothing.")
    full = e.curve.rate_at(e.rows)
    if full.high < hosted.rate - e.gain:
        return Reason(
            "cost", False, f"{_upper(money)}, but tuned is expected to be right less often: {_range(full)} against {_share(hosted.rate)}."
        )
    if e.best_rate >= hosted.rate - e.gain and not e.best.startswith(FEW_SHOT):  # no dearer than a tuned model, and here already
        line = f"{_upper(money)}, but without tuning the {e.best} is right about as often as the hosted model: {_share(e.best_rate)}."
        return Reason("cost", False, line)
    if e.pays.saved <= 0:
        return Reason("cost", False, f"{_upper(money)}: tuning saves nothing.")
    paid = f"{money}; the {dollars(e.pays.once)} paid once are back after {_count(e.pays.queries)} queries"
    paid += "" if e.pays.months is None else f" ({e.pays.months:,.1f} months)"
    if e.pays.months is not None and e.pays.months > PAYBACK_MONTHS:
        return Reason("cost", False, f"{_upper(paid)}, which is too long.")
    if full.low >= hosted.rate - e.gain:
        return Reason(
            "cost", True, f"{_upper(paid)}, and tuned is expected to be right about as often: {_range(full)} against {_share(hosted.rate)}."
        )
    return Reason(
        "cost", None, f"{_upper(paid)}; but whether tuned is right as often is open: {_range(full)} against {_share(hosted.rate)}."
    )


def _form(e: Evidence) -> Reason:
    prompts = {name: form.share for name, form in e.forms.items() if name in e.arms and name not in (*FREE_ARMS, HOSTED)}
    if not prompts:
        return Reason("format", None, "No form of the answers was found that a rule could check.")
    best = max(prompts, key=lambda name: prompts[name])
    asked = f"{_share(prompts[best])} of the answers are {e.form} with the best prompt ({best})"
    if prompts[best] >= ENOUGH_VALID:
        return Reason("format", False, f"{asked}: the form needs no tuning.")
    if e.best in FREE_ARMS and e.best_rate >= WORKS:
        return Reason("format", False, f"{asked}, but the best arm without tuning ({e.best}) has it without a model.")
    if e.form_gain is None:
        return Reason("format", None, f"{asked}; what tuning would give was not measured.")
    mean, low, high = e.form_gain
    tuned = f"{asked}, {_share(prompts[best] + mean)} after the largest pilot ({_signed(mean)} points [{_signed(low)}, {_signed(high)}])"
    return Reason("format", True if low > 0 and mean >= e.gain else False if high < e.gain else None, f"{tuned}.")


def _solved(e: Evidence) -> str:
    goal = "nearly all there is to win" if e.wish is None else f"the {_share(e.wish)} you wish for"
    if e.best == MOST_COMMON:
        return f"one and the same answer to everything is right in {_share(e.best_rate)} of the items, which is {goal}."
    if e.best in FREE_ARMS:
        return f"looking up the most similar row is right in {_share(e.best_rate)} of the items, which is {goal}."
    return f"the {e.best} is right in {_share(e.best_rate)} of the items, which is {goal}."


def _instead(e: Evidence) -> str:
    if e.best == MOST_COMMON and e.best_rate >= WORKS:
        return "Look at the items first: do they ask what you care about? If they do, a constant serves."
    if e.best in FREE_ARMS and e.best_rate >= WORKS:
        return "Use the lookup, which costs nothing, or evaluate on questions that have no near twin among your rows."
    if e.best_rate < WORKS:
        return "Nothing else works well either: try a larger model (--model), or see whether the questions hold what answers need."
    return f"Use the {e.best} as it is, and come back when the questions change."


def _rows_needed(e: Evidence, needed: Needed) -> str:
    rows = needed.rows
    if math.isinf(rows.low):
        return f"No number of rows seems to bring this model to {_share(needed.rate)}: try a larger one, or a better prompt."
    ends = f"{_count(rows.low)} to {_count(rows.high)}" if math.isfinite(rows.high) else f"{_count(rows.low)} or more, if ever"
    if math.isinf(rows.middle):
        return f"To reach {_share(needed.rate)} takes {ends}; more likely than not, no number of rows gets this model there."
    if rows.middle > MORE_ROWS * e.rows:
        return (
            f"To reach {_share(needed.rate)} takes about {_count(rows.middle)} rows ({ends}), far more than there are: try a larger model."
        )
    return f"To reach {_share(needed.rate)} takes about {_count(rows.middle)} rows ({ends}); there are {e.rows:,}."


def _how_far(e: Evidence) -> list[str]:
    if e.curve is None or e.wish is None:
        return []
    return [_rows_needed(e, e.curve.rows_for(e.wish))]


def _also(*reasons: Reason) -> list[str]:
    return [reason.line for reason in reasons if reason.holds]


def _settle(e: Evidence) -> str:
    assert e.curve is not None
    points, sizes = len(e.curve.rows_P), len(set(e.curve.rows_P.tolist()))
    if e.items < 100:
        return f"Hold out more items (--held-out; {e.items} were asked, 200 would halve what is open or better), then decide again."
    if points < 2 * sizes:
        return "Give the pilot more --minutes: it goes on where it stopped, with more trainings."
    return "Train on all rows and let the verdict tell: sapwood sft. The pilot has said what it can."


def _more_time(e: Evidence) -> str:
    if e.largest and e.missing_minutes is None:
        return "Look at their answers in the report, and see whether the scorer fits them (--scorer, --max-new-tokens)."
    minutes = "" if e.missing_minutes is None else f" {math.ceil(e.missing_minutes)}"
    return f"Name the run directory again with --minutes{minutes}; nothing is asked twice."


def _decision(answer: Word, why: str, reasons: tuple[Reason, ...], *next_steps: str) -> Decision:
    return Decision(answer, why, reasons, tuple(step for step in next_steps if step))


def dollars(amount: float) -> str:
    """Money with as many digits as it takes to tell it from nothing."""
    if math.isinf(amount):
        return "without end"
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.2g}"


def _arm(name: str) -> str:
    return f"the arm “{name}”"


def _share(rate: float) -> str:
    return f"{100 * rate:.0f} %"


def _range(estimate: Estimate) -> str:
    return f"{100 * estimate.middle:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _points(estimate: Estimate) -> str:
    return f"{_signed(estimate.middle)} points [{_signed(estimate.low)}, {_signed(estimate.high)}]"


def _signed(share: float) -> str:
    points = round(100 * share)
    return f"{'+' if points > 0 else '−' if points < 0 else ''}{abs(points)}"


def _count(number: float) -> str:
    """Two digits: more would promise what nobody knows."""
    if math.isinf(number):
        return "without end"
    if number < 10:
        return f"{number:.0f}"
    step = 10 ** (math.floor(math.log10(number)) - 1)
    return f"{round(number / step) * step:,.0f}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def estimates(curve: LearningCurve, sizes: Sequence[float]) -> list[dict[str, Any]]:
    """The curve at `sizes`, for files and charts: {rows, rate, gain}."""
    return [{"rows": rows, "rate": curve.rate_at(rows).to_dict(), "gain": curve.gain_at(rows).to_dict()} for rows in sizes]
