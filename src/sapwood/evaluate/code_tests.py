"""Scorer of programs: the answer's code against its tests, in the confined child (`evaluate.sandbox`).

In: an answer with Python code, bare or fenced; the tests from the reference. Out: 1 if the code and then its tests run to their end.
Making the scorer is the permission to run code: nothing else in Sapwood runs what a model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sapwood.evaluate.sandbox import Limits, require_barriers, run_tests
from sapwood.evaluate.scorers import Scorer, guarded, spoken
from sapwood.records import Completion, Item, Score

_BLOCK = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL | re.IGNORECASE)


def code_tests(limits: Limits | None = None) -> Scorer:
    """1 where the program passes the tests of `item.reference`: a text, or `{"tests", "prompt"?, "entry_point"?}` as in HumanEval.

    The first fenced block that defines `entry_point` is the program, else the last block, else the whole text. Where the
    program alone does not define it, it is a continuation of `prompt`. Raises `ConfigError`, before anything is asked, where this
    machine cannot hold a program in; such a machine gives no scores rather than zeros.
    """
    require_barriers()

    def score(item: Item, completion: Completion) -> Score:
        reference = item.reference if isinstance(item.reference, Mapping) else {"tests": item.reference}
        tests = reference.get("tests")
        if not isinstance(tests, str) or not tests.strip():
            return Score(None, None, "the reference holds no tests (a text, or an object with `tests`)")
        program = program_in(spoken(completion), reference.get("entry_point"), reference.get("prompt", ""))
        outcome = run_tests(program, limits, tests=tests)
        return Score(float(outcome.passed), program, "" if outcome.passed else f"{outcome.ended}: {outcome.detail}")

    return guarded(score)


def program_in(text: str, entry_point: str | None, prompt: str) -> str:
    """The program that an answer holds; see `code_tests`."""
    blocks = _BLOCK.findall(text)
    defines = re.compile(rf"^\s*(?:async\s+)?(?:def|class)\s+{re.escape(entry_point)}\b", re.MULTILINE) if entry_point else None
    if defines is not None:
        whole = [block for block in blocks if defines.search(block)] or ([text] if not blocks and defines.search(text) else [])
        if whole:
            return f"{_before(prompt, defines)}{whole[0]}"
    return f"{prompt}{blocks[-1] if blocks else text}"


def _before(prompt: str, defines: re.Pattern[str]) -> str:
    """The imports and helpers that a prompt holds in front of the function, which an answer that repeats only the function leaves out."""
    found = defines.search(prompt)
    return prompt[: found.start()] + "\n" if found else ""
