"""Scorers by the names that a person writes: `exact`, `rouge:rouge2`, `json-schema:order.json`, `my_scorer.py:polite`, …

One table of names, which the help, the error and the docs are made of. What follows a colon is the scorer's own setting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, storage
from sapwood.evaluate.code_tests import code_tests
from sapwood.evaluate.function_calls import function_call
from sapwood.evaluate.instructions import instructions
from sapwood.evaluate.maths import maths
from sapwood.evaluate.scorers import Scorer, exact, number, regex, set_f1
from sapwood.evaluate.structure_scorers import json_fields, json_valid, tagged
from sapwood.evaluate.text_scorers import Rouge, bleu, chrf, length, refusal, rouge, token_f1
from sapwood.evaluate.user_scorer import is_user_scorer, user_scorer

PLAIN: dict[str, tuple[Callable[[], Scorer], str]] = {
    "exact": (lambda: exact(casefold=True), "the answer is the reference, without regard to case"),
    "number": (number, "the last number is the reference's"),
    "maths": (maths, "the last expression equals the reference's in value (LaTeX, fractions, sets)"),
    "set-f1": (lambda: set_f1(","), "F1 of entries divided by commas"),
    "token-f1": (token_f1, "F1 of words"),
    "rouge": (rouge, "ROUGE-L; rouge:rouge1, rouge:rouge2"),
    "bleu": (bleu, "sentence BLEU / 100"),
    "chrf": (chrf, "chrF / 100"),
    "function-call": (function_call, "the calls are the reference's: function, arguments, types"),
    "json": (json_valid, "an object or list in JSON"),
    "json-fields": (json_fields, "share of the fields that agree with the reference"),
    "tags": (tagged, "<think>…</think><answer>…</answer>; tags:NAME,NAME"),
    "instructions": (instructions, "IFEval's instructions that a rule can check were all followed"),
    "answers": (refusal, "no refusal (or one, where the reference is true)"),
    "refuses": (lambda: refusal(wanted=True), "a refusal (or none, where the reference is false)"),
}
"""Name → (factory, what is 1)."""

RUNS_CODE = "code-tests"
"""Needs a permission of its own (--allow-code), so it is made by name only where that was given."""

WITH_VALUE: dict[str, tuple[Callable[[str], Scorer], str]] = {
    "regex": (regex, "regex:PATTERN, the last match is the reference"),
    "rouge": (lambda kind: rouge(cast(Rouge, kind)), "rouge:rouge2"),
    "length": (lambda bounds: length(*_bounds(bounds)), "length:LEAST-MOST in words, such as length:10-200"),
    "json-schema": (lambda file: json_valid(_schema(file)), "json-schema:FILE, the answer keeps to the schema"),
    "tags": (lambda names: tagged(*(name.strip() for name in names.split(","))), "tags:NAME,NAME"),
}
"""Name in front of the colon → (factory, how it is written)."""


def scorer_named(name: str, *, allow_code: bool = False) -> Scorer:
    """The scorer that a name stands for. Raises `ConfigError` for an unknown one, a bad setting, or code that nobody allowed."""
    if name == RUNS_CODE:
        if not allow_code:
            raise ConfigError(
                "The scorer code-tests runs programs that a model wrote, in a child process that reaches no network and no file. "
                "Allow it with --allow-code."
            )
        return code_tests()
    if name in PLAIN:
        return PLAIN[name][0]()
    if is_user_scorer(name):
        return user_scorer(name)
    kind, colon, value = name.partition(":")
    if colon and value and kind in WITH_VALUE:
        return WITH_VALUE[kind][0](value)
    raise ConfigError(f"There is no scorer {name!r}.{did_you_mean(kind, scorer_names())} Known: {', '.join(scorer_names())}.")


def scorer_names() -> list[str]:
    """Every name, those with a setting as they are written."""
    return [*PLAIN, RUNS_CODE, "regex:PATTERN", "length:LEAST-MOST", "json-schema:FILE", "FILE.py:NAME"]


def _bounds(text: str) -> tuple[int, int | None]:
    least, dash, most = text.partition("-")
    if not (least.isdigit() and dash and (most.isdigit() or not most)):
        raise ConfigError(f"length is {text!r}; give least-most in words, such as length:10-200, or length:10- without an upper bound.")
    return int(least), int(most) if most else None


def _schema(file: str) -> dict[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"json-schema is {file}, and there is no such file. Give the path of a JSON schema.")
    with storage(path, "read"):
        content = path.read_bytes()
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON ({error}). Mend it and try again.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}, and a JSON schema is an object. Mend it and try again.")
    return found
