"""An experiment in front of a server's models: requests in, the same requests as their unit's arm wants them out; and feedback.

In: a plan's `Book`, what is served, requests. Out: `Routed`, and records. Clients see one model, whatever answers: its name, the form of
answers and errors stay the same, and the arm is told in a header to whoever asks for it (`x-sapwood-show-arm: 1`). What an arm does not
set stays as the request says it. An exposure is recorded once a request is understood and before it is answered.
"""

from __future__ import annotations

import difflib
import logging
import math
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sapwood.ab.analysis import analyse
from sapwood.ab.assign import override_of, unit_of
from sapwood.ab.plan import MEASURED, SETTINGS, Arm, Metric, Plan
from sapwood.ab.records import Book
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, DataError, SapwoodError, StorageError
from sapwood.serve.asking import Asked, Served, read_chat, read_text
from sapwood.serve.fields import RefusalError

logger = logging.getLogger(__name__)

SHOW_ARM, ARM = "x-sapwood-show-arm", "x-sapwood-arm"
"""Headers: of a request that wants to know its arm, and of the answer that tells it."""
LONGEST_EDIT = 4_000
"""Words of the two texts of an edit together; comparing takes the square of it at worst."""
_THUMBS = {"up": 1.0, "down": 0.0}


@dataclass(frozen=True)
class Routed:
    """A request that belongs to an arm."""

    arm: Arm
    body: Mapping[str, Any]
    """The request as the arm wants it."""
    asked: Asked | None
    """What the engine is asked; None where a remote server answers."""
    id: str
    """Of the answer; feedback names it."""
    counted: bool
    """False for a request that names no unit."""


