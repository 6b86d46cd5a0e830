"""Tasks of reasoning-gym as items, and its verifiers as scorers (extra `reason`).

In: a task's name, a number of instances and a seed. Out: items that differ in their text, and a scorer that asks the task itself
whether an answer is right. Instances for training and testing come from different seeds, and none of one side is on the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.evaluate.scorers import Scorer, guarded, last_number, spoken
from sapwood.records import Completion, Conversation, Item, Message, Score

ENTRY = "entry"
"""Key of `Item.meta` under which the task's own record is kept."""
ASKED_AT_ONCE = 64
SEED_APART = 1_000_000_007
SEEDS = 2**32 - 2**16
"""A task's own seed lies below it: some draw by numpy, which takes 32 bits, and add the instance's number, or that of a part, to it."""
_NUMERIC = re.compile(r"\s*-?\d+(\.\d+)?\s*")


def gym_items(
    task: str,
    count: int,
    *,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    instruction: str = "",
    exclude: Sequence[Item] = (),
) -> list[Item]:
    """`count` instances whose questions differ from each other and from those of `exclude`.

    `instruction` follows each question on a line of its own. Raises `ConfigError` for an unknown task or setting, for a package that is
    not there, and for a task that has no more different instances.
    """
    taken = {item.meta[ENTRY]["question"] for item in exclude}
    found: list[Item] = []
    for part in range(1 + 20 * count // ASKED_AT_ONCE):
        # instance i of a data set is drawn from its seed + i: seeds that are nearer than its size would give the same again
        for entry in _dataset(task, settings or {}, (seed * SEED_APART + part * ASKED_AT_ONCE) % SEEDS):
            question = entry["question"]
            if question in taken:
                continue
            taken.add(question)
            text = f"{question}\n{instruction}" if instruction else question
            found.append(Item(Conversation((Message("user", text),)), entry["answer"], meta={ENTRY: entry}))
            if len(found) == count:
                return found
    raise ConfigError(
        f"The task {task} has given {len(found)} different instances, and {count} are wanted. Ask for fewer, or widen its settings."
    )


def verified(task: str, settings: Mapping[str, Any] | None = None) -> Scorer:
    """The task's own verifier on what stands behind the thought: 1 is right; some tasks give shares for what is nearly so.

    Where the right answer is a number, the last number of the text is taken. Raises `ConfigError` as `gym_items` does.
    """
    asked = _dataset(task, settings or {}, 0)

    def score(item: Item, completion: Completion) -> Score:
        entry = item.meta[ENTRY]
        said = spoken(completion).strip()
        if _NUMERIC.fullmatch(str(entry["answer"])) and (number := last_number(said)) is not None:
            said = f"{number:.15g}"
        value = float(asked.score_answer(said, entry))
        if value < 1 and said == str(entry["answer"]).strip():
            value = 1.0
        near = value if value >= 0.5 else 0.0  # verifiers give crumbs for any text at all, which would reward noise
        return Score(near, said, "" if near == 1 else f"expected {entry['answer']!r}")

    return guarded(score)


def _dataset(task: str, settings: Mapping[str, Any], seed: int) -> Any:
    create, names = _gym()
    if task not in names:
        raise ConfigError(f"reasoning-gym has no task {task!r}.{did_you_mean(task, list(names))} It has {len(names)}, such as chain_sum.")
    try:
        return create(task, seed=seed, size=ASKED_AT_ONCE, **settings)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"reasoning-gym does not take these settings for {task}: {error}") from None


@cache
def _gym() -> tuple[Callable[..., Any], frozenset[str]]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ConfigError("reasoning-gym is not installed. Install it: pip install 'sapwood[reason]'") from None
    return reasoning_gym.create_dataset, frozenset(DATASETS)
