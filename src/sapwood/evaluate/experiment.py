"""One arm of an experiment: every item asked once, scored, and recorded so that a stopped run goes on where it was.

In: items, a `Sampler` (or a function item → text that needs no model), a prompt function, a scorer.
Out: one `ArmScore` for each arm and item, the records of `scores.jsonl`:

    {arm, item, cluster, value (0..1 or null), answer, explanation, text, ended, tokens_in, tokens_out, seconds, copies}

Left out on purpose: which arms there are and in what order (room `recipes`), and several samples an item.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.errors import DataError, SapwoodError
from sapwood.evaluate.items import COPIES
from sapwood.evaluate.scorers import Scorer, guarded
from sapwood.records import Completion, Conversation, Ended, Item, Prompt, Sampler, SamplingParams

PromptOf = Callable[[Conversation], Prompt]
"""Renders what is asked, generation prompt included: `chat`'s, handed in."""

OnProgress = Callable[[int, int], None]
"""Called with (items answered, items in all)."""


@dataclass(frozen=True, slots=True)
class ArmScore:
    """What one arm answered to one item, and how it was judged. `value` is None where nothing could be judged."""

    arm: str
    item: str
    cluster: str | None
    value: float | None
    answer: str | None
    explanation: str
    text: str
    ended: str
    tokens_in: int
    tokens_out: int
    seconds: float
    """Of the batch this item was asked in, divided by its items."""
    copies: int = 1
    """How many rows asked and expected the very same."""

    def record(self) -> dict[str, Any]:
        """The record of `scores.jsonl`."""
        return dataclasses.asdict(self)


Save = Callable[[Sequence[ArmScore]], None]
"""Called with each new batch of scores as soon as it is there."""


def run_arm(
    name: str,
    items: Sequence[Item],
    sampler: Sampler,
    prompt: PromptOf,
    scorer: Scorer,
    params: SamplingParams | None = None,
    *,
    done: Iterable[Mapping[str, Any]] = (),
    save: Save | None = None,
    on_progress: OnProgress | None = None,
    at_once: int = 64,
) -> list[ArmScore]:
    """Ask every item that `done` (records of `scores.jsonl`) lacks for this arm, score and `save` it; all scores, in order of items.

    `at_once` items go to the sampler together; what was saved survives a stop. A prompt that cannot be rendered is a
    recorded outcome without a value. Raises `DataError` if two items are the same, or `done` holds an item twice.
    """

    def answer(batch: Sequence[Item]) -> list[Completion]:
        completions: list[Completion | None] = []
        prompts: list[Prompt] = []
        for item in batch:
            try:
                prompts.append(prompt(item.conversation))
                completions.append(None)
            except SapwoodError as error:
                completions.append(_failed(item, str(error)))
        answers = iter(sampler.generate(prompts, params or SamplingParams()) if prompts else ())
        return [failed or next(answers) for failed in completions]

    return _run(name, items, answer, scorer, done, save, on_progress, at_once)


def run_free_arm(
    name: str,
    items: Sequence[Item],
    answer: Callable[[Item], str],
    scorer: Scorer,
    *,
    done: Iterable[Mapping[str, Any]] = (),
    save: Save | None = None,
) -> list[ArmScore]:
    """`run_arm` for an arm that needs no model: a function item → text goes through the very same scorer."""

    def answers(batch: Sequence[Item]) -> list[Completion]:
        return [Completion(bare_prompt(item.conversation), (), answer(item), Ended.STOP) for item in batch]

    return _run(name, items, answers, scorer, done, save, None, max(1, len(items)))


def scores_from(records: Iterable[Mapping[str, Any]]) -> list[ArmScore]:
    """Scores of a run's `scores.jsonl`. Raises `DataError` if an arm has an item twice, or a record lacks a field."""
    names = [field.name for field in dataclasses.fields(ArmScore)]
    seen: set[tuple[str, str]] = set()
    scores = []
    for number, record in enumerate(records, 1):
        try:
            score = ArmScore(**{name: record[name] for name in names if name in record or name != "copies"})
        except KeyError as error:
            raise DataError(f"scores.jsonl: record {number} has no {error}. Run the evaluation again to write it anew.") from None
        if (score.arm, score.item) in seen:
            raise DataError(f"scores.jsonl: record {number} scores item {score.item} of arm {score.arm!r} twice. Delete one of the two.")
        seen.add((score.arm, score.item))
        scores.append(score)
    return scores


def _run(
    name: str,
    items: Sequence[Item],
    answer: Callable[[Sequence[Item]], list[Completion]],
    scorer: Scorer,
    done: Iterable[Mapping[str, Any]],
    save: Save | None,
    on_progress: OnProgress | None,
    at_once: int,
) -> list[ArmScore]:
    by_id = {item.id: item for item in items}
    if len(by_id) < len(items):
        raise DataError(
            f"{len(items) - len(by_id)} of {len(items)} items ask and expect the same as another. Make items with `items_from`."
        )
    scores = {score.item: score for score in scores_from(record for record in done if record.get("arm") == name) if score.item in by_id}
    judge = guarded(scorer)
    missing = [key for key in by_id if key not in scores]
    for start in range(0, len(missing), at_once):
        keys = missing[start : start + at_once]
        began = time.perf_counter()
        completions = answer([by_id[key] for key in keys])
        assert len(completions) == len(keys), "one completion a prompt"
        seconds = (time.perf_counter() - began) / len(keys)
        batch = [_scored(name, key, by_id[key], completion, judge, seconds) for key, completion in zip(keys, completions, strict=True)]
        if save:
            save(batch)
        scores.update({score.item: score for score in batch})
        if on_progress:
            on_progress(len(scores), len(by_id))
    return [scores[key] for key in by_id]


def _scored(arm: str, key: str, item: Item, completion: Completion, judge: Scorer, seconds: float) -> ArmScore:
    score = judge(item, completion)
    tokens_in, tokens_out = completion.counted or (len(completion.prompt.ids), len(completion.ids))
    return ArmScore(
        arm=arm,
        item=key,
        cluster=item.cluster,
        value=score.value,
        answer=score.answer,
        explanation=score.explanation,
        text=completion.text,
        ended=str(completion.ended),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        seconds=seconds,
        copies=int(item.meta.get(COPIES, 1)),
    )


def bare_prompt(conversation: Conversation) -> Prompt:
    """What is asked, rendered by nobody: for a server, whose template is its own."""
    return Prompt(conversation.messages, (), "", conversation.tools, conversation.template_arguments)


def _failed(item: Item, why: str) -> Completion:
    return Completion(bare_prompt(item.conversation), (), "", Ended.ERROR, error=f"the prompt could not be made: {why}")
