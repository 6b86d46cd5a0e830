"""Scorers of form: JSON, its schema and its fields; thoughts and answers between tags.

In: the text as it was written, a code fence around JSON allowed. Out: a `Score` whose explanation names the place that differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from jsonschema import exceptions, validators

from sapwood.errors import ConfigError
from sapwood.evaluate.scorers import Scorer, guarded, spoken
from sapwood.records import Completion, Item, Score

_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_SHOWN = 3


def json_valid(schema: dict[str, Any] | None = None) -> Scorer:
    """1 where the answer is a JSON object or list and, with a `schema`, keeps to it.

    Raises `ConfigError` where the schema is none. References to other places than the schema itself are not fetched.
    """
    checker = None
    if schema is not None:
        kind = validators.validator_for(schema)
        try:
            kind.check_schema(schema)
        except exceptions.SchemaError as error:
            raise ConfigError(f"The schema is not a JSON schema, at {error.json_path}: {error.message}. Mend it and try again.") from None
        checker = kind(schema)

    def score(item: Item, completion: Completion) -> Score:
        found, why = json_in(spoken(completion))
        if why:
            return Score(0.0, None, why)
        errors = list(checker.iter_errors(found)) if checker is not None else []
        shown = "; ".join(f"{error.json_path}: {error.message}" for error in errors[:_SHOWN])
        return Score(float(not errors), orjson.dumps(found).decode(), shown)

    return guarded(score)


def json_fields() -> Scorer:
    """Share of the fields that agree with the reference, an object or JSON text, at any depth.

    Counted over the fields of both: a field that is missing, wrong or too many counts against it. Texts are compared without
    white space around them, 2.0 passes for 2, true does not pass for 1. No JSON at all is 0; a reference that is none gives no value.
    """

    def score(item: Item, completion: Completion) -> Score:
        expected, why = json_in(item.reference) if isinstance(item.reference, str) else (item.reference, "")
        if why or not isinstance(expected, dict | list):
            return Score(None, None, "the reference is no JSON object or list")
        found, why = json_in(spoken(completion))
        if why:
            return Score(0.0, None, why)
        wanted, given = fields_of(expected), fields_of(found)
        places = wanted.keys() | given.keys()
        wrong = sorted(place for place in places if place not in wanted or place not in given or not _equal(wanted[place], given[place]))
        shown = "; ".join(_difference(place, wanted, given) for place in wrong[:_SHOWN])
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        return Score(1 - len(wrong) / len(places) if places else 1.0, orjson.dumps(found).decode(), shown + more)

    return guarded(score)


def tagged(*names: str) -> Scorer:
    """1 where the text is `<name>…</name>` for each name in this order, none empty, and nothing else around them.

    By default `<think>…</think><answer>…</answer>`. A first tag that the prompt already ends in (templates of reasoning models
    prefill `<think>`) counts as written. A server that hands the thought over apart is read as if it stood in its tags.
    """
    names = names or ("think", "answer")
    for name in names:
        if not re.fullmatch(r"[A-Za-z][\w-]*", name):
            raise ConfigError(f"{name!r} is no tag's name; give letters, such as tags:think,answer.")
    form = re.compile(r"\s*".join(rf"<{name}>(?P<{name.replace('-', '_')}>.*?)</{name}>" for name in names), re.DOTALL)

    def score(item: Item, completion: Completion) -> Score:
        text = as_written(completion, names[0]).strip()
        answer = re.search(rf"<{names[-1]}>(.*?)</{names[-1]}>", text, re.DOTALL)
        said = answer.group(1).strip() if answer else None
        for name in names:
            for tag in (f"<{name}>", f"</{name}>"):
                if text.count(tag) != 1:
                    return Score(0.0, said, f"{tag} stands {text.count(tag)} times, and once is wanted")
        whole = form.fullmatch(text)
        if whole is None:
            return Score(0.0, said, f"the text is not {', then '.join(f'<{name}>…</{name}>' for name in names)} and nothing else")
        empty = [name for name, part in zip(names, whole.groups(), strict=True) if not part.strip()]
        return Score(float(not empty), said, f"nothing stands in <{empty[0]}>" if empty else "")

    return guarded(score)


def as_written(completion: Completion, thought: str = "think") -> str:
    """The text with a thought that the prompt opened, or that was handed over apart, in its tags."""
    text, message, tag = completion.text, completion.message, f"<{thought}>"
    if completion.prompt.text.rstrip().endswith(tag) and not text.lstrip().startswith(tag):
        return tag + text
    if message is not None and message.reasoning is not None and tag not in text:
        return f"{tag}{message.reasoning}</{thought}>{message.content}"
    return text


def json_in(text: str) -> tuple[Any, str]:
    """The JSON object or list that a text consists of, and why it is none (then the first is None)."""
    fenced = _FENCED.fullmatch(text.strip())
    try:
        found = orjson.loads(fenced.group(1) if fenced else text)
    except orjson.JSONDecodeError as error:
        return None, f"no JSON: {error}"
    return (found, "") if isinstance(found, dict | list) else (None, f"JSON, but neither object nor list: {str(found)[:40]}")


def fields_of(value: Any, place: str = "$") -> dict[str, Any]:
    """Every leaf by its path; an empty object or list is a leaf."""
    if isinstance(value, Mapping) and value:
        return {path: leaf for key, entry in value.items() for path, leaf in fields_of(entry, f"{place}.{key}").items()}
    if isinstance(value, list) and value:
        return {path: leaf for index, entry in enumerate(value) for path, leaf in fields_of(entry, f"{place}[{index}]").items()}
    return {place: value}


def _equal(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, str) and isinstance(given, str):
        return wanted.strip() == given.strip()
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    return bool(wanted == given)


def _difference(place: str, wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if place not in given:
        return f"{place} is missing"
    if place not in wanted:
        return f"{place} is too many"
    return f"{place} is {str(given[place])[:40]!r}, expected {str(wanted[place])[:40]!r}"
