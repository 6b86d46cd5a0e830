"""What the use case needs, as a file that a person writes and everything else obeys: requirements.yaml in, `Requirements` out.

    tasks      what is done, in words        → the report's head, the review pages
    metrics    how answers are judged        → scoring; one is primary, and the decision rests on it
    slices     parts of the items by tag     → rates of parts, each with what it must reach and may not lose
    errors     what goes wrong, how bad      → severity, sorting by harm, vetoes; the list that reviewers choose from
    rubric     what people judge, in steps   → the review pages
    general    skills that must not drop     → non-inferiority, within a margin
    prices     what answers cost             → cost of a query, of a right answer, break-even
    decision   when to ship                  → the verdict's rule

All parts but `name` and one metric may be left out. Left out on purpose: how a scorer is made of its name (room `evaluate` knows the
scorers), and anything that would run code from this file.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import orjson

from sapwood.config import did_you_mean, load_yaml, to_dict
from sapwood.errors import ConfigError

WRONG, NO_ANSWER, CUT, PEOPLE, MATCHES = "wrong", "no answer", "cut", "people", "matches:"
FOUND_BY = (WRONG, NO_ANSWER, CUT, PEOPLE)


def _share(what: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{what}: {name} is {value}; give a share from 0 to 1, such as 0.9.")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing that the model is to do."""

    name: str
    """A short name; items of the task carry the tag `task:NAME`."""
    about: str = ""
    """What is asked and what a good answer is, in a sentence or two. Reviewers read it."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to judge an answer by machine, as a score from 0 to 1."""

    name: str
    """What the report calls it."""
    scorer: str = "auto"
    """A scorer by its name, such as exact, number, function-call, set-f1 or regex:PATTERN; auto guesses from the references."""
    primary: bool = False
    """Whether the decision rests on it. One metric is primary; where there is one alone, it is."""
    at_least: float | None = None
    """The mean score to reach: the lower end of its interval must."""
    margin: float | None = None
    """How much this metric may fall against the best other arm where it is not primary. None only shows it."""

    def __post_init__(self) -> None:
        _share(f"metric {self.name!r}", at_least=self.at_least, margin=self.margin)
        if self.primary and self.margin is not None:
            raise ConfigError(f"metric {self.name!r}: a primary metric has no margin; what it must gain is `decision.gain`.")


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Items that are looked at by themselves."""

    name: str
    """What the report calls it."""
    tags: tuple[str, ...]
    """Items that carry all of these tags, such as `task:refund` or `edge:typos`."""
    at_least: float | None = None
    """The mean primary score to reach in it: the lower end of its interval must."""
    margin: float | None = None
    """How much the primary score may fall in it against the best other arm. None only shows it."""

    def __post_init__(self) -> None:
        _share(f"slice {self.name!r}", at_least=self.at_least, margin=self.margin)
        if not self.tags or not all(self.tags):
            raise ConfigError(f"slice {self.name!r}: `tags` is {list(self.tags)}; name at least one tag.")


@dataclass(frozen=True, kw_only=True)
class Degree:
    """How bad one occurrence of an error is."""

    name: str
    """A short word, such as `slight`."""
    severity: float
    """What such an error costs, in units of the lightest one."""


@dataclass(frozen=True, kw_only=True)
class ErrorType:
    """One way in which an answer goes wrong."""

    name: str
    """A short name, such as `wrong amount`."""
    about: str = ""
    """How to know it, in a sentence. Reviewers read it."""
    severity: float = 1.0
    """What one such error costs, in units of the lightest one; of one that has `degrees`, where nobody has said which."""
    degrees: tuple[Degree, ...] = ()
    """Degrees that reviewers choose from for each occurrence, such as slight, plain and grave, each with its own severity."""
    veto: bool = False
    """Whether a single one, in an arm that is to be shipped, forbids to ship it."""
    at_most: float | None = None
    """The share of answers that may have it: the upper end of its interval must lie below."""
    found_by: str = PEOPLE
    """Who finds it: wrong (a primary score below 1), no answer (nothing to judge was in it), cut (at the limit of tokens),
    matches:REGEX (of the answer's text), or people alone."""

    def __post_init__(self) -> None:
        _share(f"error {self.name!r}", at_most=self.at_most)
        if not 0 < self.severity < math.inf:
            raise ConfigError(f"error {self.name!r}: severity is {self.severity}; give a number above 0.")
        for degree in self.degrees:
            if not 0 < degree.severity < math.inf:
                raise ConfigError(f"error {self.name!r}, {degree.name}: severity is {degree.severity}; give a number above 0.")
        if len({degree.name for degree in self.degrees}) < len(self.degrees):
            raise ConfigError(f"error {self.name!r} has two degrees of one name. Give each its own.")
        if self.found_by.startswith(MATCHES):
            try:
                re.compile(self.found_by.removeprefix(MATCHES))
            except re.error as error:
                raise ConfigError(f"error {self.name!r}: found_by is {self.found_by!r}, no regular expression ({error}).") from None
        elif self.found_by not in FOUND_BY:
            raise ConfigError(f"error {self.name!r}: found_by is {self.found_by!r}; allowed: {', '.join(FOUND_BY)}, {MATCHES}REGEX.")

    def severity_of(self, degree: str | None) -> float:
        """What an occurrence of this degree costs; the error's own severity where it has none of that name."""
        return next((one.severity for one in self.degrees if one.name == degree), self.severity)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One question that people answer about an answer, in steps that are each described."""

    name: str
    """A short name, such as `faithful`."""
    question: str = ""
    """What is asked of the reviewer."""
    anchors: tuple[str, ...] = ("no", "yes")
    """What each step means, worst first: two make yes or no, five a scale from 1 to 5. A step without words is judged by mood."""
    at_least: float | None = None
    """The mean to reach as a share of the way from the worst step (0) to the best (1)."""

    def __post_init__(self) -> None:
        _share(f"criterion {self.name!r}", at_least=self.at_least)
        if not 2 <= len(self.anchors) <= 9 or not all(anchor.strip() for anchor in self.anchors):
            raise ConfigError(f"criterion {self.name!r}: {len(self.anchors)} anchors; give 2 to 9, worst first, each in words.")


@dataclass(frozen=True, kw_only=True)
class Skill:
    """Something general that tuning must not cost."""

    name: str
    """A benchmark by name, such as `mmlu-slice` or `reasoning-gym:chain_sum`, or a file of conversations."""
    margin: float = 0.03
    """How much the score may fall: the lower end of the interval of (tuned − base) must lie above minus this."""
    items: int = 200
    """Items to ask, drawn by a seed."""
    scorer: str = "auto"
    """As in a metric."""

    def __post_init__(self) -> None:
        _share(f"skill {self.name!r}", margin=self.margin)
        if self.items < 1:
            raise ConfigError(f"skill {self.name!r}: items is {self.items}; give at least 1.")


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices, in dollars or any one currency. What is not given is not counted, and the answer says so."""

    hosted_in: float | None = None
    """A hosted model's price of a million prompt tokens."""
    hosted_out: float | None = None
    """A hosted model's price of a million tokens of answers."""
    hosted_rate: float | None = None
    """The share that a hosted model gets right, where it is known and its answers are not at hand."""
    machine_hour: float | None = None
    """Price of an hour of this machine, for training and for answering."""
    setup: float = 0.0
    """What is paid once to get a tuned model into use: labelling, integration, review."""
    queries_a_month: float | None = None
    """Queries to expect."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{one.name} is {value}; give 0 or more.")
        if self.hosted_rate is not None and self.hosted_rate > 1:
            raise ConfigError(f"hosted_rate is {self.hosted_rate}; it is a share from 0 to 1, such as 0.9.")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When to ship. Declared before the first answer, hashed, and never moved after it."""

    gain: float = 0.0
    """What the primary score must gain over the best other arm: the lower end of the interval of the difference must lie above it."""
    level: float = 0.95
    """Of all intervals."""
    power: float = 0.8
    """With which a study of this size should find what it looks for, for "about n more items"."""
    looks: int = 1
    """How often the test items may be looked at before the verdict says that they have worn out."""

    def __post_init__(self) -> None:
        if not 0 <= self.gain < 1:
            raise ConfigError(f"decision.gain is {self.gain}; give a share from 0 to below 1, such as 0.02 for two points.")
        if not 0.5 <= self.level < 1 or not 0.5 <= self.power < 1:
            raise ConfigError(f"decision.level and decision.power are {self.level} and {self.power}; give 0.5 to below 1, such as 0.95.")
        if self.looks < 1:
            raise ConfigError(f"decision.looks is {self.looks}; give at least 1.")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """All that a use case needs of a model."""

    name: str
    """Of the use case, such as `refund-mails`."""
    about: str = ""
    """One sentence for those who read the report."""
    tasks: tuple[Task, ...] = ()
    metrics: tuple[Metric, ...] = (Metric(name="right", primary=True),)
    slices: tuple[Slice, ...] = ()
    errors: tuple[ErrorType, ...] = ()
    rubric: tuple[Criterion, ...] = ()
    general: tuple[Skill, ...] = ()
    prices: Prices = field(default_factory=Prices)
    decision: Rule = field(default_factory=Rule)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("name is empty; give the use case a short name, such as refund-mails.")
        for part in ("tasks", "metrics", "slices", "errors", "rubric", "general"):
            names = Counter(entry.name for entry in getattr(self, part))
            if twice := [name for name, count in names.items() if count > 1 or not name.strip()]:
                raise ConfigError(f"{part}: the name {twice[0]!r} is empty or stands twice. Give each entry a name of its own.")
        if not self.metrics:
            raise ConfigError("metrics is empty; name at least one, such as {name: right, scorer: exact}.")
        primary = [metric.name for metric in self.metrics if metric.primary]
        if len(primary) > 1 or (not primary and len(self.metrics) > 1):
            raise ConfigError(
                f"metrics: {len(primary)} of {len(self.metrics)} are primary ({', '.join(primary) or 'none'}). Mark the one that the "
                "decision rests on with `primary: true`: with several, one of them is always better by chance."
            )

    @property
    def primary(self) -> Metric:
        """The metric that the decision rests on."""
        return next((metric for metric in self.metrics if metric.primary), self.metrics[0])

    @property
    def vetoes(self) -> tuple[ErrorType, ...]:
        """Errors of which a single one forbids to ship."""
        return tuple(error for error in self.errors if error.veto)

    @cached_property
    def hash(self) -> str:
        """Of everything in it, whatever the order of the keys in the file: 16 hex digits."""
        return hashlib.sha256(orjson.dumps(to_dict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    def error(self, name: str) -> ErrorType:
        """The error type of this name. Raises `ConfigError` with the known ones."""
        return _named("errors", name, self.errors)

    def criterion(self, name: str) -> Criterion:
        """The criterion of this name. Raises `ConfigError` with the known ones."""
        return _named("rubric", name, self.rubric)


def read_requirements(path: Path) -> Requirements:
    """A requirements file. Raises `ConfigError` with file and dotted key for what it may not say, `StorageError` if it is unreadable."""
    try:
        return load_yaml(Requirements, path)
    except ConfigError as error:
        said = str(error)
        raise ConfigError(said if said.startswith(str(path)) else f"{path}: {said}") from None


N = TypeVar("N", ErrorType, Criterion)


def _named(part: str, name: str, entries: Sequence[N]) -> N:
    for entry in entries:
        if entry.name == name:
            return entry
    names = [entry.name for entry in entries]
    raise ConfigError(f"{part} has no {name!r}.{did_you_mean(name, names)} It has: {', '.join(names) or 'nothing'}.")
