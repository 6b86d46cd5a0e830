"""What an experienced eye would see in a run of reinforcement learning: hacked rewards, collapse, divergence; each with a remedy.

In: records of the steps so far, as `metrics.jsonl` holds them. Out: sentences, the gravest first. Each is a comparison of the first and the
latest steps, never of a single one: groups are small and noisy.
Left out on purpose: stopping by itself. A person decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW = 5
"""Steps whose mean is compared."""
FULL = "Let tools and environments say less, allow fewer --turns, take a model with a longer context,"
"""What to do where answers fill the context: more new tokens would not help."""
MOST_LOOKS = 200
"""Times that a finished run is looked at again, to say when a finding was first seen."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One finding."""

    kind: str
    sentence: str
    """What is seen, with its figures."""
    remedy: str

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}"


def signs(records: Sequence[Mapping[str, Any]]) -> list[Sign]:
    """Findings on the steps so far; none before two windows of steps are there."""
    if len(records) < 2 * WINDOW:
        return []
    first, last = (means(part) for part in (records[:WINDOW], records[-WINDOW:]))
    found = (_unjudged(last), _divergence(last), _collapse(first, last), *_hacking(first, last), _cut(last), _dead(last))
    return [sign for sign in found if sign is not None]


@dataclass(frozen=True, slots=True)
class Seen:
    """A finding in the course of a run."""

    sign: Sign
    """As it was seen last."""
    first: int
    """Step at which it was seen first."""
    last: int
    """Step at which it was seen last."""
    still: bool
    """Whether it is seen at the end of what is recorded."""


def seen_in(records: Sequence[Mapping[str, Any]], look: Callable[[Sequence[Mapping[str, Any]]], list[Sign]] = signs) -> list[Seen]:
    """Every finding that a run has shown, those first that are still seen. `look` is asked after each step; of long runs, now and then."""
    stride = max(1, len(records) // MOST_LOOKS)
    ends = sorted({len(records), *range(2 * WINDOW, len(records), stride)})
    found: dict[str, Seen] = {}
    for end in ends:
        step = int(records[end - 1]["step"]) if end else 0
        for sign in look(records[:end]):
            known = found.get(sign.kind)
            found[sign.kind] = Seen(sign, known.first if known else step, step, end == len(records))
    return sorted(found.values(), key=lambda one: not one.still)


def means(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each figure over some steps, `rewards.NAME` among them; of what is finite, NaN where nothing is."""
    names = [name for name, value in records[-1].items() if isinstance(value, int | float)]
    flat = [{**record, **{f"rewards.{name}": value for name, value in record.get("rewards", {}).items()}} for record in records]
    names += [name for name in flat[-1] if name.startswith("rewards.")]
    means = {}
    for name in names:
        values = [float(value) for record in flat if (value := record.get(name)) is not None and math.isfinite(value)]
        means[name] = sum(values) / len(values) if values else math.nan
    return means


def _unjudged(last: Mapping[str, float]) -> Sign | None:
    share = last.get("unjudged", 0.0)
    if not share > 0.1:
        return None
    return Sign(
        "unjudged",
        f"{share:.0%} of the latest answers were judged by no reward.",
        "They move nothing. rollouts.jsonl says why: a reward that raises, or a judge that has gone.",
    )


def _divergence(last: Mapping[str, float]) -> Sign | None:
    kl = last.get("kl", 0.0)
    if not kl > 1.0:
        return None
    return Sign(
        "divergence",
        f"The policy is {kl:.2f} nats a token away from where it began.",
        "Raise --kl, or lower --lr: far from its beginning a model soon writes what only the reward likes.",
    )


def _collapse(first: Mapping[str, float], last: Mapping[str, float]) -> Sign | None:
    before, after = first.get("entropy", math.nan), last.get("entropy", math.nan)
    if not (after < 0.1 * before and last.get("solved", 1.0) < 0.9):
        return None
    return Sign(
        "collapse",
        f"The entropy has fallen from {before:.2f} to {after:.3f} nats a token, and {last.get('solved', math.nan):.0%} is solved: all "
        "answers of a group become alike, and nothing is left to compare.",
        "Give --entropy 0.003 or --clip-high 0.28, a higher --temperature, or a lower --lr.",
    )


def _hacking(first: Mapping[str, float], last: Mapping[str, float]) -> list[Sign]:
    solved = last.get("solved", 0.0) - first.get("solved", 0.0)
    found = []
    if last["length"] > 1.5 * first["length"] and last["length"] > first["length"] + 20 and solved < 0.02:
        found.append(
            Sign(
                "length",
                f"Answers have grown from {first['length']:.0f} to {last['length']:.0f} tokens, and no more are solved.",
                "A length reward (tokens:LEAST-MOST*0.2), or --loss dr_grpo, which does not favour long wrong answers.",
            )
        )
    if last.get("repeated", 0.0) > 0.3 and last.get("repeated", 0.0) > 2 * first.get("repeated", 0.0):
        found.append(
            Sign(
                "repetition",
                f"{last['repeated']:.0%} of what is written are repeated stretches ({first.get('repeated', 0.0):.0%} at first).",
                "Look at the best answers in rollouts.jsonl: a reward seems to pay for words that are said again.",
            )
        )
    form = last.get("rewards.format", math.nan)
    if form > 0.9 and form > first.get("rewards.format", math.nan) + 0.2 and solved < 0.02:
        found.append(
            Sign(
                "format",
                f"The format is kept by {form:.0%} now ({first['rewards.format']:.0%} at first), and no more are solved.",
                "Lower its weight (format*0.1): once all keep it, groups are dead; or begin with a cold start by sapwood sft.",
            )
        )
    return found


def _cut(last: Mapping[str, float]) -> Sign | None:
    cut, outgrown = last.get("cut", 0.0), last.get("outgrown", 0.0)
    if not cut > 0.25:
        return None
    full = outgrown > cut / 2
    return Sign(
        "cut",
        f"{cut:.0%} of the latest answers were cut{' where the context was full' if full else ' at the limit'}, and count as wrong.",
        f"{FULL if full else 'Raise --max-new-tokens,'} or leave cut answers out of the loss with --mask-overlong.",
    )


def _dead(last: Mapping[str, float]) -> Sign | None:
    share = last.get("dead", 0.0)
    if not share > 0.7:
        return None
    solved = last.get("solved", math.nan)
    easy = solved > 0.5
    return Sign(
        "dead groups",
        f"{share:.0%} of the groups teach nothing: their answers are all {'right' if easy else 'alike, and mostly wrong'}.",
        "Give harder prompts; this is learned." if easy else "Give easier prompts, larger groups, or a cold start by sapwood sft.",
    )
