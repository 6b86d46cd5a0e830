"""Objectives of reinforcement learning and preferences: against numbers by hand, and against TRL's own code on the same rows."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.attention import register
from sapwood.errors import ConfigError
from sapwood.model import LanguageModel
from sapwood.records import Completion, Conversation, Ended, Example, Item, Message, Prompt, Rewarded
from sapwood.train.advantages import advantages, dead, spreads
from sapwood.train.dpo import DpoConfig
from sapwood.train.policy import PolicyConfig, Sampled, corrections, policy, total
from sapwood.train.preferences import preference, vote
from sapwood.train.preferred import VOTE, ToPrefer, accumulate_preferences
from sapwood.train.reference import row_logprobs
from sapwood.train.rollouts import Asked, Group, Objective, Rollouts, TrainedRow, rows_to_train, with_logprobs
from sapwood.train.step import Sums, accumulate
from train.policy_cases import (
    CUT,
    FILE,
    GOOD,
    GROUP,
    LONGEST,
    POLICIES,
    PREFERENCES,
    REFERENCE_B2,
    REWARDS_PG,
    Case,
    groups,
    module,
    noise,
    pairs,
    probe,
)

register()
EXPECTED = json.loads(FILE.read_text())


def lm(shares: bool = True) -> LanguageModel:
    model = LanguageModel(module("sapwood" if shares else "sdpa"), probe=False)
    model.shares_prefixes = shares
    return model


# ---- advantages


def test_advantages_of_the_course_by_hand() -> None:
    """Four of eight right: mean 0.5, standard deviation of a sample 0.5345, advantages ±0.9354; of four with two right ±0.866."""
    eight = advantages(np.array([[1.0, 1, 1, 1, 0, 0, 0, 0]]), "group")[0]
    assert eight == pytest.approx([0.9352] * 4 + [-0.9352] * 4, abs=2e-4)
    assert spreads(np.array([[1.0, 1, 1, 1, 0, 0, 0, 0]]))[0] == pytest.approx(math.sqrt(2 / 7))
    assert advantages(np.array([[1.0, 0, 1, 0]]), "group")[0] == pytest.approx([0.8659, -0.8659, 0.8659, -0.8659], abs=2e-4)


def test_what_advantages_are_divided_by() -> None:
    rewards = np.array([[1.0, 0.0], [10.0, 0.0]])
    assert advantages(rewards, "none").tolist() == [[0.5, -0.5], [5.0, -5.0]]
    batch = advantages(rewards, "batch")
    assert batch == pytest.approx(np.array([[0.5, -0.5], [5.0, -5.0]]) / (rewards.std(ddof=1) + 1e-4))
    assert advantages(rewards, "group")[1] == pytest.approx(advantages(rewards, "group")[0], rel=1e-3)


def test_unjudged_answers_move_nothing_and_count_in_no_mean() -> None:
    found = advantages(np.array([[1.0, np.nan, 0.0], [np.nan, np.nan, np.nan]]), "none")
    assert found.tolist() == [[0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]


def test_groups_alike_are_dead() -> None:
    rewards = np.array([[1.0, 1, 1], [0.1, 0.1, 0.1], [0, 1, 0], [np.nan, 1, 1], [np.nan, np.nan, np.nan], [np.nan, 0, 1]])
    assert dead(rewards).tolist() == [True, True, False, True, True, False]


# ---- the policy's objective by hand


def one_row(ratios: list[float], advantage: float, **knobs: Any) -> float:
    """The loss of one answer whose tokens have these ratios, divided as a step of this row alone divides it."""
    config = PolicyConfig(**knobs)
    logprob_E = torch.log(torch.tensor(ratios, dtype=torch.float64))
    zeros, ones = torch.zeros_like(logprob_E), torch.ones_like(logprob_E)
    sampled = Sampled(torch.zeros(len(ratios), dtype=torch.long), torch.tensor([advantage], dtype=torch.float64), ones, zeros)
    loss, counts = policy(logprob_E, sampled, config)
    return float(loss) / total(config, rows=1, tokens=counts["tokens"], longest=LONGEST)


def test_clip_by_hand() -> None:
    """The course's numbers: 1.8 is cut to 1.2 and 1.4 to 1.2 for good answers, 0.4 to 0.8 for bad ones; else the ratio counts."""
    assert one_row([1.8], 1.0) == pytest.approx(-1.2)
    assert one_row([1.4], 0.5) == pytest.approx(-0.6)
    assert one_row([0.4], -1.0) == pytest.approx(0.8)
    assert one_row([1.8], -1.0) == pytest.approx(1.8)
    assert one_row([0.4], 1.0) == pytest.approx(-0.4)
    assert one_row([1.8], 1.0, clip_high=0.28) == pytest.approx(-1.28)
    assert one_row([0.4], -1.0, clip_low=0.5) == pytest.approx(0.5)


