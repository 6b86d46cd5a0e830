"""Pairs and votes of one step: what the reference gave them, their objective, and what is told of them.

In: examples of two rows. Of a pair these are the chosen and the rejected answer; of a vote, the answer and, behind the same prompt, the
answer to another one, from which KTO estimates how far the policy has gone (Ethayarajh et al., arXiv:2402.01306, §4.1). Out: sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.errors import storage
from sapwood.forest import MicroBatch
from sapwood.model import LanguageModel
from sapwood.records import Example, Row, hash_of_rows
from sapwood.run import Run, step_records, write_atomic
from sapwood.stats import Interval, rate_interval
from sapwood.train.memory import peak_memory
from sapwood.train.preferences import preference, row_sums, vote
from sapwood.train.reference import by_rows, row_logprobs
from sapwood.train.step import Sums, accumulate

if TYPE_CHECKING:
    from sapwood.train.dpo import DpoConfig

Floats = NDArray[np.float64]
VOTE = "vote"
"""Key of `Example.meta`: whether the answer was found good."""
FILE = "reference.safetensors"


def vote_examples(rows: Sequence[Example], good: Sequence[bool], seed: int) -> list[Example]:
    """Votes to train on: each example's answer, and behind the same prompt the answer of another example, in an order that `seed` draws.

    The other answer is never trained. At least two examples are needed; each has one row.
    """
    assert len(rows) > 1, "another example's answer is needed"
    order = np.random.Generator(np.random.Philox(key=[seed, 0x6B746F])).permutation(len(rows))
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # one cycle: nobody is its own
    found = []
    for place, example in enumerate(rows):
        mine, theirs = example.rows[0], rows[other[place]].rows[0]
        mismatched = Row(mine.prompt_T, theirs.completion_T, theirs.weights_T, mine.media)
        found.append(Example((mine, mismatched), example.source, {**example.meta, VOTE: good[place]}))
    return found


def references(
    model: LanguageModel, examples: Sequence[Example], budget: int, run: Run, made_of: Mapping[str, str], say: Callable[[str], None]
) -> Floats:
    """Log-probability (B, 2) of both rows of each example, by the model as it stands; read where the run has asked before."""
    path = run.path / FILE
    key = {"rows": hash_of_rows(examples), "model": made_of["model"]}
    if path.is_file():
        with storage(path, "read"):
            content = path.read_bytes()
        try:
            with safetensors.safe_open(path, "np") as file:
                if file.metadata() == key:
                    found: Floats = safetensors.numpy.load(content)["logprobs"]
                    return found
        except safetensors.SafetensorError:
            say(f"{path} is damaged; the reference is asked again.")
    value = reference_of(model, examples, budget)
    write_atomic(path, safetensors.numpy.save({"logprobs": value}, metadata=key))
    return value


def reference_of(model: LanguageModel, examples: Sequence[Example], budget: int) -> Floats:
    """Log-probability (B, 2) of both rows of each example, by the model as it stands.

    Both go through the model in one pass, as in training: rounded to bf16, a sum over an answer depends on the pass, and the difference
    would look like a preference before anything is trained.
    """
    return _sums(model, examples, budget).reshape(-1, 2)


@dataclass(frozen=True)
class ToPrefer:
    """Examples, what the reference gave their two rows, and how they are judged."""

    examples: list[Example]
    reference: list[Floats]
    config: DpoConfig
    votes: bool

    @property
    def trained(self) -> list[Example]:
        """The rows that are trained: both of a pair, the answer itself of a vote."""
        return [Example(example.rows[:1], example.source, example.meta) for example in self.examples] if self.votes else self.examples


class _Objective:
    """The loss of a micro-batch of whole examples, whose rows stand two by two."""

    def __init__(self, asked: ToPrefer, kl: float = 0.0) -> None:
        self._asked, self._kl = asked, kl

    def __call__(self, logprob_N: Tensor, batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        forest = batch.forest
        row_E = torch.from_numpy(forest.row_E).to(logprob_N.device, non_blocking=True)
        logprob_E = logprob_N[torch.from_numpy(forest.target_E).to(logprob_N.device, non_blocking=True)]
        weight_E = torch.from_numpy(forest.weight_E).to(logprob_E, non_blocking=True)
        length_R = row_sums(weight_E, row_E, forest.num_rows)
        return self.of_rows(row_sums(weight_E * logprob_E, row_E, forest.num_rows), length_R, batch.examples)

    def of_rows(self, logprob_R: Tensor, length_R: Tensor, examples: Sequence[int]) -> tuple[Tensor, Mapping[str, float]]:
        """The same from the log-probability and length of each trained row: two of a pair, one of a vote."""
        asked, config = self._asked, self._asked.config
        reference_2B = torch.from_numpy(np.stack([asked.reference[index] for index in examples]).T).to(logprob_R)
        if not asked.votes:
            first_B, second_B = logprob_R.view(-1, 2).T - reference_2B
            lengths_2B = length_R.view(-1, 2).T
            return preference(first_B, second_B, lengths_2B, kind=config.loss, beta=config.beta, smoothing=config.smoothing)
        first_B = logprob_R - reference_2B[0]
        good_B = torch.tensor([bool(asked.examples[index].meta[VOTE]) for index in examples], device=logprob_R.device)
        loss, counts = vote(first_B, good_B, self._kl, beta=config.beta, good_weight=config.good_weight, bad_weight=config.bad_weight)
        return loss, {**counts, "kl": self._kl * len(examples)}


def _divergence(model: LanguageModel, asked: ToPrefer, budget: int) -> float:
    """KTO's estimate of KL(policy ‖ reference), at least 0: the mean over the step's mismatched answers (eq. 6 and below)."""
    now_B = _sums(model, [Example((example.rows[1],), example.source) for example in asked.examples], budget)
    return max(0.0, float(np.mean(now_B - np.array([known[1] for known in asked.reference]))))


def _sums(model: LanguageModel, examples: Sequence[Example], budget: int) -> Floats:
    """The weighted log-probability of each row of these examples, one behind the other, without gradients."""
    found = row_logprobs(model, examples, budget)
    rows = (pair for values, one in zip(found, examples, strict=True) for pair in zip(values, one.rows, strict=True))
    return np.array([float((value_T * row.weights_T).sum()) for value_T, row in rows])


def accumulate_preferences(model: LanguageModel, asked: ToPrefer, budget: int, *, draw: tuple[int, int]) -> Sums:
    """Gradient of the step's mean loss, left in the parameters: as `accumulate`, for pairs and votes."""
    kl = _divergence(model, asked, budget) if asked.votes else 0.0
    objective, weight = _Objective(asked, kl), float(len(asked.examples))
    if model.shares_prefixes:
        return accumulate(model, asked.trained, budget, draw=draw, objective=objective, weight=weight)
    return _row_by_row(model, asked, budget, objective, draw)


