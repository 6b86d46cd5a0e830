"""Groups of sampled answers: drawn, rewarded, and made into rows to train on.

In: what is asked, a sampler and rewards. Out: groups of G answers with their rewards, dead ones drawn anew; and the rows of a step with
all that its objective must know. What is trained are the very ids that were sampled: nothing is tokenised again. An answer of several turns
(`Completion.before`) is one row for each of them, which share what they begin with in the forest; what tools said stands in prompts alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.errors import TrainingError
from sapwood.forest import MicroBatch
from sapwood.records import Completion, Ended, Example, Item, Judge, Prompt, Rewarded, Row, Sampler, SamplingParams
from sapwood.train.advantages import advantages, dead
from sapwood.train.policy import PolicyConfig, Sampled, corrections, policy

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt to learn from: the item that its rewards read, and the prompt rendered once."""

    item: Item
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Group:
    """G answers to one prompt."""

    asked: Asked
    completions: tuple[Completion, ...]
    rewarded: tuple[Rewarded, ...]

    @property
    def rewards_G(self) -> Floats:
        """NaN where nothing judged."""
        return np.array([np.nan if one.total is None else one.total for one in self.rewarded])


@dataclass(frozen=True)
class Rollouts:
    """The groups of one step."""

    groups: list[Group]
    """As many as the step asks for; dead ones stand among them only where drawing anew gave no better."""
    dropped: int
    """Dead groups in whose place others were drawn."""
    taken: int
    """Place in the line of prompts behind the last one that was asked."""
    sampling_seconds: float
    reward_seconds: float

    @property
    def rewards_PG(self) -> Floats:
        """(P, G)."""
        return np.stack([group.rewards_G for group in self.groups])


