"""What a step of reinforcement learning leaves for people: its figures, its best and worst answers, and what failed.

In: the answers of a step with their rewards, and the sums of its updates. Out: records of `metrics.jsonl` and `rollouts.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sapwood.records import Completion, Ended
from sapwood.train.advantages import dead, spreads
from sapwood.train.memory import peak_memory
from sapwood.train.rollouts import Group, Rollouts
from sapwood.train.step import Sums

STRETCH = 8
"""Tokens of a stretch that is looked for again in the same answer."""
SHOWN = 2
"""Best and worst answers of a step that are kept for people."""


@dataclass(frozen=True, slots=True)
class GrpoStep:
    """One finished step, as logged. Shares are of 1, lengths in tokens, log-probabilities in nats."""

    step: int
    """Counted from 1."""
    num_steps: int
    loss: float
    """Of the first update. Near 0 by construction while the policy is the one that sampled: its gradient is not."""
    lr: float
    grad_norm: float
    reward: float
    """Mean over judged answers."""
    spread: float
    """Standard deviation within a group, in the mean: what there is to learn from."""
    solved: float
    """Share of answers that the first reward found wholly right."""
    dead: float
    """Share of the step's groups from which nothing can be learned."""
    resampled: int
    """Dead groups in whose place others were drawn."""
    unjudged: float
    """Share of answers that no reward judged."""
    length: float
    """Of an answer, all of its turns together, in the mean."""
    cut: float
    """Share of answers that were cut: at the limit of new tokens, of turns or of the context."""
    outgrown: float
    """Share of answers that were cut because the context was full."""
    repeated: float
    """Share of an answer's stretches of 8 tokens that it had written before, in the mean."""
    kl: float
    """From the model as it was before step 1, a token; 0 where it is not weighed."""
    entropy: float
    """Estimated by the sampled tokens, a token."""
    clipped: float
    """Share of tokens whose ratio lay outside of the clip, over all updates."""
    rewards: Mapping[str, float]
    """Mean of each reward by name."""
    sampling_seconds: float
    reward_seconds: float
    logprob_seconds: float
    """Of passes without gradients: the policy that sampled, and the reference."""
    update_seconds: float
    seconds: float
    row_tokens: int
    unique_tokens: int
    epoch: float
    """How often each prompt has been asked by then, in the mean."""
    peak_bytes: int


def report_of(
    step: int,
    num_steps: int,
    rollouts: Rollouts,
    passes: Sequence[Sums],
    lr: float,
    norm: float,
    spent: tuple[float, float, float],
    epoch: float,
) -> GrpoStep:
    """What is known of a step. `spent` are seconds of sampling and rewards, of log-probabilities, and of updates."""
    rewards_PG = rollouts.rewards_PG
    rewarded = [one for group in rollouts.groups for one in group.rewarded]
    completions = [one for group in rollouts.groups for one in group.completions]
    solved = [one.solved for one in rewarded if one.solved is not None]
    counts: dict[str, float] = {}
    for sums in passes:
        for name, value in sums.counts.items():
            counts[name] = counts.get(name, 0.0) + value
    tokens = counts.get("tokens", 0.0) or math.nan
    first = passes[0].counts if passes else {}
    first_tokens = first.get("tokens", 0.0) or math.nan
    judged = rewards_PG[np.isfinite(rewards_PG)]
    return GrpoStep(
        step=step,
        num_steps=num_steps,
        loss=passes[0].mean_loss if passes else 0.0,
        lr=lr,
        grad_norm=norm,
        reward=float(judged.mean()) if len(judged) else math.nan,
        spread=float(spreads(rewards_PG).mean()),
        solved=float(np.mean(solved)) if solved else math.nan,
        dead=float(dead(rewards_PG).mean()),
        resampled=rollouts.dropped,
        unjudged=float((~np.isfinite(rewards_PG)).mean()),
        length=float(np.mean([sum(len(turn.ids) for turn in one.turns) for one in completions])),
        cut=float(np.mean([one.ended is Ended.LENGTH for one in completions])),
        outgrown=float(np.mean([one.ended is Ended.LENGTH and one.outgrown for one in completions])),
        repeated=float(np.mean([_repeated(one.ids) for one in completions])),
        kl=first.get("kl", 0.0) / first_tokens if passes else 0.0,
        entropy=first.get("entropy", math.nan) / first_tokens,
        clipped=(counts.get("clipped_low", 0.0) + counts.get("clipped_high", 0.0)) / tokens,
        rewards=_means([one.parts for one in rewarded]),
        sampling_seconds=rollouts.sampling_seconds,
        reward_seconds=rollouts.reward_seconds,
        logprob_seconds=spent[1],
        update_seconds=spent[2],
        seconds=sum(spent),
        row_tokens=sum(sums.row_tokens for sums in passes),
        unique_tokens=sum(sums.unique_tokens for sums in passes),
        epoch=epoch,
        peak_bytes=peak_memory(),
    )


def _repeated(ids: Sequence[int]) -> float:
    stretches = [tuple(ids[start : start + STRETCH]) for start in range(len(ids) - STRETCH + 1)]
    return 1 - len(set(stretches)) / len(stretches) if stretches else 0.0


def _means(parts: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Of each reward, over what it judged."""
    names = dict.fromkeys(name for each in parts for name in each)
    values = {name: [value for each in parts if (value := each.get(name)) is not None] for name in names}
    return {name: float(np.mean(some)) if some else math.nan for name, some in values.items()}


def record_of(done: GrpoStep) -> dict[str, Any]:
    """A record of `metrics.jsonl`, with what readers of any training expect."""
    return {
        "kind": "train",
        **asdict(done),
        "row_tokens_per_second": done.row_tokens / done.seconds,
        "unique_tokens_per_second": done.unique_tokens / done.seconds,
        "saved": 1 - done.unique_tokens / done.row_tokens if done.row_tokens else 0.0,
    }


def _apart(completion: Completion) -> dict[str, str]:
    """Thought and answer of a text in which both were understood."""
    message = completion.message
    if message is None or not message.reasoning or message.tool_calls:
        return {}
    return {"thought": message.reasoning, "said": message.content}


def shown(rollouts: Rollouts, step: int) -> list[dict[str, Any]]:
    """Records of `rollouts.jsonl`: the best and the worst answers of a step, and every sentence on a reward that failed."""
    found: list[tuple[float, Group, int]] = [
        (float(reward), group, place) for group in rollouts.groups for place, reward in enumerate(group.rewards_G) if np.isfinite(reward)
    ]
    found.sort(key=lambda one: one[0])
    worst, best = found[:SHOWN], [one for one in found[-SHOWN:] if one not in found[:SHOWN]]
    records: list[dict[str, Any]] = []
    for which, some in (("best", best[::-1]), ("worst", worst)):
        for reward, group, place in some:
            completion, rewarded = group.completions[place], group.rewarded[place]
            records.append(
                {
                    "step": step,
                    "which": which,
                    "question": group.asked.item.conversation.messages[-1].content,
                    "answer": completion.text,
                    **_apart(completion),
                    **({"turns": [turn.text for turn in completion.turns]} if completion.before else {}),
                    "reference": group.asked.item.reference,
                    "reward": reward,
                    "parts": dict(rewarded.parts),
                    "ended": str(completion.ended),
                    **({"outgrown": True} if completion.outgrown else {}),
                    "tokens": sum(len(turn.ids) for turn in completion.turns),
                }
            )
    notes = dict.fromkeys(note for group in rollouts.groups for one in group.rewarded for note in one.notes)
    return records + [{"step": step, "which": "failed", "note": note} for note in notes]
