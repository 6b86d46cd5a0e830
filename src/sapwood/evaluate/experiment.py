"""One arm of an experiment: every item asked once, scored, and recorded so that a stopped run goes on where it was.

In: items, a `Sampler` (or a function item → text that needs no model), a prompt function, a scorer.
Out: one `ArmScore` for each arm, item and sample, the records of `scores.jsonl`:

    {arm, item, cluster, value (0..1 or null), answer, explanation, text, ended, tokens_in, tokens_out, seconds, copies, sample, others}

Left out on purpose: which arms there are and in what order (room `recipes`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from sapwood.errors import ConfigError, DataError, SapwoodError
from sapwood.evaluate.items import COPIES
from sapwood.evaluate.scorers import Scorer, guarded
from sapwood.records import Completion, Conversation, Ended, Item, Prompt, Sampler, SamplingParams

PromptOf = Callable[[Conversation], Prompt]
"""Renders what is asked, generation prompt included: `chat`'s, handed in."""

OnProgress = Callable[[int, int], None]
"""Called with (answers there, answers in all)."""


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
    sample: int = 0
    """Which of several answers to the same question."""
    others: Mapping[str, float | None] = field(default_factory=dict)
    """What other scorers say of the same answer, by the name of the metric; None where they could not judge it."""

    def record(self) -> dict[str, Any]:
        """The record of `scores.jsonl`."""
        return dataclasses.asdict(self)


Save = Callable[[Sequence[ArmScore]], None]
"""Called with each new batch of scores as soon as it is there."""

Affords = Callable[[Sequence[Item]], bool]
"""Asked before each batch whether it may be paid for; the arm stops at the first no."""

Key = tuple[str, int]
"""(item, sample)"""


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
    samples: int = 1,
    others: Mapping[str, Scorer] | None = None,
    affords: Affords | None = None,
) -> list[ArmScore]:
    """Ask every item that `done` (records of `scores.jsonl`) lacks for this arm, score and `save` it; all scores, in order of items.

    `at_once` answers are asked for together; what was saved survives a stop. A prompt that cannot be rendered is a
    recorded outcome without a value. Each item is asked for `samples` answers; a batch draws from a seed of its own, made of the place
    of its first answer, so that a run that goes on draws what it would have drawn. Where `affords` says no, what is there is given.
    Raises `DataError` if two items are the same, or `done` holds an answer twice, `ConfigError` for several greedy samples.
    """
    params = params or SamplingParams()
    if samples < 1 or (samples > 1 and params.temperature == 0):
        raise ConfigError(f"samples is {samples} at temperature {params.temperature}; several answers differ only at one above 0.")

    def answer(batch: Sequence[Item], place: int) -> list[Completion]:
        completions: list[Completion | None] = []
        prompts: list[Prompt] = []
        for item in batch:
            try:
                prompts.append(prompt(item.conversation))
                completions.append(None)
            except SapwoodError as error:
                completions.append(_failed(item, str(error)))
        drawn = dataclasses.replace(params, seed=params.seed + place)
        answers = iter(sampler.generate(prompts, drawn) if prompts else ())
        return [failed or next(answers) for failed in completions]

    ask = _Asking(answer, guarded(scorer), {key: guarded(one) for key, one in (others or {}).items()}, samples, at_once, affords)
    return _run(name, items, ask, done, save, on_progress)


def run_free_arm(
    name: str,
    items: Sequence[Item],
    answer: Callable[[Item], str],
    scorer: Scorer,
    *,
    done: Iterable[Mapping[str, Any]] = (),
    save: Save | None = None,
    others: Mapping[str, Scorer] | None = None,
) -> list[ArmScore]:
    """`run_arm` for an arm that needs no model: a function item → text goes through the very same scorer."""

    def answers(batch: Sequence[Item], place: int) -> list[Completion]:
        return [Completion(bare_prompt(item.conversation), (), answer(item), Ended.STOP) for item in batch]

    ask = _Asking(answers, guarded(scorer), {key: guarded(one) for key, one in (others or {}).items()}, 1, max(1, len(items)), None)
    return _run(name, items, ask, done, save, None)


LATER = ("copies", "sample", "others")
"""Fields that records of an earlier version lack."""


def scores_from(records: Iterable[Mapping[str, Any]]) -> list[ArmScore]:
    """Scores of a run's `scores.jsonl`. Raises `DataError` if an arm has an answer twice, or a record lacks a field."""
    names = [one.name for one in dataclasses.fields(ArmScore)]
    seen: set[tuple[str, str, int]] = set()
    scores = []
    for number, record in enumerate(records, 1):
        try:
            score = ArmScore(**{name: record[name] for name in names if name in record or name not in LATER})
        except KeyError as error:
            raise DataError(f"scores.jsonl: record {number} has no {error}. Run the evaluation again to write it anew.") from None
        if (score.arm, score.item, score.sample) in seen:
            raise DataError(f"scores.jsonl: record {number} scores item {score.item} of arm {score.arm!r} twice. Delete one of the two.")
        seen.add((score.arm, score.item, score.sample))
        scores.append(score)
    return scores


