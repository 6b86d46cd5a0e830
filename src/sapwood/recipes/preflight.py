"""Before a run of reinforcement learning: a few prompts, a group of answers each, and what every reward makes of them.

In: prompts, a sampler and the rewards, all as the run will use them. Out: figures, sentences, and reasons not to begin: a reward that
judges nothing, one that gives all the same, groups of which none could teach anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sapwood.errors import TrainingError
from sapwood.evaluate.grpo_signs import FULL
from sapwood.records import Completion, Ended, Judge, Rewarded, Sampler
from sapwood.train.advantages import dead, spreads
from sapwood.train.grpo import GrpoConfig
from sapwood.train.rollouts import Asked, refuse_silence, seed_of


@dataclass(frozen=True)
class Preflight:
    """What the answers of a sample of prompts show. Shares are of 1."""

    prompts: int
    group: int
    solved: float | None
    """Of the answers that the first reward judged; None where it judged none."""
    dead: float
    """Groups whose answers are all rewarded alike."""
    spread: float
    """Standard deviation within a group, in the mean."""
    cut: float
    outgrown: float
    """Answers that were cut because the context was full."""
    length: float
    unjudged: float
    rewards: dict[str, dict[str, Any]]
    """By name: mean, spread within groups, share that was judged, whether it is constant, and the first reason for not judging."""
    seconds: float
    """Of sampling all of these answers."""
    reward_seconds: float
    example: Completion
    """The best answer, to look at."""

    def hours(self, config: GrpoConfig) -> float:
        """Expected time of sampling and rewards alone, in hours: the updates are known after step 1."""
        drawn = config.steps * config.prompts * config.group
        return drawn * (self.seconds + self.reward_seconds) / (self.prompts * self.group) / 3600

    def lines(self, config: GrpoConfig) -> list[str]:
        """For people."""
        solved = "–" if self.solved is None else f"{self.solved:.0%}"
        by_context = f" ({self.outgrown:.0%} by the context)" if self.outgrown else ""
        found = [
            f"{self.prompts} prompts × {self.group} answers: {solved} solved, {self.length:.0f} tokens in the mean, {self.cut:.0%} cut at "
            f"the limit{by_context}; {self.dead:.0%} of the groups are alike and teach nothing.",
        ]
        for name, one in self.rewards.items():
            mean = "–" if one["mean"] is None else f"{one['mean']:.3f}"
            words = f"reward {name}: mean {mean}, spread within groups {one['spread']:.3f}"
            if one["judged"] < 1:
                words += f"; {1 - one['judged']:.0%} not judged ({one['reason']})"
            if one["constant"]:
                words += "; the same for every answer, so it teaches nothing"
            found.append(words + ".")
        found.append(
            f"Sampling and rewards of {config.steps} steps will take about {60 * self.hours(config):.0f} minutes; the updates come on top "
            "and are told after step 1."
        )
        found += self.advice()
        return found

    def advice(self) -> list[str]:
        """What could be better, with the next action."""
        found = []
        if self.cut > 0.25:
            remedy = FULL if self.outgrown > self.cut / 2 else "Raise --max-new-tokens,"
            found.append(f"{self.cut:.0%} of the answers are cut and count as wrong. {remedy} or ask for shorter ones.")
        if self.solved is not None and self.solved < 0.05:
            found.append(
                f"Only {self.solved:.0%} is solved: most groups are all wrong. A cold start on a few worked answers (sapwood sft, then "
                "--start RUN), easier prompts, or larger groups help more than patience."
            )
        if self.solved is not None and self.solved > 0.9:
            found.append(f"{self.solved:.0%} is solved already: there is little to learn. Give harder prompts.")
        return found


def preflight(
    asked: Sequence[Asked], sampler: Sampler, judge: Judge, config: GrpoConfig, *, prompts: int, say: Callable[[str], None]
) -> Preflight:
    """Sample and judge. Raises `TrainingError` where the run could learn nothing, with what was found."""
    places = np.random.Generator(np.random.Philox(key=[config.seed, 0x707265])).permutation(len(asked))[:prompts]
    some = [asked[int(place)] for place in places]
    every = [one for one in some for _ in range(config.group)]
    begin = time.perf_counter()
    completions = sampler.generate([one.prompt for one in every], replace(config.sampling, seed=seed_of(config.seed, -1)))
    drawn = time.perf_counter()
    refuse_silence(completions)
    rewarded = judge([one.item for one in every], completions)
    found = _found(some, completions, rewarded, config.group, drawn - begin, time.perf_counter() - drawn)
    for line in found.lines(config):
        say(line)
    _refuse_hopeless(found, rewarded, len(completions))
    return found


def _found(
    some: Sequence[Asked],
    completions: Sequence[Completion],
    rewarded: Sequence[Rewarded],
    group: int,
    seconds: float,
    reward_seconds: float,
) -> Preflight:
    def grid(values: Sequence[float | None]) -> Any:
        return np.array([np.nan if value is None else value for value in values]).reshape(len(some), group)

    totals = grid([one.total for one in rewarded])
    rewards = {}
    for name in rewarded[0].parts:
        values = grid([one.parts[name] for one in rewarded])
        judged = values[np.isfinite(values)]
        notes = [note for one in rewarded for note in one.notes if note.startswith(f"{name}: ")]
        rewards[name] = {
            "mean": float(judged.mean()) if len(judged) else None,
            "spread": float(spreads(values).mean()),
            "judged": len(judged) / values.size,
            "constant": len(judged) > 0 and float(judged.max() - judged.min()) < 1e-9,
            "reason": notes[0].removeprefix(f"{name}: ") if notes else "",
        }
    solved = [one.solved for one in rewarded if one.solved is not None]
    best = int(np.nanargmax(totals)) if np.isfinite(totals).any() else 0
    return Preflight(
        prompts=len(some),
        group=group,
        solved=float(np.mean(solved)) if solved else None,
        dead=float(dead(totals).mean()),
        spread=float(spreads(totals).mean()),
        cut=float(np.mean([one.ended is Ended.LENGTH for one in completions])),
        outgrown=float(np.mean([one.ended is Ended.LENGTH and one.outgrown for one in completions])),
        length=float(np.mean([sum(len(turn.ids) for turn in one.turns) for one in completions])),
        unjudged=float((~np.isfinite(totals)).mean()),
        rewards=rewards,
        seconds=seconds,
        reward_seconds=reward_seconds,
        example=completions[best],
    )


def _refuse_hopeless(found: Preflight, rewarded: Sequence[Rewarded], count: int) -> None:
    for name, one in found.rewards.items():
        if one["judged"] == 0:
            raise TrainingError(
                f"The reward {name} judged none of {count} answers: {one['reason']}. Nothing was trained. Mend it, or leave it out."
            )
    if found.dead == 1:
        value = next((one.total for one in rewarded if one.total is not None), None)
        raise TrainingError(
            f"All {found.prompts} groups of {found.group} answers were rewarded alike (such as {value:g}), so there is nothing to learn "
            f"from. The best answer was: {found.example.text[:200]!r}. Look whether the rewards read what the model writes; if the task is "
            "too hard, begin with a cold start (sapwood sft on worked answers, then --start RUN) or easier prompts. --preflight 0 begins "
            "all the same."
        )