def _row_by_row(model: LanguageModel, asked: ToPrefer, budget: int, objective: _Objective, draw: tuple[int, int]) -> Sums:
    """For a model that runs one row at a time: first the loss's slope at each row's log-probability, then one linear pass a row."""
    rows = by_rows(asked.trained)
    logprob_R = torch.from_numpy(_sums(model, rows, budget)).requires_grad_()
    length_R = torch.tensor([one.weight for one in rows], dtype=torch.float64)
    loss, counts = objective.of_rows(logprob_R, length_R, range(len(asked.examples)))
    (slope_R,) = torch.autograd.grad(loss, logprob_R)

    def linear(logprob_N: Tensor, batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        uses = logprob_N[torch.from_numpy(batch.forest.target_E).to(logprob_N.device, non_blocking=True)]
        weight_E = torch.from_numpy(batch.forest.weight_E).to(uses, non_blocking=True)
        return (uses * weight_E).sum() * slope_R[batch.examples[0]].to(uses), {}

    weight = float(len(asked.examples))
    sums = accumulate(model, rows, budget, draw=draw, objective=linear, weight=weight)
    return Sums(float(loss.detach()), weight, sums.row_tokens, sums.unique_tokens, counts=counts)


@dataclass(frozen=True, slots=True)
class Judged:
    """How held-out pairs or votes are judged."""

    right: float
    """Pairs whose chosen answer gained more than the rejected one, ties half; votes that the model shares."""
    count: int
    loss: float
    """Mean, of a pair."""
    margin: float
    """Mean of the difference of both answers' rewards, in units of β log-probability; 0 for votes."""

    @classmethod
    def at_step(cls, step: int, folder: Path) -> Judged | None:
        """What an earlier sitting of a run has recorded of a step."""
        records = (record for record in step_records(folder / "metrics.jsonl") if record["kind"] == "eval" and record["step"] == step)
        found = next(records, None)
        return None if found is None else cls(found["accuracy"] * found["pairs"], found["pairs"], found["loss"], found["margin"])

    @property
    def interval(self) -> Interval:
        """Of the accuracy, at 95 %."""
        return rate_interval(self.right, self.count)

    def record(self) -> dict[str, Any]:
        """For `metrics.jsonl`."""
        interval = self.interval
        return {
            "loss": self.loss,
            "accuracy": self.right / self.count,
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            "pairs": self.count,
            "margin": self.margin,
        }


def judged(model: LanguageModel, asked: ToPrefer, budget: int) -> Judged:
    """Judge held-out pairs or votes without gradients."""
    with torch.inference_mode():
        kl = _divergence(model, asked, budget) if asked.votes else 0.0
        logprob_R = torch.from_numpy(_sums(model, asked.trained, budget))
        length_R = torch.tensor([float(row.weights_T.sum()) for one in asked.trained for row in one.rows], dtype=torch.float64)
        loss, counts = _Objective(asked, kl).of_rows(logprob_R, length_R, range(len(asked.examples)))
    count = len(asked.examples)
    return Judged(counts["right"], count, float(loss) / count, counts.get("margin", 0.0) / count)


@dataclass(frozen=True, slots=True)
class PreferenceStep:
    """One finished step, as logged."""

    step: int
    """Counted from 1."""
    num_steps: int
    loss: float
    """Mean, of a pair or vote, before the update. log 2 at the start of DPO."""
    lr: float
    grad_norm: float
    accuracy: float
    """Share of the step's pairs whose chosen answer gained more than the rejected one; of votes, that the model shares."""
    margin: float
    """Mean difference of the rewards of both answers; of votes, of good and bad ones."""
    chosen: float
    """Mean reward β log(policy / reference) of chosen (or good) answers."""
    rejected: float
    """The same of rejected (or bad) ones."""
    kl: float
    """KTO's estimate of the divergence; 0 for pairs."""
    row_tokens: int
    unique_tokens: int
    seconds: float
    epoch: float
    peak_bytes: int

    @classmethod
    def of(
        cls, step: int, num_steps: int, sums: Sums, asked: ToPrefer, lr: float, norm: float, seconds: float, epoch: float
    ) -> PreferenceStep:
        """From the sums of a step."""
        counts, number = sums.counts, len(asked.examples)
        if asked.votes:
            chosen = counts["good_reward"] / max(counts["good"], 1.0)
            rejected = counts["bad_reward"] / max(number - counts["good"], 1.0)
        else:
            chosen, rejected = counts["chosen"] / number, counts["rejected"] / number
        return cls(
            step,
            num_steps,
            sums.mean_loss,
            lr,
            norm,
            counts["right"] / number,
            chosen - rejected,
            chosen,
            rejected,
            counts.get("kl", 0.0) / number,
            sums.row_tokens,
            sums.unique_tokens,
            seconds,
            epoch,
            peak_memory(),
        )


def record_of(done: PreferenceStep) -> dict[str, Any]:
    """A record of `metrics.jsonl`."""
    return {
        "kind": "train",
        **asdict(done),
        "row_tokens_per_second": done.row_tokens / done.seconds,
        "unique_tokens_per_second": done.unique_tokens / done.seconds,
        "saved": 1 - done.unique_tokens / done.row_tokens,
    }
