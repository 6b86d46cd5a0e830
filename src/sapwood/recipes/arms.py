"""The arms of an experiment on held-out items: two that need no model, the base model with and without examples, the tuned one.

Every score is appended to the run's `scores.jsonl` as it is made, so that a stopped run asks nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sapwood.chat import Chat
from sapwood.chat.overflow import Overflow, fitted_prompt, summary_of, summary_tokens
from sapwood.errors import ConfigError, DataError
from sapwood.evaluate import (
    MOST_COMMON,
    NEAREST,
    ArmScore,
    Guess,
    Scorer,
    choose_shots,
    most_common_answer,
    nearest_row,
    pick_scorer,
    run_arm,
    run_free_arm,
    scores_from,
)
from sapwood.evaluate.experiment import Affords, PromptOf, Save, bare_prompt
from sapwood.evaluate.few_shot import retrieved
from sapwood.evaluate.hosted import HOSTED
from sapwood.evaluate.user_scorer import is_user_scorer
from sapwood.recipes.reward_model import is_reward_model, scorer_by_name
from sapwood.recipes.screen import Screen
from sapwood.records import Conversation, Ended, Item, Prompt, Sampler, SamplingParams
from sapwood.run import Run

PLAIN, TUNED = "plain prompt", "tuned"

GUESSED, UNSCORED = "auto", "none"
MANY_CUT = 0.1
"""Share of answers that were cut off from which a person should know it: what they would have said was not measured."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the held-out items."""

    scorer: str = "auto"
    """How answers are judged: auto (guessed from the references), none, a name of docs/evaluation.md (exact, number, maths,
    function-call, json-fields, rouge, regex:PATTERN, …), a function of yours: FILE.py:NAME, or a reward model: model:FOLDER."""
    allow_code: bool = False
    """Let the scorer code-tests run programs that the model wrote, in a child process that reaches no network and no file of yours."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    shots: tuple[int, ...] = (2, 4, 8)
    """Numbers of few-shot examples to choose from, on training data only; empty leaves that arm out."""
    dev: int = 24
    """Training items on which the number of examples is chosen."""

    def __post_init__(self) -> None:
        if not (self.scorer in (GUESSED, UNSCORED) or is_user_scorer(self.scorer) or is_reward_model(self.scorer)):
            scorer_by_name(self.scorer, allow_code=self.allow_code)  # raises for what cannot be, before any work is done
        for name in ("max_new_tokens", "dev"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1.")
        if min(self.shots, default=1) < 1:
            raise ConfigError(f"shots is {self.shots}; give numbers of at least 1, or none to leave few-shot prompting out.")


def scorer_for(config: EvalConfig, items: Sequence[Item]) -> Guess:
    """The scorer by name, or guessed from the references."""
    if config.scorer == UNSCORED:
        return Guess(None, UNSCORED, "No scorer was asked for, so only bits per token are measured.")
    if config.scorer != GUESSED:
        found = scorer_by_name(config.scorer, allow_code=config.allow_code)
        return Guess(found, config.scorer, f"Answers are judged by `{config.scorer}`, as asked for.")
    return pick_scorer([item.reference for item in items])


@dataclass(frozen=True)
class Arms:
    """What all arms share."""

    items: Sequence[Item]
    train_items: Sequence[Item]
    chat: Chat
    scorer: Scorer
    config: EvalConfig
    run: Run
    screen: Screen
    samples: int = 1
    """Answers to each question."""
    temperature: float = 0.0
    others: Mapping[str, Scorer] = field(default_factory=dict)
    """Metrics beside the one that `scorer` gives."""
    records: str = "scores"
    """The file of the run that holds the scores."""
    paid: Save | None = None
    """Told of each batch beside the file, by who counts what it costs."""
    overflow: Overflow = "refuse"
    """What is sent of a question that outgrows the context; as in chat and server."""

    def free(self) -> list[ArmScore]:
        """The two arms that need no model."""
        done, scores = self.run.read(self.records), []
        for name, make in ((MOST_COMMON, most_common_answer), (NEAREST, nearest_row)):
            scores += self._say_rate(
                name, run_free_arm(name, self.items, make(self.train_items), self.scorer, done=done, save=self._save, others=self.others)
            )
        return scores

    def base(self, sampler: Sampler) -> list[ArmScore]:
        """The base model with the plain prompt, and with the number of examples that did best on training data."""
        scores = self.one(PLAIN, sampler)
        if not self.config.shots:
            return scores
        earlier = [score for score in scores_from(self.run.read(self.records)) if score.arm.startswith("few-shot ")]
        if len(earlier) == self.samples * len(self.items) and {score.item for score in earlier} == {item.id for item in self.items}:
            return scores + earlier  # a chain that was stopped behind this arm
        try:
            with self.screen.progress("choosing few-shot examples on training data"):
                shots = choose_shots(
                    sampler, self.prompt, self.train_items, self.scorer, self._params, sizes=self.config.shots, dev=self.config.dev
                )
        except DataError as error:
            self.screen.say(f"No few-shot arm: {error}")
            return scores
        tried = ", ".join(f"{one.size}: {one.rate:.0%}" for one in shots.tried)
        self.screen.say(f"{shots.name} chosen on {shots.tried[0].items} training items (right with {tried})")
        return scores + self._fitted_arm(shots.name, sampler, shots.around)

    def one(self, name: str, sampler: Sampler) -> list[ArmScore]:
        """One arm with the plain prompt."""
        return self._fitted_arm(name, sampler, lambda prompt: prompt)

    def retrieved(self, size: int, sampler: Sampler) -> list[ArmScore]:
        """The base model with the training rows nearest to each question as examples."""
        return self._fitted_arm(f"retrieved {size}", sampler, partial(retrieved, self.train_items, size))

    def hosted(self, sampler: Sampler, affords: Affords | None = None, at_once: int = 64) -> list[ArmScore]:
        """A hosted model, whose template is its own: it is given the messages and tools."""
        return self._run_arm(HOSTED, sampler, bare_prompt, affords, at_once)

    def prompt(self, conversation: Conversation) -> Prompt:
        """The very function that makes the prompts of training."""
        return self.chat.prompt(conversation.messages, conversation.tools, conversation.template_arguments, where=conversation.where)

    def _fitted_arm(self, name: str, sampler: Sampler, around: Callable[[PromptOf], PromptOf]) -> list[ArmScore]:
        """An arm whose questions come to fit the context as `overflow` says; which did, and how, is recorded and told."""
        dropped: dict[str, int] = {}

        def prompt(conversation: Conversation) -> Prompt:
            fit = partial(
                fitted_prompt,
                self.chat,
                conversation.messages,
                conversation.tools,
                conversation.template_arguments,
                overflow=self.overflow,
                room=min(self.config.max_new_tokens, (self.chat.context_length or 0) // 4) or 1,
                where=conversation.where,
            )
            fitted = fit()
            if fitted.to_summarise is not None:
                [summary] = sampler.generate([fitted.to_summarise], SamplingParams(max_new_tokens=summary_tokens(self.chat)))
                fitted = fit(summary=summary_of(summary))
            if fitted.dropped:
                dropped[conversation.where] = fitted.dropped
            return fitted.prompt

        scores = self._run_arm(name, sampler, around(self.prompt if self.overflow == "refuse" else prompt))
        if dropped:
            self.run.append("outgrown", *({"arm": name, "source": where, "dropped": count} for where, count in dropped.items()))
            instead = "a summary was sent in place of" if self.overflow == "summarise" else "they were asked without"
            count = f"their {sum(dropped.values()):,} oldest messages"
            self.screen.say(f"{len(dropped):,} questions outgrew the context: {instead} {count} (outgrown.jsonl).", "yellow")
        return scores

    @property
    def _params(self) -> SamplingParams:
        return SamplingParams(max_new_tokens=self.config.max_new_tokens, temperature=self.temperature)

    def _save(self, batch: Sequence[ArmScore]) -> None:
        self.run.append(self.records, *(score.record() for score in batch))
        if self.paid is not None:
            self.paid(batch)

    def _run_arm(self, name: str, sampler: Sampler, prompt: PromptOf, affords: Affords | None = None, at_once: int = 64) -> list[ArmScore]:
        with self.screen.progress(f"arm: {name}") as advance:
            scores = run_arm(
                name,
                self.items,
                sampler,
                prompt,
                self.scorer,
                self._params,
                done=self.run.read(self.records),
                save=self._save,
                on_progress=lambda done, total: advance(done, total, ""),
                at_once=at_once,
                samples=self.samples,
                others=self.others,
                affords=affords,
            )
        return self._say_rate(name, scores)

    def _say_rate(self, name: str, scores: list[ArmScore]) -> list[ArmScore]:
        values = [score.value for score in scores if score.value is not None]
        rate = f"{sum(values) / len(values):.1%}" if values else "–"
        unscored = f", {len(scores) - len(values)} could not be scored" if len(values) < len(scores) else ""
        self.screen.say(f"{name:<22}{rate:>6}  ({sum(values):g} of {len(values)}{unscored})")
        cut = sum(score.ended == Ended.LENGTH for score in scores)
        if cut > MANY_CUT * len(scores):
            limit = self.config.max_new_tokens
            where = f"at {limit} tokens (--max-new-tokens), or where the context was full"
            self.screen.say(f"{cut} of these answers were cut {where}: give them room to end.", "yellow")
        return scores
