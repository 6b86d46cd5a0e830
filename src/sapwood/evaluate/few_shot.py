"""Few-shot prompting, the arm that fine-tuning has to beat: examples as earlier turns, their number chosen fairly.

In: training items, a `Sampler`, a prompt function, a scorer. Out: the examples, and what was tried.
The number of examples is chosen on training items alone; the held-out items are never looked at.
Left out on purpose: searching for the best examples, and examples with a tool list of their own (a template shows one
list of tools, that of the question).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sapwood.errors import DataError
from sapwood.evaluate.experiment import PromptOf, run_arm
from sapwood.evaluate.free import likeness
from sapwood.evaluate.items import answer_message, answer_text, asked_text
from sapwood.evaluate.scorers import Scorer
from sapwood.records import Conversation, Item, Message, Prompt, Sampler, SamplingParams

_SETTING = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Tried:
    """One number of examples on the dev items. `rate` counts an item that could not be scored as 0, for choosing only."""

    size: int
    rate: float
    items: int
    unscored: int


@dataclass(frozen=True, slots=True)
class FewShot:
    """The chosen examples and what was tried."""

    shots: tuple[Item, ...]
    tried: tuple[Tried, ...]

    @property
    def name(self) -> str:
        """The arm's name, such as "few-shot 4"."""
        return f"few-shot {len(self.shots)}"

    def around(self, prompt: PromptOf) -> PromptOf:
        """The prompt function of this arm: the examples, then what is asked."""

        def render(conversation: Conversation) -> Prompt:
            return prompt(dataclasses.replace(conversation, messages=few_shot_prompt(conversation.messages, self.shots)))

        return render


def retrieved(train_items: Sequence[Item], size: int, prompt: PromptOf) -> PromptOf:
    """The prompt function of an arm that shows each question the `size` training rows nearest to it, the nearest last.

    Nearness is that of the lookup arm (`free.likeness`). A row that asks the very same is never shown, and nothing is searched for among
    the rows that are asked. Raises `DataError` with fewer training items than `size`.
    """
    if not 0 < size <= len(train_items):
        raise DataError(f"{size} retrieved examples need at least as many training items; found {len(train_items)}.")
    alike = likeness(train_items)
    asked = [asked_text(item) for item in train_items]

    def render(conversation: Conversation) -> Prompt:
        item = Item(conversation, None)
        text = asked_text(item)
        order = np.argsort(-alike(item), kind="stable")
        nearest = [train_items[place] for place in order if asked[place] != text][:size]
        return prompt(dataclasses.replace(conversation, messages=few_shot_prompt(conversation.messages, nearest[::-1])))

    return render


def few_shot_prompt(messages: Sequence[Message], shots: Sequence[Item]) -> tuple[Message, ...]:
    """The item's system message, then each example's turns and its answer, then what the item asks.

    An example whose system message differs from the item's (one that lists other tools, say) carries it at the head of
    its first user turn, for a prompt has one system message. Raises `DataError` for an example without an answer.
    """
    setting, asked = _apart(messages)
    shown: list[Message] = []
    for shot in shots:
        own, turns = _apart(shot.conversation.messages)
        if own != setting and own and turns:
            head = "\n\n".join(message.content for message in own)
            turns = (dataclasses.replace(turns[0], content=f"{head}\n\n{turns[0].content}"), *turns[1:])
        shown += [*turns, answer_message(shot)]
    return (*setting, *shown, *asked)


def choose_shots(
    sampler: Sampler,
    prompt: PromptOf,
    train_items: Sequence[Item],
    scorer: Scorer,
    params: SamplingParams | None = None,
    *,
    sizes: Sequence[int] = (2, 4, 8),
    dev: int = 24,
    seed: int = 0,
) -> FewShot:
    """The number of examples that answers most of `dev` other training items right; of equals the smaller.

    Examples are drawn by `seed`, different answers first; smaller sets are the beginnings of larger ones. Dev items
    share no cluster with an example where that leaves any. Raises `DataError` with fewer training items than the
    smallest set and one dev item need.
    """
    possible = sorted({size for size in sizes if 0 < size < len(train_items)})
    if not possible:
        raise DataError(
            f"Few-shot examples of sizes {tuple(sizes)} need at least {min(sizes, default=0) + 1} training items; found {len(train_items)}."
        )
    order = [train_items[place] for place in np.random.default_rng(seed).permutation(len(train_items))]
    order = _varied(order)
    examples = tuple(order[: possible[-1]])
    taken = {item.cluster for item in examples} - {None}
    rest = order[possible[-1] :]
    asked = ([item for item in rest if item.cluster not in taken] or rest)[:dev]
    tried = []
    for size in possible:
        arm = FewShot(examples[:size], ())
        scores = run_arm(arm.name, asked, sampler, arm.around(prompt), scorer, params)
        values = [score.value for score in scores if score.value is not None]
        tried.append(Tried(size, sum(values) / len(asked), len(asked), len(asked) - len(values)))
    best = max(tried, key=lambda entry: (entry.rate, -entry.size))
    return FewShot(examples[: best.size], tuple(tried))


def _apart(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(leading system messages, the rest)"""
    first = next((place for place, message in enumerate(messages) if message.role not in _SETTING), len(messages))
    return tuple(messages[:first]), tuple(messages[first:])


def _varied(items: Sequence[Item]) -> list[Item]:
    """The same items, first one of each answer, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    ranks = []
    for item in items:
        ranks.append(seen[answer_text(item)])
        seen[answer_text(item)] += 1
    return [items[place] for place in sorted(range(len(items)), key=lambda place: ranks[place])]
