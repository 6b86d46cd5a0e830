"""The plan of an experiment: arms, who is assigned how, metrics, and what counts as enough. Fixed before the first unit comes.

In: YAML. Out: a frozen `Plan` whose hash is kept with the records, so that a plan that was changed under way is noticed. Left out on
purpose: segments, several experiments on one unit, and shares that follow the outcomes (bandits), which no interval here would survive.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from sapwood.config import did_you_mean, from_dict, load_yaml, to_dict
from sapwood.errors import ConfigError
from sapwood.records import SamplingParams

MEASURED = ("failed", "seconds", "answer_tokens")
"""Metrics that the server measures itself; no feedback is taken for them."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS = re.compile(r"user|safety_identifier|header:[\w-]+|metadata:[\w.-]+")
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "max_tokens")
"""Fields of an arm that take the place of a request's own."""
_PARAMETERS = {"max_tokens": "max_new_tokens"}
"""What `SamplingParams` calls them, where it has another name."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to answer. What is not given stays as the request says it."""

    name: str = ""
    """What reports call it; clients do not see it."""
    share: float = 0.0
    """Share of the units, once the ramp has ended. The first arm is the control and takes what the others leave; give it none."""
    model: str | None = None
    """The served model or adapter that answers, or the remote server's name for its model; the plan's own model where not given."""
    url: str | None = None
    """A remote server of OpenAI's protocol that answers instead, such as https://api.example.com/v1."""
    key: str | None = None
    """The environment variable that holds the remote server's key."""
    system: str | None = None
    """A system prompt, in place of the request's."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    """These eight take the place of the request's own sampling settings."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that an outcome gives, with known bounds."""

    name: str = ""
    """What feedback calls it. The server itself measures `failed` (0 or 1), `seconds` and `answer_tokens`."""
    low: float = 0.0
    """The least it can be."""
    high: float = 1.0
    """The most it can be. Bounds that are needlessly wide make intervals wide."""
    clip: bool = False
    """Take values beyond the bounds as the bound; otherwise they are refused."""
    better: Literal["higher", "lower"] = "higher"
    """Which way is good."""
    aggregate: Literal["mean", "max", "min", "sum", "first", "last"] = "mean"
    """How several outcomes of one unit become its one number (kept within the bounds)."""
    missing: float | None = None
    """What a unit without an outcome counts as, when its window ends; not given, it is left out."""
    margin: float = 0.0
    """As a guardrail: how much worse, in the metric's own units, is still no harm."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the ramp."""

    after: str = "0s"
    """How long after the beginning, such as 30m, 24h, 7d."""
    to: float = 1.0
    """The part of each arm's share that it gets from then on; the control takes the rest."""


