"""Rewards: several judges of sampled answers, weighed together. Failures are recorded outcomes, never a 0.

In: scorers of evaluation, functions with TRL's calling convention (`reward(completions, **columns)`, plain or async), or whatever scores a
batch at once, such as an LLM judge; each with a name and a weight. Out: one `Judge`, from answers to `Rewarded`.
Left out on purpose: rewards that need torch (a reward model is such a batch, `recipes.reward_model`), and values that are apart by turn.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from sapwood.errors import ConfigError
from sapwood.evaluate.judges import Judge as LlmJudge
from sapwood.evaluate.judges import judge_rubric
from sapwood.evaluate.scorer_names import scorer_named
from sapwood.evaluate.scorers import Scorer, guarded
from sapwood.evaluate.user_scorer import is_user_scorer, user_function
from sapwood.records import Completion, Ended, Item, Judge, Message, Rewarded, Score

SLOW = 30.0
"""Seconds of one batch from which a person is told which reward takes them."""

Values = Sequence[float | None] | Awaitable[Sequence[float | None]]
Function = Callable[..., Values]
"""TRL's convention: keywords `prompts`, `completions`, `completion_ids` and every column of the rows; one value a completion."""
Batch = Callable[[Sequence[Item], Sequence[Completion]], Sequence[Score]]
"""What gives a whole batch's scores, which need not lie in 0..1."""


@dataclass(frozen=True)
class Reward:
    """One reward: a scorer, a function over a batch as TRL calls it, or one that gives a batch's scores."""

    name: str
    scorer: Scorer | None = None
    function: Function | None = None
    weight: float = 1.0
    conversational: bool = True
    """Whether a function is given completions as lists of messages, as TRL does for rows of messages, or as texts."""
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if sum(kind is not None for kind in (self.scorer, self.function, self.batch)) != 1:
            raise ConfigError(f"The reward {self.name!r} is no scorer, function or batch, or several of them. Give one.")
        if not math.isfinite(self.weight):
            raise ConfigError(f"The weight of the reward {self.name!r} is {self.weight}; give a finite number.")


def judge_by(rewards: Sequence[Reward], *, say: Callable[[str], None] = lambda _: None) -> Judge:
    """One judge of all rewards; the first says what is solved. `say` hears, once each, of a reward that is slow.

    Raises `ConfigError` for no reward, or two of one name.
    """
    names = [reward.name for reward in rewards]
    if not rewards or len(set(names)) < len(names):
        raise ConfigError(f"The rewards are {', '.join(names) or 'none'}; give at least one, each with a name of its own.")
    told: set[str] = set()

    def judge(items: Sequence[Item], completions: Sequence[Completion]) -> list[Rewarded]:
        columns = []
        for reward in rewards:
            began = time.perf_counter()
            columns.append(_values(reward, items, completions))
            seconds = time.perf_counter() - began
            if seconds > SLOW and reward.name not in told:
                told.add(reward.name)
                say(f"The reward {reward.name} took {seconds:.0f} s for {len(items)} answers; every step waits for it.")
        return [_together(rewards, parts) for parts in zip(*columns, strict=True)]

    return judge


def _together(rewards: Sequence[Reward], parts: Sequence[Score]) -> Rewarded:
    judged = [reward.weight * part.value for reward, part in zip(rewards, parts, strict=True) if part.value is not None]
    first = parts[0].value
    return Rewarded(
        total=sum(judged) if judged else None,
        parts={reward.name: part.value for reward, part in zip(rewards, parts, strict=True)},
        solved=None if first is None else first >= 1,
        notes=tuple(f"{reward.name}: {part.explanation}" for reward, part in zip(rewards, parts, strict=True) if part.value is None),
    )


def _values(reward: Reward, items: Sequence[Item], completions: Sequence[Completion]) -> list[Score]:
    """One score a completion; a failed completion is given to no reward."""
    whole = [place for place, completion in enumerate(completions) if completion.ended is not Ended.ERROR]
    found = [Score(None, None, f"no answer to reward: {one.error or 'generation failed'}") for one in completions]
    if reward.scorer is not None:
        scorer = guarded(reward.scorer)
        for place in whole:
            found[place] = scorer(items[place], completions[place])
    elif whole:
        some = [items[place] for place in whole], [completions[place] for place in whole]
        scores = _batch(reward.batch, *some) if reward.batch is not None else _call(reward, *some)
        for place, score in zip(whole, scores, strict=True):
            found[place] = score
    return found


def _batch(batch: Batch, items: Sequence[Item], completions: Sequence[Completion]) -> list[Score]:
    """A batch's scores. What it raises is a score without a value, as of a function."""
    try:
        return list(batch(items, completions))
    except Exception as error:  # noqa: BLE001  as of a function
        return [Score(None, None, f"it raised {type(error).__name__}: {error}")] * len(completions)


def _call(reward: Reward, items: Sequence[Item], completions: Sequence[Completion]) -> list[Score]:
    """A function's values for a batch. What it raises, and values that are no numbers, are scores without a value."""
    assert reward.function is not None
    try:
        given = reward.function(**_keywords(reward, items, completions))
        values = _awaited(given) if inspect.isawaitable(given) else given
        values = list(values)
    except Exception as error:  # noqa: BLE001  a reward that breaks must neither stop a run of hours nor count as wrong
        return [Score(None, None, f"it raised {type(error).__name__}: {error}")] * len(completions)
    if len(values) != len(completions):
        return [Score(None, None, f"it gave {len(values)} values for {len(completions)} answers")] * len(completions)
    return [_score(value) for value in values]


