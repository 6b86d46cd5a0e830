"""Supervised fine-tuning: one loop, read from top to bottom.

In: a model, examples, a config and an open run. Out: an adapter (or the whole model) in the run directory.

    rehearse → for each step: evaluate? observe? · examples of the step · forward, backward · update · log · save? → best? → adapter

A resumed run continues from the newest whole checkpoint. Order and learning rate are functions of the step, what held-out losses
decide is a function of the recorded ones, and the budget is stored, so on a CPU it ends with the very bits of an uninterrupted run.
Left out on purpose: callbacks. What a caller may do during the run is one function, `observe`.
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
from sapwood.model import (
    LanguageModel,
    LoraConfig,
    Parameters,
    count_parameters,
    trainable_parameters,
)
from sapwood.records import Example, Mixture, facts_of, hash_of_rows
from sapwood.run import Run
from sapwood.train.checkpoint import newest_checkpoint, save_checkpoint
from sapwood.train.estimate import Estimate
from sapwood.train.memory import peak_memory
from sapwood.train.optimizer import OptimConfig, Optimizer, learning_rate
from sapwood.train.order import epoch_length, kin_of, num_steps, spread, step_examples
from sapwood.train.rehearsal import TYPICAL, Rehearsal, rehearse
from sapwood.train.result import save_result
from sapwood.train.sitting import fingerprint, not_taken, passed, rescue, with_what_is_trained
from sapwood.train.step import accumulate
from sapwood.train.stopping import best_of, evaluated, evaluations_before, is_over, take_best
from sapwood.train.unbroken import unbroken


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """The training loop."""

    epochs: float = 1.0
    """Times every example is trained. More than 3 seldom helps."""
    max_steps: int | None = None
    """Train this many steps, with the schedule of this length, whatever `epochs` would give."""
    batch: int = 8
    """Examples a step."""
    seed: int = 0
    """Seed of the order and of the adapter's start."""
    together: int = 0
    """Examples that begin with the same so many tokens come in the same steps, which shares more; 0 shuffles each alone."""
    budget: int | None = None
    """Unique tokens a micro-batch: changes memory and speed, never the result. Measured before step 1 where not given."""
    eval_every: int = 0
    """Steps between evaluations on held-out examples; 0 evaluates about five times a run."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves about four times a run."""
    keep: int = 2
    """Checkpoints that are kept."""
    keep_best: bool = False
    """The result is the evaluated state with the lowest held-out loss, not the last; a part of the held-out rows then only chooses."""
    patience: int = 0
    """End after so many evaluations without a lower held-out loss (the result is then the best state); 0 never does."""
    checkpointing: bool = False
    """Compute each layer's inside again in the backward pass: about a third slower, and far less memory for long rows."""
    full: bool = False
    """Train all weights instead of an adapter (fp32 masters; several times the memory)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("keep", 1), ("together", 0), ("eval_every", 0), ("save_every", 0), ("patience", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {least}.")
        if not 0 < self.epochs < math.inf:
            raise ConfigError(f"epochs is {self.epochs}; give a number above 0.")
        if self.full and self.lora != LoraConfig():
            raise ConfigError("full trains all weights, and reads no option of lora. Leave out full, or what is set below lora.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; give a number from 0 to 2**63 - 1.")
        for optional in ("max_steps", "budget"):
            value = getattr(self, optional)
            if value is not None and value < 1:
                raise ConfigError(f"{optional} is {value}; give at least 1, or leave it out.")

    @property
    def selects(self) -> bool:
        """Whether held-out losses decide what the result is."""
        return self.keep_best or self.patience > 0

    @property
    def may_change(self) -> tuple[str, ...]:
        """Knobs of speed and space, which a run that goes on may turn: the result does not depend on them."""
        return ("budget", "save_every", "keep", "checkpointing", *(() if self.selects else ("eval_every", "keep_best", "patience")))


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step, as logged."""

    step: int
    """Counted from 1."""
    num_steps: int
    loss: float
    """Nats a trained token, before the update."""
    lr: float
    grad_norm: float
    row_tokens: int
    unique_tokens: int
    seconds: float
    epoch: float
    """How often each example has been trained by then, in the mean."""
    peak_bytes: int
    """The most memory that the process has held so far; on a GPU, of the GPU's."""