def seed_of(*parts: int) -> int:
    """One seed of several numbers: a stream of its own for each step and round of a run."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def roll_out(
    sampler: Sampler,
    judge: Judge,
    line: Callable[[int, int], Sequence[Asked]],
    taken: int,
    *,
    prompts: int,
    group: int,
    rounds: int,
    params: SamplingParams,
    seed: tuple[int, int],
) -> Rollouts:
    """The groups of a step: `prompts` of them, from place `taken` of the line of prompts on.

    Groups whose answers were all rewarded alike teach nothing: up to `rounds` times, the next prompts of the line are asked in
    their place (dynamic sampling, arXiv:2503.14476 §3.2). What is drawn depends on (seed, step, round) and the prompts alone.
    """
    live: list[Group] = []
    lifeless: list[Group] = []
    sampling = rewarding = 0.0
    for number in range(rounds + 1):
        asked = line(taken, prompts - len(live))
        taken += len(asked)
        begin = time.perf_counter()
        every = [one for one in asked for _ in range(group)]
        completions = sampler.generate([one.prompt for one in every], replace(params, seed=seed_of(*seed, number)))
        drawn = time.perf_counter()
        refuse_silence(completions)
        rewarded = judge([one.item for one in every], completions)
        sampling, rewarding = sampling + drawn - begin, rewarding + time.perf_counter() - drawn
        for place, one in enumerate(asked):
            here = slice(place * group, (place + 1) * group)
            found = Group(one, tuple(completions[here]), tuple(rewarded[here]))
            (lifeless if dead(found.rewards_G[None])[0] else live).append(found)
        if len(live) >= prompts:
            break
    short = prompts - len(live)
    kept = lifeless[-short:] if short else []
    return Rollouts(live + kept, len(lifeless) - len(kept), taken, sampling, rewarding)


def refuse_silence(completions: Sequence[Completion]) -> None:
    """Raises `TrainingError` where all of these failed: a sampler that went away must not pass for a model that cannot answer."""
    failed = [one for one in completions if one.ended is Ended.ERROR]
    if failed and len(failed) == len(completions):
        raise TrainingError(
            f"None of {len(completions)} answers could be sampled: {failed[0].error} Nothing was made of them. "
            "Mend that, and name the run directory to go on."
        )


def refuse_silent_judge(rollouts: Rollouts, silent: int, most: int) -> int:
    """How many steps in a row nothing was judged, this one behind `silent` others. Raises `TrainingError` for `most` of them."""
    rewarded = [one for group in rollouts.groups for one in group.rewarded]
    if any(one.total is not None for one in rewarded):
        return 0
    if silent + 1 == most:
        notes = [note for one in rewarded for note in one.notes]
        raise TrainingError(
            f"No answer of {most} steps could be judged: {notes[0] if notes else 'no reward gave a value'}. Nothing was learned from them. "
            "Mend that, and name the run directory to go on."
        )
    return silent + 1


@dataclass(frozen=True, slots=True)
class TrainedRow:
    """What the objective knows of one row."""

    advantage: float
    sampler_T: Floats
    """Log-probabilities as the sampler gave them; empty where it gave none."""
    answer: int
    """Place in its example of the answer that this row is a turn of."""
    old_T: Floats | None = None
    reference_T: Floats | None = None


def rows_to_train(rollouts: Rollouts, config: PolicyConfig) -> tuple[list[Example], list[list[TrainedRow]], int, float]:
    """(groups with what is learned from, their rows' facts, answers that the mean counts, tokens that the mean counts).

    An answer that nothing judged is left out. One with an advantage of 0 counts in the mean, but has no gradient where neither divergence
    nor entropy is weighed: no pass is spent on it.
    """
    advantage_PG = advantages(rollouts.rewards_PG, config.scaling)
    alone = not (config.kl or config.entropy)
    examples: list[Example] = []
    facts: list[list[TrainedRow]] = []
    answers, tokens = 0, 0
    for group, advantage_G in zip(rollouts.groups, advantage_PG, strict=True):
        kept: list[tuple[Row, TrainedRow]] = []
        for completion, rewarded, advantage in zip(group.completions, group.rewarded, advantage_G, strict=True):
            turns = [turn for turn in completion.turns if turn.ids]
            if rewarded.total is None or not turns or completion.ended is Ended.ERROR:
                continue
            counts = not (config.mask_overlong and completion.ended is Ended.LENGTH)
            answers, tokens = answers + 1, tokens + sum(len(turn.ids) for turn in turns) * counts
            if not counts or (alone and advantage == 0):
                continue
            kept += _rows_of(turns, float(advantage), len({fact.answer for _, fact in kept}), config)
        if kept:
            examples.append(Example(tuple(row for row, _ in kept), group.asked.item.conversation.source))
            facts.append([fact for _, fact in kept])
    return examples, facts, answers, float(tokens)


def _rows_of(turns: Sequence[Completion], advantage: float, answer: int, config: PolicyConfig) -> list[tuple[Row, TrainedRow]]:
    """One row for each turn, all with the advantage of the whole answer. Raises `TrainingError` where a correction lacks what it needs."""
    made = []
    for turn in turns:
        if config.correction != "none" and len(turn.logprobs) != len(turn.ids):
            raise TrainingError(
                f"policy.correction is {config.correction}, and the sampler gave {len(turn.logprobs)} log-probabilities for an answer of "
                f"{len(turn.ids)} tokens. Set it to none, or take a sampler that gives one for each token."
            )
        prompt_T, completion_T = np.array(turn.prompt.ids, dtype=np.int64), np.array(turn.ids, dtype=np.int64)
        row = Row(prompt_T, completion_T, np.ones(len(turn.ids), np.float32), turn.prompt.media)
        made.append((row, TrainedRow(advantage, np.array(turn.logprobs), answer)))
    return made


def with_logprobs(
    facts: Sequence[Sequence[TrainedRow]],
    old: Sequence[Sequence[Floats]] | None,
    reference: Sequence[Sequence[Floats]] | None,
) -> list[list[TrainedRow]]:
    """The same facts with log-probabilities of the policy that sampled, and of the reference, where there are any."""
    return [
        [
            replace(fact, old_T=old[example][row] if old else None, reference_T=reference[example][row] if reference else None)
            for row, fact in enumerate(some)
        ]
        for example, some in enumerate(facts)
    ]


class Objective:
    """The objective of one step's rows, for `accumulate`: finds what belongs to a micro-batch and hands it to `policy`."""

    def __init__(self, facts: Sequence[Sequence[TrainedRow]], config: PolicyConfig) -> None:
        self._facts, self._config = facts, config

    def __call__(self, logprob_N: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
        forest = batch.forest
        groups = [self._facts[index] for index in batch.examples]
        facts = [fact for group in groups for fact in group]
        answer_R = _answers(groups)
        logprob_E = logprob_N[torch.from_numpy(forest.target_E).to(logprob_N.device, non_blocking=True)]
        row_E = torch.from_numpy(answer_R[forest.row_E]).to(logprob_N.device, non_blocking=True)  # the turns of an answer count as one row

        def wide(values: Sequence[Floats]) -> Tensor:
            return torch.from_numpy(np.concatenate(values)).to(logprob_E, non_blocking=True)

        old_E = wide([fact.old_T for fact in facts if fact.old_T is not None]) if facts[0].old_T is not None else None
        reference_E = (
            wide([fact.reference_T for fact in facts if fact.reference_T is not None]) if facts[0].reference_T is not None else None
        )
        correction_E = None
        if self._config.correction != "none" and old_E is not None:
            correction_E = corrections(old_E, wide([fact.sampler_T for fact in facts]), row_E, int(answer_R[-1]) + 1, self._config)
        advantage_R = torch.tensor([facts[first].advantage for first in np.unique(answer_R, return_index=True)[1]]).to(logprob_E)
        sampled = Sampled(row_E, advantage_R, torch.ones_like(logprob_E), old_E, reference_E, correction_E)
        loss, counts = policy(logprob_E, sampled, self._config)
        return loss, dict(counts)


def _answers(groups: Sequence[Sequence[TrainedRow]]) -> NDArray[np.int64]:
    """The number of the answer that each row of a micro-batch is a turn of, counted through all of its groups."""
    keys = [(number, fact.answer) for number, group in enumerate(groups) for fact in group]
    found: NDArray[np.int64] = np.unique(np.array(keys), axis=0, return_inverse=True)[1].reshape(-1)
    return found