class Experiment:
    """A running experiment. May be used from any thread."""

    def __init__(self, book: Book, served: Served) -> None:
        self.book, self.plan = book, book.plan
        self._served = served
        _check_models(self.plan, served)
        self.measured = tuple(metric.name for metric in self.plan.metrics if metric.name in MEASURED)
        """What the server itself has to measure."""

    @property
    def public(self) -> Served:
        """What clients see: one model."""
        return Served({self.plan.model: None}, self._served.chat, self._served.limits, self._served.arguments)

    def route(self, headers: Mapping[str, str], body: Any, of_chat: bool) -> Routed:
        """Find the unit's arm and record the exposure. Raises `RefusalError`."""
        read = read_chat if of_chat else read_text
        if not isinstance(body, dict) or body.get("model") != self.plan.model:
            read(body, self.public)  # refuses, in the words of a server that has one model
            raise AssertionError("a server without that model refuses")
        name = self._unit_name(headers, body)
        if name is None:
            if self.plan.without_unit == "refuse":
                raise RefusalError(f"This request names no unit: give {_where(self.plan)}.", "user", code="unit_missing")
            return self._routed(0, body, of_chat, counted=False)
        unit, chosen = unit_of(self.plan, name), override_of(self.plan, name)
        with _stored():
            served = self.book.look(unit, chosen)
            while True:
                routed = self._routed(served.answers, body, of_chat, counted=True)
                if (now := self.book.expose(unit, chosen, routed.id, served)) == served:
                    return routed
                served = now  # a fallback, or a step of the ramp, came in between

    def feedback(self, headers: Mapping[str, str], body: Any) -> dict[str, Any]:
        """Record outcomes. Raises `RefusalError` for what is none."""
        if not isinstance(body, dict) or not isinstance(body.get("outcomes"), dict) or not body["outcomes"]:
            raise RefusalError('Feedback is {"id": ID OF THE ANSWER, "outcomes": {METRIC: VALUE}}.', "outcomes")
        for field in body:
            if field not in ("id", "outcomes", "user", "safety_identifier", "metadata"):
                raise RefusalError(f"`{field}` is not known here.{did_you_mean(field, ['id', 'outcomes', 'user'])} Leave it out.", field)
        values = {name: self._value(name, given) for name, given in body["outcomes"].items()}
        given_id = body.get("id")
        if given_id is not None and not isinstance(given_id, str):
            raise RefusalError("`id` is the id of an answer, such as chatcmpl-….", "id")
        name = self._unit_name(headers, body)
        if given_id is None and name is None:
            raise RefusalError(f"Feedback names an answer by its `id`, or a unit by {_where(self.plan)}.", "id")
        try:
            with _stored():
                if given_id is not None:
                    self.book.outcome(values, exposure=given_id.partition("-")[2] or given_id)
                else:
                    self.book.outcome(values, unit=unit_of(self.plan, str(name)))
        except DataError as error:
            raise RefusalError(str(error), "id", status=404) from None
        return {"object": "feedback", "id": given_id, "outcomes": values}

    def measure(self, routed: Routed, *, failed: bool, seconds: float, answer_tokens: int) -> None:
        """Record what the server measured of an answer, as far as the plan wants it. Never raises: the answer has been given."""
        everything = {"failed": float(failed), "seconds": seconds, "answer_tokens": float(answer_tokens)}
        wanted = {name: everything[name] for name in self.measured if name == "failed" or not failed}
        if not routed.counted or not wanted:
            return
        try:
            self.book.outcome({name: _bounded(self.plan.metric(name), value) for name, value in wanted.items()}, exposure=routed.id)
        except SapwoodError as error:
            logger.error("An outcome was not recorded: %s", error)

    def _routed(self, arm: int, body: Mapping[str, Any], of_chat: bool, *, counted: bool) -> Routed:
        chosen = self.plan.arms[arm]
        shaped = shape(body, chosen, self.plan, of_chat)
        asked = None
        if chosen.url is None:
            asked = read_chat(shaped, self._served) if of_chat else read_text(shaped, self._served)
        return Routed(chosen, shaped, asked, secrets.token_hex(12), counted)

    def _unit_name(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
        """What names the unit; None where nothing does."""
        kind, _, key = self.plan.unit.partition(":")
        if kind == "header":
            return headers.get(key) or None
        if kind == "metadata":
            metadata = body.get("metadata")
            found = metadata.get(key) if isinstance(metadata, dict) else None
        else:
            found = body.get(kind)
        if found is not None and not isinstance(found, str):
            raise RefusalError(f"{_where(self.plan)} is a text.", kind)
        return found or None

    def _value(self, name: str, given: Any) -> float:
        """A number within its metric's bounds."""
        names = [metric.name for metric in self.plan.metrics]
        if name not in names:
            raise RefusalError(
                f"This experiment measures no {name!r}.{did_you_mean(name, names)} It measures {', '.join(names)}.", "outcomes"
            )
        if name in MEASURED:
            raise RefusalError(f"{name!r} is measured by the server itself.", "outcomes")
        metric = self.plan.metric(name)
        value = _number(given)
        if value is None:
            raise RefusalError(
                f'{name!r} is {given!r:.60}; give a number, true, false, "up", "down", or an edit {{before, after}}.', "outcomes"
            )
        if not metric.clip and not metric.low <= value <= metric.high:
            raise RefusalError(f"{name!r} is {value:g}; it goes from {metric.low:g} to {metric.high:g}.", "outcomes")
        return _bounded(metric, value)


def shape(body: Mapping[str, Any], arm: Arm, plan: Plan, of_chat: bool) -> dict[str, Any]:
    """The request as an arm wants it. Raises `RefusalError` for a text to continue where arms have system prompts."""
    shaped = {**body, "model": arm.model or plan.model}
    for name in SETTINGS:
        if (value := getattr(arm, name)) is not None:
            shaped[name] = value
    if arm.max_tokens is not None:
        shaped.pop("max_completion_tokens", None)
    if not of_chat and any(one.system is not None for one in plan.arms):
        raise RefusalError("This experiment compares system prompts, so it answers chats alone: /v1/chat/completions.", "prompt")
    messages = body.get("messages")
    if of_chat and arm.system is not None and isinstance(messages, list):
        rest = [one for one in messages if not (isinstance(one, dict) and one.get("role") in ("system", "developer"))]
        shaped["messages"] = [{"role": "system", "content": arm.system}, *rest]
    return shaped


def share_changed(before: str, after: str) -> float:
    """How much of an answer was edited: 0 untouched, 1 nothing kept; by words."""
    return 1.0 - difflib.SequenceMatcher(None, before.split(), after.split(), autojunk=False).ratio()


class Watch:
    """Looks at the records every so often, and sends everybody to the control where an arm is shown to do harm."""

    def __init__(self, experiment: Experiment, every: float) -> None:
        self._experiment, self._every = experiment, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="experiment", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                fall_back(self._experiment.book)
            except Exception:
                logger.exception("The experiment could not be looked at.")


def fall_back(book: Book) -> list[str]:
    """Switch off what does harm, if the plan says so; what was said of each arm that was."""
    if not book.plan.fallback:
        return []
    found = analyse(book.read(), pictures=False)
    told = []
    for place, comparison in enumerate(found.comparisons, 1):
        if comparison.harm and book.switch(place, False, comparison.harm):
            logger.warning("%s Everybody is answered by %s now.", comparison.harm, book.plan.control.name)
            told.append(comparison.harm)
    return told


def _check_models(plan: Plan, served: Served) -> None:
    names = list(served.models)
    for arm in plan.arms:
        model = arm.model or plan.model
        if arm.url is None and model not in served.models:
            raise ConfigError(
                f"The plan {plan.name!r}: arm {arm.name!r} is answered by {model!r}, which this server does not have."
                f"{did_you_mean(model, names)} It has {', '.join(names)}; --adapters NAME=FOLDER adds one."
            )
    for arm in plan.arms:
        try:
            if arm.url is None:
                read_chat(shape({"messages": [{"role": "user", "content": "?"}]}, arm, plan, of_chat=True), served)
        except RefusalError as refusal:  # found now, and not by every unit of the arm
            raise ConfigError(f"The plan {plan.name!r}: arm {arm.name!r} would answer nobody: {refusal.message}") from None


def _where(plan: Plan) -> str:
    kind, _, key = plan.unit.partition(":")
    return {"header": f"the header {key}", "metadata": f"`metadata.{key}`"}.get(kind, f"`{kind}`")


def _number(given: Any) -> float | None:
    if isinstance(given, str):
        return _THUMBS.get(given)
    if isinstance(given, dict) and given.keys() == {"before", "after"} and all(isinstance(text, str) for text in given.values()):
        if sum(len(text.split()) for text in given.values()) > LONGEST_EDIT:
            raise RefusalError(
                f"An edit of more than {LONGEST_EDIT:,} words is not compared here; send the share that was changed.", "outcomes"
            )
        return share_changed(given["before"], given["after"])
    if isinstance(given, bool | int | float) and math.isfinite(given):
        return float(given)
    return None


def _bounded(metric: Metric, value: float) -> float:
    return min(metric.high, max(metric.low, value))


@contextmanager
def _stored() -> Iterator[None]:
    """Records that cannot be written are told as a server that cannot answer: an unrecorded exposure would bend the result."""
    try:
        yield
    except StorageError as error:
        logger.error("%s", error)
        raise RefusalError("The experiment's records cannot be written just now. Ask again.", status=503, wait=5) from error
