"""The curves of a run that learned from rewards or preferences: records of metrics.jsonl in, small charts below each other out.

All of a run's charts share one axis of steps. Left out on purpose: a chart of what was 0 all the time; it is not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sapwood.evaluate import charts
from sapwood.evaluate.charts import Band, Series
from sapwood.evaluate.learning_figures import (
    ACCURACY,
    CHOSEN,
    GRADIENT,
    MARGIN,
    PREFERENCE_FIGURES,
    PREFERENCE_LOSS,
    REJECTED,
    REWARD,
    REWARD_FIGURES,
    SOLVED,
    SPREAD,
    Figure,
)
from sapwood.evaluate.report_files import Record, mapping, number

SMOOTH_FROM = 40
"""Steps from which on a curve also gets a running mean."""
HEIGHT = 150
TITLES = {
    "reward": "Reward",
    "solved": "Solved",
    "spread": "Spread within groups",
    "dead": "Dead groups",
    "length": "Tokens of an answer",
    "cut": "Cut at the limit",
    "outgrown": "Cut by a full context",
    "entropy": "Entropy",
    "repeated": "Repeated",
    "kl": "Divergence",
    "clipped": "Clipped tokens",
    "unjudged": "Unjudged",
    "grad_norm": "Gradient",
    "loss": "Loss",
    "accuracy": "Pairs told apart",
    "margin": "Margin",
}


@dataclass(frozen=True)
class ChartView:
    """One small chart with what it means."""

    key: str
    title: str
    keys: list[tuple[str, str]]
    """(look, words) of each line."""
    markup: Markup
    about: str


def reward_charts(metrics: Sequence[Record]) -> list[ChartView]:
    """Of reinforcement learning: the reward with its spread first, each reward by name last."""
    train, evals = _kinds(metrics)
    drawn = [_chart(figure, train, _held_out(figure, evals), _spread(train) if figure is REWARD else None) for figure in REWARD_FIGURES]
    names = dict.fromkeys(name for record in train for name in mapping(record.get("rewards")))
    for name in names if len(names) > 1 else ():
        about = f"Mean of the reward {name} over the answers that it judged, before its weight."
        drawn.append(_chart(Figure(f"rewards.{name}", f"reward {name}", "number", about), train, None, None))
    return [one for one in drawn if one is not None]


def never_moved(train: Sequence[Record]) -> list[str]:
    """Names of the figures of reinforcement learning that were 0 in every step: they have no chart."""
    return [TITLES[figure.key].lower() for figure in REWARD_FIGURES if set(_values(figure, train)) == {0.0}]


def preference_charts(metrics: Sequence[Record], beta: float) -> list[ChartView]:
    """Of preference tuning; log-probabilities in nats, against the model as it was before step 1."""
    train, evals = _kinds(metrics)
    both = _log_probabilities(train, beta)
    drawn: list[ChartView | None] = []
    for figure in PREFERENCE_FIGURES:
        if figure is CHOSEN:
            drawn.append(both)
        elif figure is not REJECTED:
            drawn.append(_chart(figure, train, _held_out(figure, evals), None))
    return [one for one in drawn if one is not None]


def _kinds(metrics: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    train = [record for record in metrics if record.get("kind", "train") == "train"]
    return train, [record for record in metrics if record.get("kind") == "eval"]


def _held_out(figure: Figure, evals: Sequence[Record]) -> Series | None:
    """The points of the evaluations, where they measure the same."""
    if figure is SOLVED:
        read = {record["step"]: number(record.get("reward")) for record in evals if _are_shares(record)}
    elif figure in (PREFERENCE_LOSS, ACCURACY, MARGIN):
        read = {record["step"]: number(record.get(figure.key)) for record in evals if "pairs" in record}
    else:
        return None
    return Series("held out", "accent", tuple(map(float, read)), tuple(read.values()), dots=True) if read else None


def _are_shares(record: Record) -> bool:
    """Whether the first reward of an evaluation lies in 0..1, so that its mean is drawn beside what is solved."""
    values = record.get("values")
    known = [value for value in map(number, values if isinstance(values, list) else []) if value is not None]
    return bool(known) and min(known) >= 0 and max(known) <= 1


def _spread(train: Sequence[Record]) -> Band:
    pairs = [(number(record.get("reward")), number(record.get("spread"))) for record in train]
    edges = [(None, None) if mean is None or spread is None else (mean - spread, mean + spread) for mean, spread in pairs]
    return Band(_steps(train), tuple(low for low, _ in edges), tuple(high for _, high in edges))


def _chart(figure: Figure, train: Sequence[Record], held_out: Series | None, band: Band | None) -> ChartView | None:
    values = _values(figure, train)
    if not any(value is not None for value in values) or (not any(values) and figure is not REWARD):
        return None
    lines, keys = _lines("sampled in training" if held_out and figure is SOLVED else "training", _steps(train), values)
    if held_out:
        lines.append(held_out)
        keys.append(("accent", "held out, greedy" if figure is SOLVED else "held out"))
    elif len(keys) == 1:
        keys = []
    if band:
        keys.append(("band", f"± {SPREAD.name} within groups"))
    title = TITLES.get(figure.key, figure.name[:1].upper() + figure.name[1:])
    made = charts.curve(
        lines,
        height=HEIGHT,
        label=f"{title} over training steps",
        x_name="step",
        over=(0.0, *_steps(train), *(held_out.xs if held_out else ())),
        from_zero=figure.form != "number" or figure is GRADIENT,
        form=_percent if figure.form == "share" else None,
        band=band,
    )
    return ChartView(figure.key, title, keys, made, figure.about)


def _log_probabilities(train: Sequence[Record], beta: float) -> ChartView | None:
    """Of chosen and rejected answers: what the rewards say, without β."""
    steps, lines = _steps(train), list[Series]()
    for figure, look in ((CHOSEN, "accent"), (REJECTED, "worse")):
        values = tuple(None if value is None else value / beta for value in _values(figure, train))
        if len(train) >= SMOOTH_FROM:
            values = charts.smoothed(values, _window(len(train)))
        lines.append(Series(figure.name, look, steps, values))
    made = charts.curve(
        lines, height=HEIGHT, label="Log-probability of both answers over training steps", x_name="step", over=(0.0, *steps)
    )
    if not made:
        return None
    keys = [("accent", "chosen (or good)"), ("worse", "rejected (or bad)")]
    about = (
        "How many nats likelier a whole answer is than before step 1, in the mean. Both may fall: what counts is that the rejected one "
        "falls further; where the chosen one falls far, something else is written instead of either."
    )
    return ChartView("logprobs", "Log-probability of both answers", keys, made, about)


def _lines(name: str, steps: tuple[float, ...], values: tuple[float | None, ...]) -> tuple[list[Series], list[tuple[str, str]]]:
    """The values, and of a long run their running mean above them."""
    if len(values) < SMOOTH_FROM:
        return [Series(name, "ink", steps, values)], [("ink", name)]
    window = _window(len(values))
    lines = [Series(name, "faint", steps, values), Series("running mean", "ink", steps, charts.smoothed(values, window))]
    return lines, [("faint", name), ("ink", f"mean of {window} steps")]


def _window(count: int) -> int:
    return max(5, count // 20) | 1


def _steps(train: Sequence[Record]) -> tuple[float, ...]:
    return tuple(number(record.get("step")) or 0.0 for record in train)


def _values(figure: Figure, train: Sequence[Record]) -> tuple[float | None, ...]:
    return tuple(number(figure.of(record)) for record in train)


def _percent(value: float) -> str:
    return f"{charts.plain(100 * value)} %"