@dataclass(frozen=True, kw_only=True)
class Override:
    """A unit that is always sent to one arm, and never counted."""

    unit: str = ""
    arm: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An experiment."""

    name: str = ""
    """What it is called; one database holds several experiments."""
    model: str = ""
    """The model that clients ask for: its requests are split."""
    unit: str = "user"
    """What sticks to an arm: `user` or `safety_identifier` (fields of a request), `header:NAME` or `metadata:KEY`."""
    without_unit: Literal["control", "refuse"] = "control"
    """A request that names no unit is answered by the control and not counted, or refused."""
    salt: str = ""
    """Mixed into the hash of units; the experiment's name where not given."""
    arms: tuple[Arm, ...] = ()
    """The first is the control."""
    ramp: tuple[Step, ...] = ()
    """How the shares grow; all at once where not given. A unit that has an arm keeps it."""
    overrides: tuple[Override, ...] = ()
    """Units sent to an arm by hand."""
    metrics: tuple[Metric, ...] = ()
    """What is measured."""
    primary: str = ""
    """The metric that decides."""
    guardrails: tuple[str, ...] = ()
    """Metrics that must not be harmed."""
    effect: float = 0.0
    """The smallest gain in the primary metric, in its own units, that is worth shipping."""
    window: str = "24h"
    """How long after a unit's first answer its outcomes count. 0s: its first outcome counts, at once."""
    units: int = 2000
    """About how many units are expected: intervals are narrowest there, and hold everywhere."""
    alpha: float = 0.05
    """Chance of any false alarm in the whole experiment, however often one looks."""
    fallback: bool = True
    """Send everybody to the control, by itself, once an arm is shown to do harm."""
    offline: Path | None = None
    """A run directory whose verdict predicted the gain of the second arm over the control; the report sets it beside what is seen."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ConfigError(f"The plan{f' {self.name!r}' if self.name else ''}: {problem}")

    @property
    def control(self) -> Arm:
        """The first arm."""
        return self.arms[0]

    @property
    def treatments(self) -> tuple[Arm, ...]:
        """All other arms."""
        return self.arms[1:]

    @property
    def window_seconds(self) -> float:
        """The window in seconds."""
        return seconds(self.window)

    @property
    def hash(self) -> str:
        """Of everything that the plan says, however its numbers were written."""
        read_again = to_dict(plan_from(to_dict(self), "the plan"))
        return hashlib.sha256(orjson.dumps(read_again, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def metric(self, name: str) -> Metric:
        """The metric of that name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def step_at(self, elapsed: float) -> int:
        """The step of the ramp after so many seconds; −1 before the first one, where all are in the control."""
        if not self.ramp:
            return 0
        return sum(seconds(step.after) <= elapsed for step in self.ramp) - 1

    def chances(self, step: int) -> tuple[float, ...]:
        """The chance of each arm in a step of the ramp."""
        part = (self.ramp[step].to if step >= 0 else 0.0) if self.ramp else 1.0
        shares = [arm.share * part for arm in self.treatments]
        return (1.0 - sum(shares), *shares)

    def arm_at(self, place: float, step: int) -> int:
        """The arm of a place in 0..1. Each treatment grows within a stretch of its own, so a ramp takes from the control alone."""
        start = 0.0
        for arm, chance in enumerate(self.chances(step)[1:], 1):
            if start <= place < start + chance:
                return arm
            start += self.arms[arm].share
        return 0


def load_plan(path: Path) -> Plan:
    """Read a plan. Raises `ConfigError` for what it gets wrong, with "did you mean"."""
    return load_yaml(Plan, path)


def records_of(path: Path) -> Path:
    """Where a plan's experiment is recorded, where nothing else is said."""
    return path.with_suffix(".db")


def plan_from(content: Mapping[str, Any], where: str) -> Plan:
    """A plan that the records hold."""
    return from_dict(Plan, content, where)


def changes(before: Plan, after: Plan) -> list[str]:
    """Dotted keys in which two plans differ."""
    return sorted(_differing(to_dict(before), to_dict(after), ""))