@dataclass(frozen=True)
class SftResult:
    """A finished run."""

    model: LanguageModel
    steps: int
    """That were taken: fewer than planned where patience came to an end."""
    best_step: int | None
    """The step whose state is the result, where held-out losses chose it; None where it is the last one's."""
    row_tokens: int
    unique_tokens: int
    seconds: float
    """Of training steps alone. This and the tokens do not include those of earlier sittings."""
    parameters: Parameters
    first_eval_loss: float | None
    """Before the first step, be it of an earlier sitting."""
    last_eval_loss: float | None
    """Of the state that is the result."""
    rehearsal: Rehearsal | None
    """None for a run that was resumed."""


def sft(
    model: LanguageModel,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    config: SftConfig,
    run: Run,
    *,
    report: Callable[[StepReport], None] = lambda _: None,
    observe: Callable[[int, LanguageModel], None] = lambda step, model: None,
    say: Callable[[str], None] = lambda _: None,
    beside: Mapping[str, bytes] = MappingProxyType({}),
    mixture: Mixture | None = None,
    expected: Estimate | None = None,
) -> SftResult:
    """Train. `report` hears of each step, `observe` is called at each evaluation, `say` receives sentences for people.

    `beside` are files to lie in the folder of the result, by name: what others need to chat as this run did. `mixture` says
    how often an epoch trains the examples of each source; without it, each once. `expected` is compared with the rehearsal.

    Raises `DataError` for examples that cannot be trained, or none, `TrainingError` for what the rehearsal finds or a loss
    that is not finite, `CheckpointError` for a run made of something else. Whatever ends the loop, ctrl-C included, a
    checkpoint of the last whole step is saved first.
    """
    _refuse_untrainable(model, examples, held_out, config)
    epoch = epoch_length(len(examples), mixture)
    steps = config.max_steps or num_steps(epoch, config.batch, config.epochs)
    eval_every = config.eval_every or max(1, -(-steps // 4))
    save_every = config.save_every or max(1, -(-steps // 4))
    epochs = max(config.epochs, steps * config.batch / epoch) if config.max_steps else config.epochs
    made_of = _fingerprint(model, examples, held_out, config, mixture)
    kin = kin_of(examples, config.together)
    order = partial(
        step_examples, num_examples=len(examples), batch=config.batch, epochs=epochs, seed=config.seed, mixture=mixture, kin=kin
    )

    model = with_what_is_trained(model, config)
    optimizer = Optimizer(trainable_parameters(model), config.optim)
    parameters = count_parameters(model)
    say(f"Training {parameters.trained:,} of {parameters.total:,} parameters ({parameters.trained / parameters.total:.2%}).")
    if config.max_steps:
        say(f"max_steps is {steps}: each example is trained {steps * config.batch / epoch:.3g} times, and epochs is not read.")
    if model.draws:
        say("Dropout draws for each row apart, so training shares no prefixes.")

    # continue, or try everything once
    checkpoint = newest_checkpoint(run.path, made_of, say)
    rehearsal = None
    if checkpoint is not None:
        optimizer.restore(checkpoint.tensors)
        first, budget = checkpoint.step, config.budget or checkpoint.budget
        say(f"Continuing from {checkpoint.path.name}.")
    else:
        typical = [[examples[index] for index in order(step)] for step in spread(steps, TYPICAL)]
        rehearsal = rehearse(
            model, optimizer, examples, held_out, run.path, config.budget, batch=config.batch, typical=typical, expected=expected
        )
        first, budget = 0, rehearsal.budget
        for sentence in (passed(rehearsal), *rehearsal.notes):
            say(sentence)
        run.clear("metrics")  # of a start that was killed before it saved anything

    evaluations = evaluations_before(run.path, first)

    def save(step: int) -> Path:
        best = best_of(evaluations).step if config.selects and evaluations else None
        return save_checkpoint(run.path, step, optimizer.state(), budget=budget, fingerprint=made_of, keep=config.keep, pinned=best)

    taken: list[StepReport] = []  # in this sitting
    whole: int | None = first  # the step whose state stands complete in the optimizer
    saved = first if checkpoint is not None else None
    try:
        for step in range(first, steps + 1):
            if step % eval_every == 0 or step == steps:
                if held_out:
                    evaluations.append(evaluated(model, held_out, budget, step, run))
                    if config.selects and saved != step and best_of(evaluations).step == step:
                        save(step)
                        saved = step
                observe(step, model)
                if step == steps or is_over(evaluations, config.patience):
                    break

            begin = time.perf_counter()
            chosen = [examples[index] for index in order(step)]
            lr = learning_rate(config.optim, step, steps)
            sums = accumulate(model, chosen, budget, draw=(config.seed, step))
            with unbroken():
                whole = None  # an update under way must not be saved
                norm = optimizer.step(lr)
                if not np.isfinite(norm):
                    whole = step
                    raise not_taken(step + 1, norm, chosen)
                trained = min(epochs, (step + 1) * config.batch / epoch)
                seconds = time.perf_counter() - begin
                done = StepReport(
                    step + 1, steps, sums.mean_loss, lr, norm, sums.row_tokens, sums.unique_tokens, seconds, trained, peak_memory()
                )
                run.append("metrics", _record(done))
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

    best = take_best(run, optimizer, evaluations, steps, made_of, say) if config.selects else None
    save_result(model, run.path, beside)
    return SftResult(
        model,
        steps=step,
        best_step=best.step if best is not None else None,
        row_tokens=sum(done.row_tokens for done in taken),
        unique_tokens=sum(done.unique_tokens for done in taken),
        seconds=sum(done.seconds for done in taken),
        parameters=parameters,
        first_eval_loss=evaluations[0].loss if evaluations else None,
        last_eval_loss=(best or evaluations[-1]).loss if evaluations else None,
        rehearsal=rehearsal,
    )


def _refuse_untrainable(model: LanguageModel, examples: Sequence[Example], held_out: Sequence[Example], config: SftConfig) -> None:
    """What would fail in the middle of a run, or train nothing without a word. Raises `DataError` naming the places."""
    if not examples:
        raise DataError("There is nothing to train on: no example is left. The ledger above says where they went.")
    if config.selects and not held_out:
        name = "patience" if config.patience else "keep_best"
        raise ConfigError(
            f"{name} is {getattr(config, name)}, and nothing is held out whose loss could decide. Hold rows out (--held-out 0.1), or leave "
            f"{name} out."
        )
    vocabulary = min(model.vocabulary, len(model.base.get_input_embeddings().weight))
    unknown: list[tuple[Sequence[Example], int]] = []
    weightless: list[tuple[Sequence[Example], int]] = []
    for side in (examples, held_out):
        facts = facts_of(side)
        unknown += [(side, int(index)) for index in np.flatnonzero(facts.of("largest_id") >= vocabulary)]
        weight_B = facts.of("weight")
        weightless += [(side, int(index)) for index in np.flatnonzero(~((weight_B > 0) & (weight_B < math.inf)))]
    for bad, why in (
        (unknown, f"hold token ids that the model does not have (it has {vocabulary}). Use the tokenizer that belongs to the model"),
        (
            weightless,
            "have no weight to train with: each example needs at least one token of a weight above 0. Leave them out, or mend them",
        ),
    ):
        if bad:
            places = ", ".join(side[index].where for side, index in bad[:5])
            raise DataError(
                f"{len(bad)} of {len(examples) + len(held_out)} examples {why}. They are: {places}{', …' if len(bad) > 5 else ''}."
            )


def _record(done: StepReport) -> dict[str, float | str]:
    return {
        "kind": "train",
        "step": done.step,
        "num_steps": done.num_steps,
        "loss": done.loss,
        "lr": done.lr,
        "grad_norm": done.grad_norm,
        "row_tokens": done.row_tokens,
        "unique_tokens": done.unique_tokens,
        "row_tokens_per_second": done.row_tokens / done.seconds,
        "unique_tokens_per_second": done.unique_tokens / done.seconds,
        "saved": 1 - done.unique_tokens / done.row_tokens,
        "seconds": done.seconds,
        "epoch": done.epoch,
        "peak_bytes": done.peak_bytes,
    }


def _fingerprint(
    model: LanguageModel, examples: Sequence[Example], held_out: Sequence[Example], config: SftConfig, mixture: Mixture | None
) -> dict[str, str]:
    """Where held-out losses choose the result, it depends on the held-out rows and on when they are evaluated, too."""
    settings = to_dict(from_dict(SftConfig, to_dict(config), "the config"))  # a 2 for 2.0 is the same knob when read back
    rows = hash_of_rows(examples) + (f" {mixture.digest}" if mixture is not None else "")
    rows += f" {hash_of_rows(held_out)}" if config.selects else ""
    return fingerprint(model, rows, {name: value for name, value in settings.items() if name not in config.may_change})
