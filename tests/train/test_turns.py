"""Answers of several turns: what is trained are the turns of the model, and they count as one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sapwood.model import trainable_parameters
from sapwood.records import Completion, Conversation, Ended, Item, Message, Prompt, Rewarded
from sapwood.train.policy import PolicyConfig, total
from sapwood.train.reference import by_rows, row_logprobs
from sapwood.train.rollouts import Asked, Group, Objective, Rollouts, rows_to_train
from sapwood.train.step import accumulate
from train.tiny_training import tiny_lm

QUESTION = tuple(range(2, 22))
TOOL = (50, 51, 52, 53)


def ended(prompt: tuple[int, ...], ids: tuple[int, ...], before: tuple[Completion, ...] = ()) -> Completion:
    return Completion(Prompt((), prompt, ""), ids, "", Ended.STOP, before=before)


def rollouts() -> Rollouts:
    """A group of three: one turn, two turns, three turns; each later prompt holds what came before, the tool's words too."""
    made = []
    for count, first in ((1, 60), (2, 63), (3, 66)):
        prompt, before = QUESTION, tuple[Completion, ...]()
        for turn in range(count):
            ids = (first + turn, 40 + count, 1)
            made_now = ended(prompt, ids, before)
            prompt, before = (*prompt, *ids, *TOOL), made_now.turns
        made.append(made_now)
    asked = Asked(Item(Conversation((Message("user", "?"),)), None), Prompt((), QUESTION, ""))
    return Rollouts([Group(asked, tuple(made), tuple(Rewarded(value) for value in (0.0, 0.2, 1.0)))], 0, 1, 0.0, 0.0)


def test_every_turn_is_a_row_and_no_word_of_a_tool_is_trained() -> None:
    examples, facts, answers, tokens = rows_to_train(rollouts(), PolicyConfig())
    assert (answers, tokens) == (3, 6 * 3)
    rows = examples[0].rows
    assert [fact.answer for fact in facts[0]] == [0, 1, 1, 2, 2, 2]
    assert len({fact.advantage for fact in facts[0]}) == 3
    trained = {token for row in rows for token, weight in zip(row.completion_T.tolist(), row.weights_T, strict=True) if weight}
    assert not trained & {*TOOL, *QUESTION}
    assert sum(len(row.completion_T) for row in rows) == tokens
    whole = len(QUESTION) + 3 * (3 + len(TOOL)) - len(TOOL)
    assert len(rows[-1].prompt_T) + len(rows[-1].completion_T) == whole


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_the_turns_of_an_answer_count_as_one_row(loss: Any) -> None:
    config = PolicyConfig(loss=loss)
    examples, facts, answers, tokens = rows_to_train(rollouts(), config)
    model = tiny_lm()
    weight = total(config, rows=answers, tokens=tokens, longest=30)
    objective = Objective(facts, config)
    sums = accumulate(model, examples, 400, objective=objective, weight=weight)
    assert sums.unique_tokens < 0.6 * sums.row_tokens, "turns lie on one path of the forest"
    now = row_logprobs(model, examples, 400)[0]
    expected = 0.0
    for answer in range(3):
        turns = [place for place, fact in enumerate(facts[0]) if fact.answer == answer]
        length = sum(len(now[place]) for place in turns)
        share = {"grpo": 1 / (3 * length), "gspo": 1 / (3 * length), "dapo": 1 / 18, "dr_grpo": 1 / 90}[loss]
        expected -= share * length * facts[0][turns[0]].advantage  # every ratio is 1
    assert sums.mean_loss == pytest.approx(expected, abs=1e-6)


def gradients(examples: Any, objective: Callable[..., Any], weight: float) -> np.ndarray:
    model = tiny_lm()
    for parameter in trainable_parameters(model).values():
        parameter.grad = None
    accumulate(model, examples, 400, objective=objective, weight=weight)
    return np.concatenate([p.grad.double().numpy().ravel() for p in trainable_parameters(model).values() if p.grad is not None])


def test_tokens_of_turns_move_the_model_as_rows_of_their_own_do() -> None:
    config = PolicyConfig(loss="dapo")
    examples, facts, _, tokens = rows_to_train(rollouts(), config)
    together = gradients(examples, Objective(facts, config), tokens)
    apart = gradients(by_rows(examples), Objective([[fact] for fact in facts[0]], config), tokens)
    assert np.abs(together).max() > 0
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5 * np.abs(apart).max())