def over_samples(scores: Iterable[ArmScore]) -> list[ArmScore]:
    """One score for each arm and item: the mean of its samples that could be judged, with the text of the first.

    Items, not answers, are what a study draws, so this is what every interval is made of. Raises `DataError` if an answer stands twice.
    """
    groups: dict[tuple[str, str], list[ArmScore]] = {}
    seen: set[tuple[str, str, int]] = set()
    for score in scores:
        if (score.arm, score.item, score.sample) in seen:
            raise DataError(f"Item {score.item} of arm {score.arm!r} is scored twice. Give each arm, item and sample once.")
        seen.add((score.arm, score.item, score.sample))
        groups.setdefault((score.arm, score.item), []).append(score)
    return [group[0] if len(group) == 1 else _mean_of(group) for group in groups.values()]


def _mean_of(group: Sequence[ArmScore]) -> ArmScore:
    first = min(group, key=lambda score: score.sample)
    names = dict.fromkeys(name for score in group for name in score.others)
    unjudged = sum(score.value is None for score in group)
    said = f"mean of {len(group)} samples" + (f", {unjudged} of them not judged" if unjudged else "")
    return dataclasses.replace(
        first,
        value=_mean([score.value for score in group]),
        explanation=f"{said}; the first: {first.explanation}" if first.explanation else said,
        others={name: _mean([score.others.get(name) for score in group]) for name in names},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class _Asking:
    """How answers are got and judged. The scorers are guarded."""

    answer: Callable[[Sequence[Item], int], list[Completion]]
    """Items, and the place of the first of them among all answers of the arm."""
    scorer: Scorer
    others: Mapping[str, Scorer]
    samples: int
    at_once: int
    affords: Affords | None


def _run(
    name: str, items: Sequence[Item], ask: _Asking, done: Iterable[Mapping[str, Any]], save: Save | None, on_progress: OnProgress | None
) -> list[ArmScore]:
    by_id = {item.id: item for item in items}
    if len(by_id) < len(items):
        raise DataError(
            f"{len(items) - len(by_id)} of {len(items)} items ask and expect the same as another. Make items with `items_from`."
        )
    places: dict[Key, int] = {(key, sample): place for place, (key, sample) in enumerate(product(by_id, range(ask.samples)))}
    earlier = scores_from(record for record in done if record.get("arm") == name)
    scores = {(score.item, score.sample): score for score in earlier if (score.item, score.sample) in places}
    missing = [key for key in places if key not in scores]
    for start in range(0, len(missing), ask.at_once):
        keys = missing[start : start + ask.at_once]
        asked = [by_id[item] for item, _ in keys]
        if ask.affords is not None and not ask.affords(asked):
            break
        began = time.perf_counter()
        completions = ask.answer(asked, places[keys[0]])
        assert len(completions) == len(keys), "one completion a prompt"
        seconds = (time.perf_counter() - began) / len(keys)
        batch = [_scored(name, key, by_id[key[0]], one, ask, seconds) for key, one in zip(keys, completions, strict=True)]
        if save:
            save(batch)
        scores.update(zip(keys, batch, strict=True))
        if on_progress:
            on_progress(len(scores), len(places))
    return [scores[key] for key in places if key in scores]


def _scored(arm: str, key: Key, item: Item, completion: Completion, ask: _Asking, seconds: float) -> ArmScore:
    score = ask.scorer(item, completion)
    counts = [turn.counted or (len(turn.prompt.ids), len(turn.ids)) for turn in completion.turns]  # each round of calls was paid for
    called = f"after {len(completion.before)} round{'s' * (len(completion.before) > 1)} of calls" if completion.before else ""
    return ArmScore(
        arm=arm,
        item=key[0],
        cluster=item.cluster,
        value=score.value,
        answer=score.answer,
        explanation="; ".join(filter(None, (score.explanation, called))),
        text=completion.text,
        ended=str(completion.ended),
        tokens_in=sum(read for read, _ in counts),
        tokens_out=sum(written for _, written in counts),
        seconds=seconds,
        copies=int(item.meta.get(COPIES, 1)),
        sample=key[1],
        others={name: other(item, completion).value for name, other in ask.others.items()},
    )


def bare_prompt(conversation: Conversation) -> Prompt:
    """What is asked, rendered by nobody: for a server, whose template is its own."""
    return Prompt(conversation.messages, (), "", conversation.tools, conversation.template_arguments)


def _failed(item: Item, why: str) -> Completion:
    return Completion(bare_prompt(item.conversation), (), "", Ended.ERROR, error=f"the prompt could not be made: {why}")