def _awaited(given: Awaitable[Any]) -> Any:
    """Wait for an asynchronous reward, in a notebook too, where a loop is running already."""

    async def wait() -> Any:
        return await given

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _score(value: Any) -> Score:
    if value is None:
        return Score(None, None, "it judged nothing (None)")
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        return Score(None, None, f"it gave {value!r}, which is no finite number")
    return Score(number)


def _keywords(reward: Reward, items: Sequence[Item], completions: Sequence[Completion]) -> dict[str, Any]:
    """What TRL hands to a reward function: prompts and completions as messages, ids, and each column of the rows."""
    names = dict.fromkeys(name for item in items for name in item.meta)
    columns: dict[str, Any] = {name: [item.meta.get(name) for item in items] for name in names if name.isidentifier()}
    columns.setdefault("reference", [item.reference for item in items])
    if reward.conversational:
        prompts: Any = [[message.for_template() for message in item.conversation.messages] for item in items]
        answers: Any = [[message.for_template() for message in _said(item, one)] for item, one in zip(items, completions, strict=True)]
    else:
        prompts = [completion.prompt.text for completion in completions]
        answers = [completion.text for completion in completions]
    return {**columns, "prompts": prompts, "completions": answers, "completion_ids": [list(one.ids) for one in completions]}


def _said(item: Item, completion: Completion) -> list[Message]:
    """What came behind the question: where there were several turns, those of the model and of what answered it. The last message is all
    that was written last, the thought in front of it included."""
    between = completion.prompt.messages[len(item.conversation.messages) :] if completion.before else ()
    return [*between, Message("assistant", completion.text)]


def ends_thought(tag: str = "think") -> Scorer:
    """1 where the answer holds one thought that ends and something behind it: `<think>…</think>answer`.

    A template may write the opening tag into the prompt: it is then seen there, and an answer need not repeat it.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"

    def score(item: Item, completion: Completion) -> Score:
        prefilled = completion.prompt.text.rstrip().endswith(opening)
        text = opening + completion.text if prefilled else completion.text.lstrip()
        faults = [f"does not begin with {opening}"] * (not text.startswith(opening))
        faults += [f"{text.count(one)} times {one}" for one in (opening, closing) if text.count(one) != 1]
        faults += ["nothing behind the thought"] * (not faults and not text.split(closing)[1].strip())
        faults += ["cut at the limit"] * (completion.ended is Ended.LENGTH)
        return Score(float(not faults), None, "; ".join(faults))

    return guarded(score)


def shorter_than(limit: int, least: int = 0) -> Scorer:
    """1 for an answer of at most `least` tokens, falling along a line to 0 at `limit`: length is counted in tokens, never in letters.

    Raises `ConfigError` where `limit` is not above `least`.
    """
    if not 0 <= least < limit:
        raise ConfigError(f"A length reward falls from {least} to {limit} tokens; give a limit above the first number.")

    def score(item: Item, completion: Completion) -> Score:
        length = len(completion.ids)
        return Score(min(1.0, max(0.0, (limit - length) / (limit - least))), str(length))

    return guarded(score)


def reward_named(word: str, own: Mapping[str, Reward], *, allow_code: bool = False) -> Reward:
    """A reward from a word: a name with its weight behind a star, such as `number` or `format*0.2`.

    Names are those of `own` (a verifier of the task at hand, say), `format` (the thought ends, and something stands behind it),
    `tokens:LEAST-MOST` (shorter is better), every scorer of evaluation, and FILE.py:NAME. A function of a file that takes `completions`
    is called as TRL calls it, with the whole batch; another one as a scorer, with (item, completion).
    Raises `ConfigError` for an unknown one, with what there is.
    """
    name, star, weight = word.rpartition("*")
    name, factor = (name, weight) if star else (word, "1")
    try:
        value = float(factor)
    except ValueError:
        raise ConfigError(f"{word}: {factor!r} is no weight. Give a number behind the star, such as {name}*0.5.") from None
    if name in own:
        return replace(own[name], weight=value)
    if name == "format":
        return Reward(name, ends_thought(), weight=value)
    if name.startswith("tokens:"):
        least, _, most = name.removeprefix("tokens:").rpartition("-")
        if not most.isdigit() or not (least.isdigit() or not least):
            raise ConfigError(f"{name}: give tokens:LEAST-MOST, such as tokens:20-200: 1 up to 20 tokens, falling to 0 at 200.")
        return Reward(name, shorter_than(int(most), int(least or 0)), weight=value)
    if is_user_scorer(name) and "completions" in inspect.signature(user_function(name)).parameters:
        return Reward(name.rpartition(":")[2], function=user_function(name), weight=value)
    try:
        return Reward(name, scorer_named(name, allow_code=allow_code), weight=value)
    except ConfigError as error:
        others = ", ".join([*own, "format", "tokens:LEAST-MOST", "model:FOLDER"])
        raise ConfigError(f"{error} Rewards can also be: {others}. A weight follows a star: format*0.2.") from None


def judged_by_model(model: LlmJudge, *, weight: float = 1.0) -> Reward:
    """The share of a rubric that an answer meets, as an LLM judge says; `judge_rubric` tells what a judge that fails or goes away gives.

    A judge is a measurement of people's verdict: one that nobody calibrated (`judge_card`) teaches what it likes. Raises `ConfigError`
    for a judge without criteria.
    """
    if not model.criteria:
        raise ConfigError("A judge as a reward needs criteria: questions about an answer that are answered with yes or no.")
    return Reward("judge", batch=lambda items, completions: judge_rubric(model, items, completions), weight=weight)


__all__ = ["Reward", "ends_thought", "judge_by", "judged_by_model", "reward_named", "shorter_than"]