def test_how_tokens_count_by_hand() -> None:
    assert one_row([1.1, 0.9], 1.0, loss="grpo") == pytest.approx(-1.0)
    assert one_row([1.1, 1.1, 0.9], 1.0, loss="dr_grpo") == pytest.approx(-3.1 / LONGEST)
    assert one_row([1.1, 1.1, 0.9], 1.0, loss="dapo") == pytest.approx(-3.1 / 3)
    assert one_row([1.1, 0.9], 1.0, loss="gspo") == pytest.approx(-math.sqrt(0.99))


def test_sequences_of_different_length_by_hand() -> None:
    """Two answers of 1 and 3 tokens, advantages 1 and -1, ratios 1: grpo gives 0, dapo (−1 + 3) / 4."""
    row_E = torch.tensor([0, 1, 1, 1])
    now = torch.zeros(4, dtype=torch.float64)
    sampled = Sampled(row_E, torch.tensor([1.0, -1.0], dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    for loss, expected in (("grpo", 0.0), ("dapo", 0.5), ("dr_grpo", 2 / (2 * LONGEST)), ("gspo", 0.0)):
        config = PolicyConfig(loss=loss)  # type: ignore[arg-type]
        assert float(policy(now, sampled, config)[0]) / total(config, rows=2, tokens=4, longest=LONGEST) == pytest.approx(expected)


def test_kl_and_counts_by_hand() -> None:
    logprob_E = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    reference_E = torch.tensor([-1.5, -1.0], dtype=torch.float64)
    sampled = Sampled(
        torch.tensor([0, 0]), torch.zeros(1, dtype=torch.float64), torch.ones(2, dtype=torch.float64), reference_E=reference_E
    )
    k3 = [math.exp(-0.5) + 0.5 - 1, math.exp(1.0) - 1.0 - 1]
    loss, counts = policy(logprob_E, sampled, PolicyConfig(kl=0.1))
    assert float(loss) == pytest.approx(0.1 * sum(k3))
    assert counts["kl"] == pytest.approx(sum(k3))
    assert counts["entropy"] == pytest.approx(3.0)


def test_entropy_bonus_has_the_gradient_of_the_entropy() -> None:
    """Over all tokens of a distribution, weighted by their probabilities, the estimate's gradient is the entropy's own."""
    logits_V = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64, requires_grad=True)
    logp_V = logits_V.log_softmax(0)
    entropy = -(logp_V.exp() * logp_V).sum()
    (exact,) = torch.autograd.grad(entropy, logits_V)
    sampled = Sampled(torch.arange(4), torch.zeros(4, dtype=torch.float64), logits_V.detach().softmax(0))
    loss, _ = policy(logits_V.log_softmax(0), sampled, PolicyConfig(entropy=0.5))
    (found,) = torch.autograd.grad(loss, logits_V)
    assert torch.allclose(found, -0.5 * exact)


def test_corrections_by_hand() -> None:
    old, sampler, row = torch.log(torch.tensor([0.5, 0.9, 0.4])), torch.log(torch.tensor([0.25, 1.0, 0.1])), torch.tensor([0, 0, 1])
    assert corrections(old, sampler, row, 2, PolicyConfig()) is None
    token = corrections(old, sampler, row, 2, PolicyConfig(correction="token"))
    assert token is not None
    assert token.tolist() == pytest.approx([2.0, 0.9, 3.0])
    whole = corrections(old, sampler, row, 2, PolicyConfig(correction="sequence"))
    assert whole is not None
    assert whole.tolist() == pytest.approx([1.8, 1.8, 0.0])


@pytest.mark.parametrize("knobs", [{"clip_low": 0}, {"clip_high": -1}, {"kl": -0.1}, {"entropy": math.nan}, {"correction_cap": 0}])
def test_bad_knobs_of_the_policy(knobs: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs))):
        PolicyConfig(**knobs)  # type: ignore[arg-type]


# ---- preferences by hand


def pair(**knobs: Any) -> float:
    ratios = torch.tensor([1.0]), torch.tensor([-2.0])
    settings = {"kind": "sigmoid", "beta": 0.1, "smoothing": 0.0, **knobs}
    return float(preference(*ratios, torch.tensor([[4.0], [5.0]]), **settings)[0])


def test_preference_losses_by_hand() -> None:
    sigma = 1 / (1 + math.exp(-0.3))
    assert pair() == pytest.approx(-math.log(sigma))
    assert pair(smoothing=0.2) == pytest.approx(-0.8 * math.log(sigma) - 0.2 * math.log(1 - sigma))
    assert pair(kind="robust", smoothing=0.2) == pytest.approx((-0.8 * math.log(sigma) + 0.2 * math.log(1 - sigma)) / 0.6)
    assert pair(kind="ipo") == pytest.approx((1 / 4 + 2 / 5 - 5) ** 2)


