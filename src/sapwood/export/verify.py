"""Does an export compute what the trained model computes? Asked on real prompts, with numbers.

In: the trained model, and prompts. Out: `Trace`s (its greedy answer to each prompt, and its log-probabilities over the whole
vocabulary at each token of that answer), and then, for anything that gives log-probabilities at the same places, a
`Parity`: what differs, beside what tuning itself changed. Greedy answers are the same as long as the largest logit is at
each token of the trace, so no export has to generate for it.
All is computed in fp32 (or wider): rounding of the arithmetic would drown that of the weights, which is what exports differ in.
Left out on purpose: quality on a benchmark. An export that computes the same scores the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sapwood.attention import TreeAttention
from sapwood.chat import Chat
from sapwood.errors import ExportError
from sapwood.forest import plant
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.records import Ended, Prompt, Row, SamplingParams

LogProbs = Callable[[Sequence[int], int], NDArray[np.float32]]
"""(ids, n) → log-probabilities (n, V) of what follows each of the n ids before the last: those that predict the last n ids."""
FAINT = 0.1
"""Share of what tuning changed from which on a difference is worth a word, whatever the tolerance."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One prompt, the trained model's greedy answer to it, and what it thought at each token."""

    prompt: Prompt
    answer_N: tuple[int, ...]
    logprobs_NV: NDArray[np.float32]
    base_kl: float | None
    """Mean divergence of the untuned model from the tuned one over these tokens, in nats; None where there is none to ask."""

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt.ids, *self.answer_N]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an export may be from what was trained."""

    kl: float
    """Nats a token: the mean divergence KL(trained ‖ export)."""
    tie: float
    """Nats: another most likely token is no difference where the trained model's own two best are closer than this."""

    def __post_init__(self) -> None:
        assert self.kl > 0, "a tolerance is above 0"
        assert self.tie > 0, "a tolerance is above 0"


@dataclass(frozen=True, slots=True)
class Parity:
    """What was compared, and what came out. Divergences are in nats a token."""

    reader: str
    """What loaded the export and computed with it."""
    prompts: int
    tokens: int
    mean_kl: float
    """KL(trained ‖ export), mean over the tokens."""
    max_kl: float
    max_logprob: float
    """Largest difference of the log-probability of a token of the greedy answers."""
    same_greedy: int
    """Tokens at which the export's most likely token is the trained model's."""
    beyond_ties: int
    """Tokens at which it is another, though the trained model's two best are further apart than the tolerance's `tie`."""
    tuning_kl: float | None
    """What tuning itself changed on the same tokens: KL(trained ‖ base)."""
    tolerance: Tolerance

    @property
    def holds(self) -> bool:
        """Whether the export is within its tolerance."""
        return self.mean_kl <= self.tolerance.kl and self.beyond_ties == 0

    @property
    def sentence(self) -> str:
        """For people."""
        moved = "" if self.tuning_kl is None else f"; tuning itself moved the model by {_nats(self.tuning_kl)}"
        return (
            f"{self.same_greedy} of {self.tokens} greedy tokens on {self.prompts} prompts are the same, log-probabilities differ by at "
            f"most {_nats(self.max_logprob)}, the mean divergence is {_nats(self.mean_kl)} a token (allowed: "
            f"{_nats(self.tolerance.kl)}{moved}). Read by {self.reader}."
        )

    @property
    def doubts(self) -> list[str]:
        """A sentence where the export is within its tolerance, and yet much of what tuning changed may have been rounded away."""
        if not self.tuning_kl or self.mean_kl <= FAINT * self.tuning_kl:
            return []
        return [
            f"The export differs from what was trained by {_nats(self.mean_kl)} a token, and tuning itself changed no more than "
            f"{_nats(self.tuning_kl)}: much of it may be lost. Choose a type that rounds less, or train longer."
        ]

    def to_dict(self) -> dict[str, Any]:
        """For `export.json`."""
        return {**asdict(self), "holds": self.holds, "units": "nats a token"}


def _nats(value: float) -> str:
    return f"{value:.2g} nats" if value >= 1e-4 or value == 0 else f"{value:.0e} nats"


