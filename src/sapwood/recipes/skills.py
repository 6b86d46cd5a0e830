"""General skills that tuning must not cost: a skill by name in, items with their scorer out.

    mmlu-slice               four-option questions of MMLU's test set, judged by the letter that is given
    reasoning-gym:TASK       a task of reasoning-gym, made by a seed, judged by its own verifier
    FILE                     conversations of yours, the last answer of each the reference

Left out on purpose: likelihoods of options. What counts here is what the model says to a user, so a model that forgot how to answer has
lost the skill, whatever its likelihoods say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sapwood.assets import Report, pull
from sapwood.config import did_you_mean
from sapwood.data import read
from sapwood.errors import ConfigError
from sapwood.evaluate import Scorer, items_from
from sapwood.evaluate.gym import gym_items, verified
from sapwood.recipes.arms import EvalConfig, scorer_for
from sapwood.records import Conversation, Item, Message
from sapwood.requirements import Skill
from sapwood.run import read_records

MMLU, GYM = "mmlu-slice", "reasoning-gym:"
LETTER = r"^\W*([A-D])\b(?! [a-z])|(?i:answer)\W{0,3}(?:is|:)?\W{0,4}\b([A-D])\b"
"""The letter that an answer begins with, or names as the answer."""
SEED = 20_250


def skill_items(skill: Skill, report: Report) -> tuple[list[Item], Scorer, str]:
    """(items, scorer, what it is made of). Raises `ConfigError` for a name that is none, `DataError` for a broken file."""
    if skill.name == MMLU:
        rows = read_records(pull(MMLU, report=report) / "samples-all-large.jsonl")
        items = [Item(_asked(row["question"]), row["answer"]) for row in rows]
        return _drawn(items, skill.items), _scorer(skill, items, f"regex:{LETTER}"), f"regex:{LETTER}"
    if skill.name.startswith(GYM):
        task = skill.name.removeprefix(GYM)
        return gym_items(task, skill.items, seed=SEED), verified(task), f"reasoning-gym's verifier, seed {SEED}"
    if not Path(skill.name).exists():
        hint = did_you_mean(skill.name, [MMLU])
        raise ConfigError(
            f"general: there is no skill {skill.name!r}, and no such file.{hint} Known: {MMLU}, {GYM}TASK, or a file of rows."
        )
    items = items_from(read([skill.name]).conversations)
    return _drawn(items, skill.items), _scorer(skill, items, skill.scorer), skill.scorer


def _asked(question: str) -> Conversation:
    return Conversation((Message("user", question),))


def _drawn(items: list[Item], count: int) -> list[Item]:
    """`count` of the items by a fixed seed, in their order; each once."""
    unique = list({item.id: item for item in items}.values())
    if len(unique) <= count:
        return unique
    return [unique[place] for place in sorted(np.random.default_rng(SEED).choice(len(unique), count, replace=False))]


def _scorer(skill: Skill, items: Sequence[Item], otherwise: str) -> Scorer:
    name = skill.scorer if skill.scorer != "auto" else otherwise
    guess = scorer_for(replace(EvalConfig(), scorer=name), items)
    if guess.scorer is None:
        raise ConfigError(f"general: nothing can judge the answers of {skill.name!r} ({guess.why}). Name a scorer there.")
    return guess.scorer