def test_votes_by_hand() -> None:
    loss, counts = vote(torch.tensor([1.0, -2.0]), torch.tensor([True, False]), 0.5, beta=0.1, good_weight=1.5, bad_weight=1.0)
    assert float(loss) == pytest.approx(1.5 * (1 - 1 / (1 + math.exp(-0.05))) + (1 - 1 / (1 + math.exp(-0.25))))
    assert counts["right"] == 2


# ---- against TRL


def compare(sums: Sums, model: LanguageModel, name: str) -> None:
    expected = EXPECTED[name]
    assert sums.mean_loss == pytest.approx(expected["loss"], abs=1e-5)
    found = {key: probe(value.grad) for key, value in model.module.named_parameters() if value.grad is not None}
    assert found.keys() == expected["gradients"].keys()
    largest = max(norm for norm, _ in expected["gradients"].values())
    for key, (norm, product) in expected["gradients"].items():
        assert found[key][0] == pytest.approx(norm, rel=1e-4, abs=1e-4 * largest), key
        assert found[key][1] == pytest.approx(product, abs=1e-4 * max(1.0, largest)), key


def rolled_out(config: PolicyConfig, shares: bool) -> tuple[Sums, LanguageModel]:
    """One step on the rows of the comparison, by the way that the loop goes."""
    model, examples = lm(shares), groups()
    now = row_logprobs(model, [Example((row,)) for example in examples for row in example.rows], 4000)
    old, before, sampler = ([value[0] + add for value, add in zip(now, noise(examples, seed), strict=True)] for seed in (1, 2, 3))
    sampler = [value + one - two[0] for value, one, two in zip(sampler, old, now, strict=True)]
    number = iter(range(len(REWARDS_PG) * GROUP))
    made = []
    for example, reward_G in zip(examples, REWARDS_PG, strict=True):
        asked = Asked(Item(Conversation((Message("user", "?"),)), None), Prompt((), tuple(example.rows[0].prompt_T.tolist()), ""))
        completions = tuple(
            Completion(
                asked.prompt,
                tuple(row.completion_T.tolist()),
                "",
                Ended.LENGTH if (place := next(number)) in CUT else Ended.STOP,
                logprobs=tuple(sampler[place].tolist()),
            )
            for row in example.rows
        )
        made.append(Group(asked, completions, tuple(Rewarded(float(reward)) for reward in reward_G)))
    _, facts, rows, tokens = rows_to_train(Rollouts(made, 0, 2, 0.0, 0.0), config)
    kept, units, known = iter(range(len(now))), [], []
    for example, reward_G in zip(examples, REWARDS_PG, strict=True):
        rows_here = [(row, next(kept)) for row, _ in zip(example.rows, reward_G, strict=True)]
        units.append(rows_here)
    flat = [fact for some in facts for fact in some]
    assert len(flat) == len(now) - (len(CUT) if config.mask_overlong else 0)
    given = [[pair for pair in some if not (config.mask_overlong and pair[1] in CUT)] for some in units]
    line = iter(flat)
    for some in given:
        known.append([TrainedRow((fact := next(line)).advantage, sampler[place], fact.answer) for _, place in some])
    picked = [Example(tuple(row for row, _ in some)) for some in given]
    facts = with_logprobs(
        known,
        [[old[place] for _, place in some] for some in given],
        [[before[place] for _, place in some] for some in given] if config.kl else None,
    )
    if not shares:
        picked, facts = [Example((row,)) for one in picked for row in one.rows], [[fact] for some in facts for fact in some]
    weight = total(config, rows=rows, tokens=tokens, longest=LONGEST)
    return accumulate(model, picked, 60, objective=Objective(facts, config), weight=weight), model


@pytest.mark.parametrize("shares", [True, False], ids=["forest", "row by row"])
@pytest.mark.parametrize("case", POLICIES, ids=lambda case: case.name)
def test_policies_equal_trl(case: Case, shares: bool) -> None:
    sums, model = rolled_out(PolicyConfig(**case.ours), shares)
    compare(sums, model, case.name)


@pytest.mark.parametrize("shares", [True, False], ids=["forest", "row by row"])
@pytest.mark.parametrize("case", PREFERENCES, ids=lambda case: case.name)
def test_preferences_equal_trl(case: Case, shares: bool) -> None:
    model, examples = lm(shares), pairs()
    now = [[float(row.sum()) for row in rows] for rows in row_logprobs(lm(), examples, 4000)]
    votes = case.name == "kto"
    if votes:
        examples = [Example(one.rows, None, {VOTE: good}) for one, good in zip(examples, GOOD, strict=True)]
    config = DpoConfig(**case.ours)
    asked = ToPrefer(examples, list(np.array(now) + REFERENCE_B2), config, votes)
    compare(accumulate_preferences(model, asked, 80, draw=(0, 0)), model, case.name)