def trace(model: LanguageModel, chat: Chat, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[Trace]:
    """The trained model's own answers. The model should be in fp32 or wider.

    Raises `ExportError` where a prompt cannot be answered.
    """
    answers = Engine(model, chat).generate(prompts, SamplingParams(max_new_tokens=max_new_tokens))
    traces = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer.ended is Ended.ERROR or not answer.ids:
            raise ExportError(f"The trained model could not answer a prompt that exports are compared on: {answer.error}")
        ids, count = [*prompt.ids, *answer.ids], len(answer.ids)
        logprobs_NV = logprobs_of(model)(ids, count)
        base_kl = None
        if _has_a_base(model):
            base_kl = float(_kl(logprobs_NV, logprobs_of(model, adapter=False)(ids, count)).mean())
        traces.append(Trace(prompt, answer.ids, logprobs_NV, base_kl))
    return traces


def _has_a_base(model: LanguageModel) -> bool:
    """Does switching the adapter off give the untuned model? Biases that were trained stay on."""
    return all(
        getattr(config, "bias", "none") == "none" for config in getattr(model.module, "peft_config", {"": None}).values()
    ) and hasattr(model.module, "disable_adapter")


def logprobs_of(model: LanguageModel, *, adapter: bool = True) -> LogProbs:
    """Log-probabilities by the path of training and evaluation, with the adapter or without."""

    def compute(ids: Sequence[int], count: int) -> NDArray[np.float32]:
        tokens_T = np.asarray(ids[:-1], dtype=np.int64)
        row = Row(np.asarray(ids[:-count]), np.asarray(ids[-count:]), np.ones(count, np.float32))
        attention = TreeAttention(plant([row])) if model.shares_prefixes else None
        with torch.inference_mode(), nullcontext() if adapter else model.module.disable_adapter():
            hidden_TD = model.hidden(tokens_T, np.arange(len(tokens_T)), attention)
            return as_logprobs(model.logits(hidden_TD[-count:]))

    return compute


def as_logprobs(logits_NV: torch.Tensor) -> NDArray[np.float32]:
    """Normalised in fp32 or wider, as fp32."""
    wide = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    found: NDArray[np.float32] = wide.log_softmax(-1).float().cpu().numpy()
    return found


def compare(traces: Sequence[Trace], logprobs: LogProbs, tolerance: Tolerance, reader: str) -> Parity:
    """Ask an export at every token of the traces. Never raises for a difference: look at `holds`.

    Raises `ExportError` for log-probabilities of another shape, or ones that are not numbers.
    """
    assert traces, "there is something to compare on"
    kls, differences, same, beyond = [], [], 0, 0
    for one in traces:
        found_NV = logprobs(one.ids, len(one.answer_N))
        if found_NV.shape[0] != len(one.answer_N) or found_NV.shape[1] < max(one.ids) + 1 or np.isnan(found_NV).any():
            raise ExportError(
                f"Read by {reader}, the export gives log-probabilities of the shape {found_NV.shape} where the trained model's have "
                f"{one.logprobs_NV.shape}, or some that are not numbers."
            )
        width = min(found_NV.shape[1], one.logprobs_NV.shape[1])  # embeddings may be padded to a round number of rows
        mine_NV, theirs_NV = one.logprobs_NV[:, :width], found_NV[:, :width]
        places, answer_N = np.arange(len(one.answer_N)), np.asarray(one.answer_N)
        kls.append(_kl(mine_NV, theirs_NV))
        differences.append(np.abs(mine_NV[places, answer_N] - theirs_NV[places, answer_N]))
        best_N = theirs_NV.argmax(-1)
        margin_N = mine_NV.max(-1) - mine_NV[places, best_N]
        same += int((margin_N == 0).sum())
        beyond += int((margin_N > tolerance.tie).sum())
    kl_N = np.concatenate(kls)
    tuning = [one.base_kl for one in traces]
    weights = [len(one.answer_N) for one in traces]
    return Parity(
        reader=reader,
        prompts=len(traces),
        tokens=len(kl_N),
        mean_kl=float(kl_N.mean()),
        max_kl=float(kl_N.max()),
        max_logprob=float(np.concatenate(differences).max()),
        same_greedy=same,
        beyond_ties=beyond,
        tuning_kl=None if None in tuning else float(np.average([value or 0.0 for value in tuning], weights=weights)),
        tolerance=tolerance,
    )


def _kl(mine_NV: NDArray[np.float32], theirs_NV: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(mine ‖ theirs) a place (N,), at least 0: what rounding leaves below is none."""
    mine, theirs = mine_NV.astype(np.float64), theirs_NV.astype(np.float64)
    kl_N: NDArray[np.float64] = np.maximum((np.exp(mine) * (mine - theirs)).sum(-1), 0.0)
    return kl_N


def require(parity: Parity, what: str, advice: str) -> None:
    """Raise `ExportError` unless the export is within its tolerance. `advice` is the next action."""
    if parity.holds:
        return
    flips = f" {parity.beyond_ties} greedy tokens differ where there was no tie." if parity.beyond_ties else ""
    raise ExportError(f"{what} does not compute what was trained, so it was not written: {parity.sentence}{flips} {advice}")


def record_of(parities: Mapping[str, Parity]) -> dict[str, Any]:
    """What `export.json` says about comparisons, by what was compared."""
    return {name: parity.to_dict() for name, parity in parities.items()}
