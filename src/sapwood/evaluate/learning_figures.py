"""What is looked at while a model learns from rewards or preferences: each figure by its key, its name, its form and its meaning.

In: a value of a record in metrics.jsonl. Out: words. The panel, the summary and the report take names and forms from here.
Left out on purpose: which value is good. That is for the alarms (`grpo_signs`, `preference_signs`), which compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["number", "share", "count"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a step."""

    key: str
    """In a record; `rewards.NAME` is one of several."""
    name: str
    form: Form
    about: str
    """What it is, and what its movement means, in one or two sentences."""
    optional: bool = False
    """Whether a run in which it is always 0 does not show it."""

    def of(self, record: Mapping[str, Any]) -> float:
        """The value in a record; NaN where there is none."""
        value: Any = record
        for key in self.key.split(".", 1):
            value = value.get(key) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else math.nan

    def words(self, value: float) -> str:
        """A value as people read it."""
        if not math.isfinite(value):
            return "–"
        if self.form == "share":
            return f"{value:.1%}" if 0 < value < 0.0995 else f"{value:.0%}"
        if self.form == "count":
            return f"{value:.1f}" if value < 10 else f"{value:.0f}"
        return f"{value:.4f}" if 0 < abs(value) < 0.01 else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


REWARD = Figure("reward", "reward", "number", "Mean of all rewards together over the answers that were judged. It should rise.")
SPREAD = Figure(
    "spread",
    "spread",
    "number",
    "Standard deviation of the reward within a group, in the mean: what there is to learn from. At 0 no answer is better than another.",
)
SOLVED = Figure(
    "solved",
    "solved",
    "share",
    "Share of the sampled answers that the first reward found wholly right. The verdict rests on held-out prompts, not on this.",
)
DEAD = Figure(
    "dead",
    "dead",
    "share",
    "Groups whose answers were all rewarded alike, after drawing others in their place. They move nothing.",
)
LENGTH = Figure(
    "length", "length", "count", "Tokens of an answer, in the mean. Growth without more that is solved is how a reward is hacked first."
)
CUT = Figure("cut", "cut", "share", "Answers that were cut at the limit of new tokens. They count as wrong, unless they are masked.")
OUTGROWN = Figure(
    "outgrown", "outgrown", "share", "Answers that were cut because the context was full: more new tokens would not help.", True
)
ENTROPY = Figure(
    "entropy",
    "entropy",
    "number",
    "Nats a token, estimated by what was sampled: how much is still tried. It falls while the model makes up its mind; near 0 all "
    "answers of a group become alike.",
)
KL = Figure(
    "kl",
    "kl",
    "number",
    "Divergence from the model as it was before step 1, nats a token. A rise without end means that it writes what only the reward likes.",
    optional=True,
)
CLIPPED = Figure(
    "clipped",
    "clipped",
    "share",
    "Tokens whose probability had moved beyond the clip and were left out. It is 0 while each answer is used for one update.",
    optional=True,
)
REPEATED = Figure("repeated", "repeated", "share", "Stretches of 8 tokens that an answer had written before, in the mean.", True)
UNJUDGED = Figure("unjudged", "unjudged", "share", "Answers that no reward judged. They move nothing, and count as nothing.", optional=True)
GRADIENT = Figure("grad_norm", "gradient", "number", "Length of the update's gradient before it is clipped: what moves the weights.")

REWARD_FIGURES = (REWARD, SPREAD, SOLVED, DEAD, LENGTH, CUT, OUTGROWN, ENTROPY, REPEATED, KL, CLIPPED, UNJUDGED, GRADIENT)
"""Of a step of reinforcement learning."""

PREFERENCE_LOSS = Figure(
    "loss", "loss", "number", "Mean, of a pair or vote, before the update. It falls as the two answers are told apart."
)
ACCURACY = Figure(
    "accuracy", "right", "share", "Pairs whose chosen answer gained more than the rejected one (votes that the model shares)."
)
MARGIN = Figure("margin", "margin", "number", "How much more the chosen answers gained than the rejected ones: β times nats, in the mean.")
CHOSEN = Figure(
    "chosen", "chosen", "number", "β times how much likelier the chosen answers are than before step 1, in nats of a whole answer."
)
REJECTED = Figure(
    "rejected", "rejected", "number", "The same of the rejected answers. It should fall further than that of the chosen ones."
)
DRIFT = Figure(
    "kl", "divergence", "number", "KTO's estimate of the divergence from the model before step 1, in nats of a whole answer.", True
)

PREFERENCE_FIGURES = (PREFERENCE_LOSS, ACCURACY, MARGIN, CHOSEN, REJECTED, DRIFT, GRADIENT)
"""Of a step of preference tuning."""

PHASES = {
    "sampling_seconds": "sampling",
    "reward_seconds": "rewards",
    "logprob_seconds": "log-probs",
    "update_seconds": "update",
}
"""Key of a step's seconds → its words, in the order in which they pass."""

ABOUT_THE_LOSS = (
    "The loss is near 0 by construction: advantages of a group add up to 0, and the policy is the one that sampled. Its gradient "
    "is not. Watch the reward, its spread within groups, and what is solved."
)


def about_the_loss(record: Mapping[str, Any]) -> str:
    """Why a loss near 0 is no fault, with the figures of a step."""
    loss, gradient = (Figure(key, key, "number", "").of(record) for key in ("loss", "grad_norm"))
    if not math.isfinite(loss) or not math.isfinite(gradient):
        return ABOUT_THE_LOSS
    if gradient == 0:
        return "No update: every group of this step was rewarded alike."
    return f"loss {loss:+.4f} says little: advantages sum to 0; its gradient {GRADIENT.words(gradient)} teaches"


def seconds_by_phase(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Words of each phase → its seconds over all steps; empty where nothing was recorded."""
    found = {
        words: sum(value for record in records if math.isfinite(value := Figure(key, key, "number", "").of(record)))
        for key, words in PHASES.items()
    }
    return found if sum(found.values()) > 0 else {}
