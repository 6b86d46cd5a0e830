"""Preference tuning: one loop, read from top to bottom.

In: a model, pairs of rows (the chosen one first) or single rows with a vote, a config and an open run. Out: an adapter (or the whole
model) in the run directory.

    rehearse → what the model gives every answer before step 1 → for each step: evaluate? observe? · pairs of the step · forward, backward
             · update · log · save? → adapter

Direct preference optimisation, Rafailov et al., arXiv:2305.18290, and its kin (see `preferences`). The reference is the model as it was
before step 1. It is asked once, and its answers are kept in the run directory. The prompt of a pair, and what both answers begin with,
go through the model once. A resumed run ends with the very bits of an uninterrupted one.
Left out on purpose: a second model in memory as the reference, and pairs that are sampled while training goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from sapwood.config import from_dict, to_dict
from sapwood.errors import ConfigError, DataError
from sapwood.model import LanguageModel, LoraConfig, count_parameters, trainable_parameters
from sapwood.records import Example, hash_of_rows
from sapwood.run import Run
from sapwood.train.checkpoint import newest_checkpoint, save_checkpoint
from sapwood.train.optimizer import OptimConfig, Optimizer, learning_rate
from sapwood.train.order import num_steps, spread, step_examples
from sapwood.train.preferences import PreferenceLoss
from sapwood.train.preferred import VOTE, Judged, PreferenceStep, ToPrefer, accumulate_preferences, judged, record_of, references
from sapwood.train.rehearsal import TYPICAL, Rehearsal, rehearse
from sapwood.train.result import save_result
from sapwood.train.sitting import fingerprint, not_taken, passed, rescue, with_what_is_trained
from sapwood.train.unbroken import unbroken


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """The loop of preference tuning."""

    loss: PreferenceLoss = "sigmoid"
    """Of pairs: `sigmoid` is DPO, `robust` bears wrong labels, `ipo` bounds the margin. Single votes are always trained by KTO."""
    beta: float = 0.1
    """How dear it is to leave the reference: 0.1 for most, 0.5 stays close, 0.01 goes far."""
    smoothing: float = 0.0
    """Share of labels that are believed to be wrong, below 0.5; for `sigmoid` and `robust`."""
    good_weight: float = 1.0
    """Of single votes: weight of good answers. Keep weight × number of good ones within 1 to 1.33 times that of the bad ones."""
    bad_weight: float = 1.0
    """Of single votes: weight of bad answers."""
    epochs: float = 1.0
    """Times every pair is trained. More than 1 to 3 overfits soon."""
    max_steps: int | None = None
    """Train this many steps, with the schedule of this length, whatever `epochs` would give."""
    batch: int = 8
    """Pairs (or votes) a step. Votes need several: what they are compared with is the step's mean."""
    seed: int = 0
    """Seed of the order and of the adapter's start."""
    budget: int | None = None
    """Unique tokens a micro-batch: changes memory and speed, never the result. Measured before step 1 where not given."""
    eval_every: int = 0
    """Steps between evaluations on held-out pairs; 0 evaluates about five times a run."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves about four times a run."""
    keep: int = 2
    """Checkpoints that are kept."""
    checkpointing: bool = False
    """Compute each layer's inside again in the backward pass: about a third slower, and far less memory for long rows."""
    full: bool = False
    """Train all weights instead of an adapter (fp32 masters; several times the memory)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-5, warmup=0.1))

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("keep", 1), ("eval_every", 0), ("save_every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {least}.")
        for name in ("beta", "epochs", "good_weight", "bad_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number above 0.")
        if not 0 <= self.smoothing < 0.5:
            raise ConfigError(f"smoothing is {self.smoothing}; it is a share of wrong labels, from 0 to below 0.5.")
        if self.smoothing and self.loss == "ipo":
            raise ConfigError(f"smoothing is {self.smoothing}, but the loss ipo does not read it. Leave it out, or take sigmoid or robust.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; give a number from 0 to 2**63 - 1.")
        for optional in ("max_steps", "budget"):
            value = getattr(self, optional)
            if value is not None and value < 1:
                raise ConfigError(f"{optional} is {value}; give at least 1, or leave it out.")
        if self.full and self.lora != LoraConfig():
            raise ConfigError("full trains all weights, and reads no option of lora. Leave out full, or what is set below lora.")

    @property
    def may_change(self) -> tuple[str, ...]:
        """Knobs of speed and space, which a run that goes on may turn: the result does not depend on them."""
        return ("budget", "save_every", "keep", "checkpointing", "eval_every")


@dataclass(frozen=True)
class DpoResult:
    """A finished run."""

    model: LanguageModel
    steps: int
    before: Judged | None
    """How held-out pairs are judged before the first step; None where none are held out."""
    after: Judged | None
    row_tokens: int
    unique_tokens: int
    seconds: float
    """Of training steps of this sitting."""
    rehearsal: Rehearsal | None
    """None for a run that was resumed."""


def dpo(
    model: LanguageModel,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    config: DpoConfig,
    run: Run,
    *,
    report: Callable[[PreferenceStep], None] = lambda _: None,
    observe: Callable[[int, LanguageModel], None] = lambda step, model: None,
    say: Callable[[str], None] = lambda _: None,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> DpoResult:
    """Train on pairs (examples of two rows, the chosen one first) or on votes (`vote_examples`).

    `report` hears of each step, `observe` is called at each evaluation, `say` receives sentences for people. `beside` are files to
    lie in the folder of the result. Raises as `sft` does. Whatever ends the loop, a checkpoint of the last whole step is saved first.
    """
    votes = _kind_of(examples, held_out)
    refuse_unread(config, votes)
    if votes and config.batch < 2:
        raise ConfigError("batch is 1, and a vote is compared with the mean of its step. Give a batch of at least 2, better 8 or more.")
    steps = config.max_steps or num_steps(len(examples), config.batch, config.epochs)
    eval_every = config.eval_every or max(1, -(-steps // 4))
    save_every = config.save_every or max(1, -(-steps // 4))
    epochs = max(config.epochs, steps * config.batch / len(examples)) if config.max_steps else config.epochs
    made_of = _fingerprint(model, examples, config)
    order = partial(step_examples, num_examples=len(examples), batch=config.batch, epochs=epochs, seed=config.seed)

    model = with_what_is_trained(model, config)
    optimizer = Optimizer(trainable_parameters(model), config.optim)
    parameters = count_parameters(model)
    say(f"Training {parameters.trained:,} of {parameters.total:,} parameters ({parameters.trained / parameters.total:.2%}).")

    # continue, or try everything once; and ask the reference, which is the model before anything is restored
    checkpoint = newest_checkpoint(run.path, made_of, say)
    rehearsal = None
    if checkpoint is None:
        typical = [[examples[index] for index in order(step)] for step in spread(steps, TYPICAL)]
        rehearsal = rehearse(model, optimizer, examples, held_out, run.path, config.budget, batch=config.batch, typical=typical)
        for sentence in (passed(rehearsal), *rehearsal.notes):
            say(sentence)
        run.clear("metrics")
    first = checkpoint.step if checkpoint is not None else 0
    budget = (config.budget or checkpoint.budget) if checkpoint is not None else rehearsal.budget  # type: ignore[union-attr]
    known = references(model, [*examples, *held_out], budget, run, made_of, say)
    if checkpoint is not None:
        optimizer.restore(checkpoint.tensors)
        say(f"Continuing from {checkpoint.path.name}.")

    def save(step: int) -> Path:
        return save_checkpoint(run.path, step, optimizer.state(), budget=budget, fingerprint=made_of, keep=config.keep)

    def to_prefer(places: Sequence[int], among: Sequence[Example], offset: int) -> ToPrefer:
        return ToPrefer([among[place] for place in places], [known[offset + place] for place in places], config, votes)

    before = Judged.at_step(0, run.path) if checkpoint is not None else None
    after = None
    taken: list[PreferenceStep] = []
    whole: int | None = first
    saved = first if checkpoint is not None else None
    try:
        for step in range(first, steps + 1):
            if step % eval_every == 0 or step == steps:
                if held_out:
                    after = judged(model, to_prefer(range(len(held_out)), held_out, len(examples)), budget)
                    before = before or after
                    run.append("metrics", {"kind": "eval", "step": step, **after.record()})
                observe(step, model)
                if step == steps:
                    break

            begin = time.perf_counter()
            places = [int(place) for place in order(step)]
            lr = learning_rate(config.optim, step, steps)
            chosen = to_prefer(places, examples, 0)
            sums = accumulate_preferences(model, chosen, budget, draw=(config.seed, step))
            with unbroken():
                whole = None  # an update under way must not be saved
                norm = optimizer.step(lr)
                if not np.isfinite(norm):
                    whole = step
                    raise not_taken(step + 1, norm, chosen.examples)
                epoch = min(epochs, (step + 1) * config.batch / len(examples))
                done = PreferenceStep.of(step + 1, steps, sums, chosen, lr, norm, time.perf_counter() - begin, epoch)
                run.append("metrics", record_of(done))
                whole = step + 1
            report(done)
            taken.append(done)
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save(step + 1)
                saved = step + 1
    except BaseException:
        if whole and whole != saved:
            rescue(lambda: save(whole), say)
        raise

    save_result(model, run.path, beside)
    return DpoResult(
        model,
        steps=steps,
        before=before,
        after=after,
        row_tokens=sum(done.row_tokens for done in taken),
        unique_tokens=sum(done.unique_tokens for done in taken),
        seconds=sum(done.seconds for done in taken),
        rehearsal=rehearsal,
    )


def refuse_unread(config: DpoConfig, votes: bool) -> None:
    """An option that nothing reads must not be accepted. Raises `ConfigError` for one of pairs beside votes, or of votes beside pairs."""
    names = ("loss", "smoothing") if votes else ("good_weight", "bad_weight")
    why = "single votes are trained by KTO, which does" if votes else "pairs are trained, which do"
    for name in names:
        if getattr(config, name) != getattr(DpoConfig, name):
            raise ConfigError(f"{name} is {getattr(config, name)}, but {why} not read it. Leave {name} out.")


def _kind_of(examples: Sequence[Example], held_out: Sequence[Example]) -> bool:
    """Whether these are votes. Raises `DataError` for examples of neither kind, or of both."""
    if not examples:
        raise DataError("There is nothing to train on: no pair is left. The ledger above says where they went.")
    every = [*examples, *held_out]
    votes = [example for example in every if VOTE in example.meta]
    odd = next((example for example in every if len(example.rows) != 2), None)
    if odd is not None or len(votes) not in (0, len(every)):
        where = (odd or votes[0]).where
        raise DataError(f"{where}: preference tuning takes pairs of two rows, or votes, and not both in one run. Give files of one kind.")
    return bool(votes)


def _fingerprint(model: LanguageModel, examples: Sequence[Example], config: DpoConfig) -> dict[str, str]:
    settings = to_dict(from_dict(DpoConfig, to_dict(config), "the config"))
    votes = "".join("+" if example.meta.get(VOTE) else "-" for example in examples)
    kept = {name: value for name, value in settings.items() if name not in config.may_change}
    return fingerprint(model, hash_of_rows(examples), {**kept, "votes": votes})