def seconds(text: str) -> float:
    """Seconds of a time such as 90s, 30m, 24h, 7d. Raises `ConfigError` for any other text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if found is None:
        raise ConfigError(f"The plan: {text!r} is no time. Write a number and s, m, h or d, such as 24h.")
    return float(found[1]) * _SECONDS[found[2]]


def _differing(a: Any, b: Any, at: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differing(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for place, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _differing(one, other, f"{at}.{one['name'] if isinstance(one, dict) and 'name' in one else place}")
    elif a != b:
        yield at


def _problems(plan: Plan) -> Iterator[str]:
    """What is wrong, the first thing first."""
    if not plan.name or not plan.model:
        yield f"`{'model' if plan.name else 'name'}` is missing. An experiment needs name, model, arms, metrics, primary and effect."
    if not _UNITS.fullmatch(plan.unit):
        yield f"`unit` is {plan.unit!r}; give user, safety_identifier, header:NAME or metadata:KEY."
    yield from _problems_of_arms(plan)
    yield from _problems_of_metrics(plan)
    if not 0 < plan.alpha < 0.5:
        yield f"`alpha` is {plan.alpha}; give a chance such as 0.05."
    if plan.units < 10:
        yield f"`units` is {plan.units}; give about how many units will come, 10 or more."
    if seconds(plan.window) == 0 and any(metric.missing is not None for metric in plan.metrics):
        yield "`missing` needs a `window`: without one nobody can tell when a unit has given nothing."
    starts = [seconds(step.after) for step in plan.ramp]
    if starts != sorted(set(starts)) or any(not 0 <= step.to <= 1 for step in plan.ramp):
        yield "`ramp` goes up in time, each step with `to` from 0 to 1."


def _problems_of_arms(plan: Plan) -> Iterator[str]:
    names = [arm.name for arm in plan.arms]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        yield f"`arms` holds {names}; give a control and at least one other, each with a name of its own."
    if plan.control.share or not all(0 < arm.share < 1 for arm in plan.treatments) or sum(arm.share for arm in plan.arms) >= 1:
        yield "`share` is given for each arm but the first, above 0; together they leave something for the control."
    for arm in plan.arms:
        if arm.url is None and arm.key is not None:
            yield f"arm {arm.name!r} has a `key` and no `url` to send it to."
        if arm.url is not None and not arm.url.startswith(("https://", "http://")):
            yield f"arm {arm.name!r}: `url` is {arm.url!r}; give https://HOST/v1."
        if arm.url is not None and arm.model is None:
            yield f"arm {arm.name!r} is remote: give `model`, the name that its server knows."
        try:
            SamplingParams(**{_PARAMETERS.get(name, name): given for name in SETTINGS if (given := getattr(arm, name)) is not None})
        except ConfigError as error:
            yield f"arm {arm.name!r} would answer nobody: {error}"
    for override in plan.overrides:
        if override.arm not in names or not override.unit:
            yield f"`overrides` sends {override.unit!r} to {override.arm!r}.{did_you_mean(override.arm, names)} Arms: {', '.join(names)}."


def _problems_of_metrics(plan: Plan) -> Iterator[str]:
    names = [metric.name for metric in plan.metrics]
    if "" in names or len(set(names)) < len(names) or not names:
        yield f"`metrics` holds {names}; give at least one, each with a name of its own."
    for key, name in [("primary", plan.primary), *(("guardrails", name) for name in plan.guardrails)]:
        if name not in names:
            yield f"`{key}` names {name!r}.{did_you_mean(name, names)} Metrics: {', '.join(names)}."
    if plan.primary in plan.guardrails:
        yield f"{plan.primary!r} is primary and a guardrail; harm to the primary metric stops an experiment anyway."
    for metric in plan.metrics:
        if not metric.low < metric.high or not (math.isfinite(metric.low) and math.isfinite(metric.high)):
            yield (
                f"metric {metric.name!r} goes from {metric.low} to {metric.high}; `low` is less than `high`, and both are numbers: what "
                "may be any size gets the most that matters as `high`, and `clip: true`."
            )
        if metric.missing is not None and not metric.low <= metric.missing <= metric.high:
            yield f"metric {metric.name!r}: `missing` is {metric.missing}, outside of {metric.low} to {metric.high}."
        if not 0 <= metric.margin < metric.high - metric.low:
            yield f"metric {metric.name!r}: `margin` is {metric.margin}; give 0 or more, and less than its range."
        yield from _problems_of_measured(metric)
    span = plan.metric(plan.primary).high - plan.metric(plan.primary).low
    if not 0 < plan.effect < span:
        yield f"`effect` is {plan.effect}; give the smallest gain in {plan.primary!r} that is worth shipping, above 0 and below {span:g}."


def _problems_of_measured(metric: Metric) -> Iterator[str]:
    """Of what the server itself measures it is known which way is good, and that it may be any size."""
    if metric.name in ("failed", "seconds") and metric.better == "higher":
        yield f"metric {metric.name!r} is better where it is less: give `better: lower`, or arms that fail and wait would win."
    if metric.name in ("seconds", "answer_tokens") and not metric.clip:
        yield f"metric {metric.name!r} may be any size: give the most that matters as `high`, and `clip: true`."
