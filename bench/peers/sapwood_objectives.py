"""What one update of Sapwood computes, by objective: a gradient left in the parameters, as the loops of `sapwood.train` leave it.

imitation    the rows' log-probabilities                            `train.sft`
preference   the reference's pass over both answers, then DPO       `train.dpo`, which makes that pass before step 1, one for each pair
policy       advantages, the reference's pass where the divergence  `train.grpo` behind its sampling
             is weighed, then the policy's objective
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bench.reward import reward_of
from sapwood.model import LanguageModel
from sapwood.records import Completion, Conversation, Ended, Example, Item, Message, Prompt, Rewarded
from sapwood.train.dpo import DpoConfig
from sapwood.train.policy import PolicyConfig, total
from sapwood.train.preferred import ToPrefer, accumulate_preferences, reference_of
from sapwood.train.reference import Reference, row_logprobs
from sapwood.train.rollouts import Asked, Group, Objective, Rollouts, rows_to_train, with_logprobs
from sapwood.train.step import Sums, accumulate

Update = Callable[[Sequence[Example], int, tuple[int, int]], Sums]
"""(the step's examples, tokens of a micro-batch, seed and step of what dropout draws)."""


def imitation(model: LanguageModel, kl: float) -> Update:
    """Of rows."""
    return lambda step, budget, draw: accumulate(model, step, budget, draw=draw)


def preference(model: LanguageModel, kl: float) -> Update:
    """Of pairs, the chosen row first. The reference is the adapter as it is now."""
    reference, config = Reference(model), DpoConfig()

    def update(step: Sequence[Example], budget: int, draw: tuple[int, int]) -> Sums:
        with reference.in_force():
            known = reference_of(model, step, budget)
        return accumulate_preferences(model, ToPrefer(list(step), list(known), config, votes=False), budget, draw=draw)

    return update


def policy(model: LanguageModel, kl: float) -> Update:
    """Of groups whose answers are given."""
    reference, config = Reference(model), PolicyConfig(kl=kl)

    def update(step: Sequence[Example], budget: int, draw: tuple[int, int]) -> Sums:
        groups, facts, rows, tokens = rows_to_train(_rollouts(step), config)
        before = None
        if kl:
            with reference.in_force():
                before = row_logprobs(model, groups, budget)
        objective = Objective(with_logprobs(facts, None, before), config)
        weight = total(config, rows=rows, tokens=tokens, longest=max(len(row.completion_T) for one in step for row in one.rows))
        return accumulate(model, groups, budget, draw=draw, objective=objective, weight=weight)

    return update


OBJECTIVES: Mapping[str, Callable[[LanguageModel, float], Update]] = {
    "imitation": imitation,
    "preference": preference,
    "policy": policy,
}
"""Objective → what makes its update; the number is the weight of the divergence from the reference."""


def asked_of(prompt_ids: Sequence[int], place: int) -> Asked:
    """A prompt that is nothing but its tokens."""
    return Asked(Item(Conversation((Message("user", str(place)),)), None), Prompt((), tuple(prompt_ids), ""))


def rewarded(completion: Completion) -> Rewarded:
    """An answer's reward."""
    value = reward_of(completion.ids)
    return Rewarded(value, {"answer": value}, solved=value >= 1)


def _rollouts(step: Sequence[Example]) -> Rollouts:
    groups = []
    for place, example in enumerate(step):
        asked = asked_of(example.rows[0].prompt_T.tolist(), place)
        completions = tuple(Completion(asked.prompt, tuple(row.completion_T.tolist()), "", Ended.LENGTH) for row in example.rows)
        groups.append(Group(asked, completions, tuple(rewarded(one) for one in completions)))
    assert all(np.ptp(group.rewards_G) > 0 for group in groups), "a group of equal rewards has no gradient"
    return Rollouts(groups, 0, len(groups), 0.0, 0.0)
