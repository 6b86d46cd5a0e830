"""A run's curves read as an experienced eye reads them: records of a run in, the course's patterns by name out.

    converged · still learning                      what a healthy run shows
    overfitting · memorisation · underfitting · stuck · diverging · spikes · format not learned      alarms, each with a remedy

Every alarm says the numbers and the steps that it rests on. "More than noise" is measured, not assumed: on the held-out loss by
the paired difference over parts of the held-out rows (recorded at each evaluation), on the training loss by the noise of that
very curve. docs/curves.md shows each pattern and the rate of false alarms.
Left out on purpose: advice from a single number, and patterns in the speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson

from sapwood.evaluate.curve_shape import Curves, Window, chosen_step, curves_from

Pattern = Literal[
    "overfitting",
    "memorisation",
    "underfitting",
    "stuck",
    "diverging",
    "spikes",
    "format not learned",
    "still learning",
    "converged",
]

SURE = 0.995
"""Level of an interval that an alarm rests on, shared among the evaluations that could have been the best one."""
ERRORS = 5.0
"""Standard errors by which two stretches of a training curve must differ."""
RISE = 0.05
"""A held-out loss that rises by less than this share of what it had fallen is not worth a word."""
MATTERS = 0.02
"""A held-out loss that rises by less than this share of itself is not worth a word either."""
UNMOVED = 0.01
"""A loss that fell by less than this share did not move."""
LITTLE = 0.10
"""A loss that fell by less than this share fell little."""
KNOWN = 0.1
"""A training loss below this share of its beginning, and of the held-out loss, is of rows known by heart."""
UNSOLVED = 0.25
"""A held-out loss above this share of its beginning is not that of a solved task."""
LATE = 0.6
"""Share of the learning behind which a settled curve brings little more."""
SETTLED, FALLING = 0.15, 0.25
"""Shares of the whole fall that the late part of the learning brings at most to a settled curve, at least to a falling one."""
ENOUGH_ANSWERS = 20
"""Held-out answers of which some should be right."""
OUTLIER, GRADIENT = 8.0, 3.0
"""Robust deviations by which a spike's loss and its gradient stand out from their neighbours, on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class CurveFinding:
    """One pattern that a run shows."""

    name: str
    """Of a fine-tuning a `Pattern`; of rewards and preferences the kind of a `Sign`."""
    alarm: bool
    """Whether something should be changed."""
    text: str
    """What was seen, with its numbers and steps."""
    remedy: str = ""
    """What to change, by its flags; empty where nothing should be."""
    step: int | None = None
    """Where it begins."""
    evidence: Mapping[str, float] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The finding as people read it."""
        return f"{self.name[0].upper()}{self.name[1:]}: {self.text}{' ' + self.remedy if self.remedy else ''}"

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "name": self.name,
            "alarm": self.alarm,
            "text": self.text,
            "remedy": self.remedy,
            "step": self.step,
            "evidence": dict(self.evidence),
        }


def read_curves(
    metrics: Iterable[Mapping[str, Any]], *, samples: Sequence[Mapping[str, Any]] = (), verdict: Mapping[str, Any] | None = None
) -> list[CurveFinding]:
    """The patterns of a run, alarms first. `metrics` as `step_records` gives them, `samples` of samples.jsonl, `verdict` of verdict.json.

    At any time of a run, finished or not. A run of which nothing can be said gives an empty list. Where held-out losses chose the
    result, what is behind its step is only said, and no alarm.
    """
    records = list(metrics)
    whole = curves_from(records)
    chosen = chosen_step(records)
    if chosen is not None:
        records = [record for record in records if record["step"] <= chosen]
        samples = [sample for sample in samples if not isinstance(sample.get("step"), int) or sample["step"] <= chosen]
    c = curves_from(records)
    windows = c.windows()
    diverging = _diverging(c, windows)
    behind = None if diverging else _overfitting(whole, whole.windows(), chosen)
    alarms = [
        diverging,
        behind,
        _memorisation(c, windows),
        None if diverging else _too_little(c, windows),
        _spikes(c),
        _format(samples),
        _none_right(verdict or {}),
    ]
    found = [finding for finding in alarms if finding is not None]
    if not any(finding.alarm and finding.name not in ("spikes", "format not learned") for finding in found):
        settled = _settled(c, windows)
        found += [] if settled is None or behind is not None else [settled]
    return sorted(found, key=lambda finding: not finding.alarm)


def _diverging(c: Curves, windows: list[Window]) -> CurveFinding | None:
    """The training loss ends above where it began or had been, or jumps before it falls; by more than its noise each."""
    if len(windows) < 3:
        return None
    noise, last = c.noise(), windows[-1]
    begin = max(float(c.loss_S[0]), float(c.held_K[0] if len(c.held_K) else c.loss_S[1]))  # one step is a noisy beginning
    low = min(windows, key=lambda window: window.loss)
    early = c.loss_S[: max(4, len(c.loss_S) // 3)]
    middle = np.median(np.stack([early[:-2], early[1:-1], early[2:]]), axis=0)  # of three steps: one alone is no jump
    top = int(np.argmax(middle))
    if _above(last.loss, begin, math.hypot(noise, last.error)):
        step, text = 1, f"the training loss is {last.loss:.3f} at the end, and before the first step it was {begin:.3f}."
    elif last.loss - low.loss > 0.2 * (begin - low.loss) and _above(last.loss, low.loss, math.hypot(low.error, last.error)):
        step = int(low.last)
        text = f"the training loss rose from {low.loss:.3f} (steps {low.first:.0f} to {low.last:.0f}) to {last.loss:.3f} at the end."
    elif _above(float(middle[top]), begin, begin * math.expm1(1.2 * c.relative_noise())):
        step = int(c.step_S[top])
        text = f"the training loss jumped from {begin:.3f} to {middle[top]:.3f} at steps {step} to {step + 2}, before it fell."
    else:
        return None
    remedy = f"The rate is too high: lower it ({_rate(c, 0.1)}), or give it a longer --warmup."
    return CurveFinding("diverging", True, text, remedy, step, {"first": begin, "lowest": low.loss, "last": last.loss, "noise": noise})


def _above(high: float, low: float, error: float) -> bool:
    """Whether one mean lies clearly above another: by the noise of both, and by a share that matters."""
    return high - low > max(ERRORS * error, RISE * low)


def _overfitting(c: Curves, windows: list[Window], chosen: int | None) -> CurveFinding | None:
    """The held-out loss rises behind its best, by more than its noise, while the training loss falls."""
    if len(c.held_K) < 3 or not windows:
        return None
    best, last = c.best, len(c.held_K) - 1
    rise = c.change(best, last, 1 - (1 - SURE) / max(1, last))
    fell = float(c.held_K[0] - c.held_K[best])
    if rise.mean < max(RISE * fell, MATTERS * float(c.held_K[best])):
        return None
    if rise.known and rise.low <= 0:
        return None
    if not rise.known and (last - best < 2 or rise.mean < 0.25 * max(fell, 0.1 * float(c.held_K[best]))):
        return None
    at = int(c.step_K[best])
    near = min(windows, key=lambda window: abs((window.first + window.last) / 2 - at))
    end = windows[-1]
    if near.loss - end.loss < 2 * math.hypot(near.error, end.error):
        return None
    interval = f" [{rise.low:+.3f}, {rise.high:+.3f}]" if rise.known else ""
    text = (
        f"the held-out loss was lowest at step {at} ({c.held_K[best]:.3f}) and is {c.held_K[last]:.3f} at step {c.step_K[last]:.0f} "
        f"({rise.mean:+.3f}{interval}), while the training loss fell from {near.loss:.3f} to {end.loss:.3f}."
    )
    evidence = {"best": float(c.held_K[best]), "last": float(c.held_K[last]), "train_then": near.loss, "train_last": end.loss}
    if chosen == at:
        return CurveFinding("overfitting", False, text, "The result is the state of that step, so none of it is lost.", at, evidence)
    epochs = c.epoch_at(at)
    less = f"--epochs {max(0.1, epochs):.1f}, " if epochs > 0 else ""
    remedy = f"Train less ({less}or --keep-best True, which keeps the best state), or with more rows and more different ones."
    return CurveFinding("overfitting", True, text, remedy, at, evidence)


def _memorisation(c: Curves, windows: list[Window]) -> CurveFinding | None:
    """The training loss is nearly nothing on rows that were seen before, and the held-out loss is not."""
    if not windows or not c.epoch_S[-1] > 1:  # rows seen once cannot be known by heart; nan compares false
        return None
    first, end = float(np.median(c.loss_S[:3])), windows[-1].loss
    if end > KNOWN * first:
        return None
    share = f"{end:.4f}, {end / first:.1%} of its beginning, after {c.epoch_S[-1]:.1f} epochs"
    few = "Train fewer --epochs on more, and more different, rows; try questions of your own with `sapwood chat`."
    if not len(c.held_K):
        if end > KNOWN**2 * first:
            return None
        text = f"the training loss is nearly 0 ({share}), and nothing is held out that could tell learning from knowing by heart."
        return CurveFinding("memorisation", True, text, "Hold rows out (--held-out 0.1).", None, {"train_last": end})
    held = float(c.held_K[-1])
    if end > KNOWN * held or held < UNSOLVED * float(c.held_K[0]):
        return None
    text = f"the training loss is nearly 0 ({share}), and the held-out loss is {held:.3f}: the rows are known by heart."
    return CurveFinding("memorisation", True, text, few, None, {"train_last": end, "held_out": held})


def _too_little(c: Curves, windows: list[Window]) -> CurveFinding | None:
    """The loss did not move, or moved little and still as fast as at the start."""
    if len(c.loss_S) < 5:
        return None
    if len(c.held_K) > 1:
        what, begin, end = "held-out loss", float(c.held_K[0]), float(c.held_K[-1])
        if begin - float(c.held_K[c.best]) > UNMOVED * begin > begin - end:
            return None  # it had moved, and came back
        change = c.change(0, -1, SURE)
        low, high = (-change.high, -change.low) if change.known else (begin - end, begin - end)
    elif windows:
        what, begin, end = "training loss", windows[0].loss, windows[-1].loss
        error = ERRORS * math.hypot(windows[0].error, windows[-1].error)
        low, high = begin - end - error, begin - end + error
    else:
        return None
    fell = f"{begin:.3f} → {end:.3f}, {(end - begin) / begin:+.1%}"
    evidence = {"first": begin, "last": end}
    if high < UNMOVED * begin and low > -UNMOVED * begin:
        remedy = f"Raise the rate ({_rate(c, 10)}), and look at what is trained with `sapwood doctor`; if the answers are right already, "
        return CurveFinding("stuck", True, f"the {what} did not move ({fell}).", remedy + "there is nothing to learn.", None, evidence)
    late = _late_share(c, windows)
    if high >= LITTLE * begin or begin <= end or late is None or late < 0.8 * (1 - LATE):
        return None
    text = f"the {what} fell little ({fell}), and at the end as fast as at the beginning: the learning has hardly begun."
    return CurveFinding("underfitting", True, text, f"Raise the rate ({_rate(c, 3)}), or train longer (--epochs).", None, evidence)


def _settled(c: Curves, windows: list[Window]) -> CurveFinding | None:
    """What a run without such an alarm shows: it converged, or it still learns."""
    late = _late_share(c, windows)
    if late is None:
        return None
    held = len(c.held_K) >= 3
    begin, end = (float(c.held_K[0]), float(c.held_K[-1])) if held else (windows[0].loss, windows[-1].loss)
    if end >= begin:
        return None
    text = f"the {'held-out' if held else 'training'} loss fell from {begin:.3f} to {end:.3f}, "
    evidence = {"first": begin, "last": end, "late_share": late}
    if late < SETTLED:
        text += f"and has settled: the last {1 - LATE:.0%} of the training brought {max(0.0, late):.0%} of that."
        return CurveFinding("converged", False, text, "", None, evidence)
    if late < FALLING:
        return None
    text += f"and still falls: the last {1 - LATE:.0%} of the training brought {late:.0%} of that."
    return CurveFinding(
        "still learning", False, text, "More --epochs (or --max-steps, where that was given) would lower it further.", None, evidence
    )


def _late_share(c: Curves, windows: list[Window]) -> float | None:
    """The share of the whole fall of the loss that the late part of the learning brought; None where nothing tells."""
    if len(c.held_K) >= 3:
        place_K, loss_K = np.array([c.learned_by(step) for step in c.step_K]), c.held_K
    elif len(windows) >= 4:
        place_K = np.array([c.learned_by((window.first + window.last) / 2) for window in windows])
        loss_K = np.array([window.loss for window in windows])
    else:
        return None
    fell = float(loss_K[0] - loss_K[-1])
    between = place_K[0] + LATE * (place_K[-1] - place_K[0])
    return float(np.interp(between, place_K, loss_K) - loss_K[-1]) / fell if fell > 0 else None


def _spikes(c: Curves) -> CurveFinding | None:
    """Steps whose loss and gradient stand far out from their neighbours, behind which the loss comes back."""
    if len(c.loss_S) < 16:
        return None
    loss, gradient = _outlying(c.loss_S), _outlying(c.norm_S)
    usual = float(np.median(c.loss_S))
    jump_S = (loss.score_S > OUTLIER) & (gradient.score_S > GRADIENT) & (c.loss_S - loss.usual_S > 0.1 * usual)
    jump_S[: max(6, len(jump_S) // 20)] = jump_S[-2:] = False  # the sharp drop, and what nobody has seen come back
    places = np.flatnonzero(jump_S)
    if not len(places):
        return None
    worst = int(places[np.argmax(loss.score_S[places])])
    others = f" So {'does' if len(places) == 2 else 'do'} {len(places) - 1} more." if len(places) > 1 else ""
    return CurveFinding(
        "spikes",
        True,
        f"the training loss jumps at step {c.step_S[worst]:.0f}: {c.loss_S[worst]:.3f} where {loss.usual_S[worst]:.3f} is usual, with a "
        f"gradient of {c.norm_S[worst]:.2f} where {gradient.usual_S[worst]:.2f} is.{others}",
        f"Look for broken rows with `sapwood doctor`; if there are none, lower the rate ({_rate(c, 0.3)}) or --max-grad-norm.",
        int(c.step_S[places[0]]),
        {"count": len(places), "loss": float(c.loss_S[worst]), "usual": float(loss.usual_S[worst])},
    )


@dataclass(frozen=True, eq=False)
class _Outlying:
    score_S: Any
    usual_S: Any


def _outlying(value_S: Any) -> _Outlying:
    """How many robust deviations each value lies above the median of its twelve neighbours, on a logarithmic scale."""
    log_S = np.log(np.maximum(np.nan_to_num(value_S, nan=1.0), 1e-8))
    count = len(log_S)
    usual_S = np.empty(count)
    for s in range(count):
        near = np.concatenate([log_S[max(0, s - 6) : s], log_S[s + 1 : s + 7]])
        usual_S[s] = np.median(near)
    rest_S = log_S - usual_S
    overall = 1.4826 * float(np.median(np.abs(rest_S)))
    spread_S = np.array([1.4826 * float(np.median(np.abs(rest_S[max(0, s - 20) : s + 21]))) for s in range(count)])
    return _Outlying(rest_S / np.maximum(np.maximum(spread_S, overall / 2), 1e-6), np.exp(usual_S))


def _format(samples: Sequence[Mapping[str, Any]]) -> CurveFinding | None:
    """At the last time that questions were asked, the answers do not end, or are not JSON where all references are."""
    steps = [sample["step"] for sample in samples if isinstance(sample.get("step"), int)]
    if not steps or max(steps) == 0:
        return None
    step = max(steps)
    last = [sample for sample in samples if sample.get("step") == step]
    endless = sum(sample.get("ended") == "length" for sample in last)
    structured = all(_is_structure(sample.get("reference")) for sample in last)
    broken = sum(not _is_structure(sample.get("answer")) for sample in last) if structured else 0
    if len(last) < 2 or 3 * max(endless, broken) < 2 * len(last):
        return None
    did = "run to the limit without an end" if endless >= broken else "are not JSON, as the references are"
    return CurveFinding(
        "format not learned",
        True,
        f"{max(endless, broken)} of {len(last)} sample answers at step {step} {did}.",
        "Look at a row as it is trained with `sapwood doctor`, train longer (--epochs), or raise the rate (--lr).",
        step,
        {"asked": len(last), "endless": endless, "broken": broken},
    )


def _none_right(verdict: Mapping[str, Any]) -> CurveFinding | None:
    """Of enough held-out answers of the tuned model none is right: the loss alone would look well."""
    arms, tuned = verdict.get("arms"), verdict.get("tuned")
    arm = arms.get(tuned) if isinstance(arms, dict) and isinstance(tuned, str) else None
    asked, right = (arm.get("n"), arm.get("right")) if isinstance(arm, dict) else (None, None)
    if not isinstance(asked, int) or asked < ENOUGH_ANSWERS or right != 0:
        return None
    return CurveFinding(
        "format not learned",
        True,
        f"none of {asked} held-out answers is right after training.",
        "Look at them in report.html: the scorer may wait for another form (--scorer), answers may be cut (--max-new-tokens), or the rows "
        "may teach something else than is asked.",
        None,
        {"asked": asked, "right": 0},
    )


def _is_structure(value: Any) -> bool:
    if isinstance(value, dict | list):
        return True
    try:
        return isinstance(orjson.loads(value or ""), dict | list)
    except (orjson.JSONDecodeError, TypeError):
        return False


def _rate(c: Curves, factor: float) -> str:
    """The flag for another rate than the run's highest."""
    return f"--lr {factor * float(np.nanmax(c.lr_S)):.1e}"
