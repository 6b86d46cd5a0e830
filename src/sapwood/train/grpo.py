"""Group relative policy optimisation: one loop, read from top to bottom.

In: a model, prompts with what is right, rewards, a config and an open run. Out: an adapter (or the whole model) in the run directory.

    rehearse → for each step: observe? · prompts of the step → groups of answers, by the engine of this process, on these very weights
             → rewards → dead groups drawn anew → advantages → forest of prompt × G → μ updates · log · save? → adapter

Shao et al., arXiv:2402.03300. A resumed run continues from the newest whole checkpoint. What a step asks and draws is a function of the
seed, the step and the place in the line of prompts, which the checkpoint holds: on a CPU it samples the very answers, and ends with the
very bits, of an uninterrupted run.
Left out on purpose: a second model that samples while this one trains; and splitting one step's answers among several updates.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from sapwood.config import from_dict, to_dict
from sapwood.errors import ConfigError, DataError
from sapwood.model import LanguageModel, LoraConfig, count_parameters, trainable_parameters
from sapwood.records import Example, Judge, Row, Sampler, SamplingParams, hash_of_rows
from sapwood.records.protocols import release
from sapwood.run import Run
from sapwood.train.checkpoint import newest_checkpoint, save_checkpoint
from sapwood.train.grpo_report import GrpoStep, record_of, report_of, shown
from sapwood.train.optimizer import OptimConfig, Optimizer, learning_rate
from sapwood.train.order import step_examples
from sapwood.train.policy import PolicyConfig, total
from sapwood.train.reference import Reference, by_rows, row_logprobs
from sapwood.train.rehearsal import rehearse
from sapwood.train.result import save_result
from sapwood.train.rollouts import Asked, Objective, Rollouts, refuse_silent_judge, roll_out, rows_to_train, with_logprobs
from sapwood.train.sitting import fingerprint, not_taken, passed, rescue, with_what_is_trained
from sapwood.train.step import Sums, accumulate
from sapwood.train.unbroken import unbroken

TAKEN = "line.taken"
"""Name in a checkpoint of the place in the line of prompts."""
SILENT = 3
"""Steps in a row whose answers nothing judged, after which a run ends: its judge has gone, and hours would teach nothing."""
ENDLESS = 2.0**40
"""Epochs of the line of prompts: how many a run asks depends on how many groups are drawn anew."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """The loop of reinforcement learning."""

    steps: int = 100
    """Steps: each asks its prompts, rewards the answers, and learns from them."""
    prompts: int = 8
    """Prompts a step."""
    group: int = 8
    """Answers a prompt, which are compared with each other: 4 to 8 for simple tasks, 8 to 16 for hard ones."""
    inner: int = 1
    """Updates on the answers of one step (μ): more use each answer more, and drift from the policy that gave it."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """Of sampling; the log-probabilities that are trained are those at this temperature."""
    top_k: int = 0
    """Draw among so many most likely tokens; 0 draws among all."""
    top_p: float = 1.0
    """Draw among the most likely tokens that make up this probability."""
    resample: int = 1
    """Rounds of further prompts in place of dead groups, whose answers were all rewarded alike; 0 keeps those groups."""
    seed: int = 0
    """Seed of the order of prompts, of what is sampled and of the adapter's start."""
    budget: int | None = None
    """Unique tokens a micro-batch: changes memory and speed, never the result. Measured before step 1 where not given."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates about four times a run."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves about ten times a run."""
    keep: int = 2
    """Checkpoints that are kept."""
    checkpointing: bool = False
    """Compute each layer's inside again in the backward pass: about a third slower, and far less memory for long rows."""
    full: bool = False
    """Train all weights instead of an adapter (fp32 masters; several times the memory)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-5, schedule="constant"))

    def __post_init__(self) -> None:
        least = (
            ("steps", 1),
            ("prompts", 1),
            ("group", 2),
            ("inner", 1),
            ("max_new_tokens", 1),
            ("resample", 0),
            ("keep", 1),
            ("top_k", 0),
        )
        for name, smallest in (*least, ("eval_every", 0), ("save_every", 0)):
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {smallest}.")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}; answers of one group must differ, so give a number above 0, such as 1.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; give a number above 0 and at most 1.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; give a number from 0 to 2**63 - 1.")
        if self.budget is not None and self.budget < 1:
            raise ConfigError(f"budget is {self.budget}; give at least 1, or leave it out.")
        if self.full and self.lora != LoraConfig():
            raise ConfigError("full trains all weights, and reads no option of lora. Leave out full, or what is set below lora.")

    @property
    def may_change(self) -> tuple[str, ...]:
        """Knobs of speed and space, which a run that goes on may turn: the result does not depend on them."""
        return ("budget", "save_every", "eval_every", "keep", "checkpointing")

    @property
    def sampling(self) -> SamplingParams:
        """How answers are drawn."""
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class GrpoResult:
    """A finished run."""

    model: LanguageModel
    steps: int
    seconds: float
    """Of steps of this sitting."""
    taken: int
    """Prompts that were asked."""


def grpo(
    model: LanguageModel,
    asked: Sequence[Asked],
    judge: Judge,
    sampler_of: Callable[[LanguageModel], Sampler],
    config: GrpoConfig,
    run: Run,
    *,
    longest: int | None = None,
    context: int | None = None,
    report: Callable[[GrpoStep, Rollouts], None] = lambda step, rollouts: None,
    observe: Callable[[int, LanguageModel], None] = lambda step, model: None,
    say: Callable[[str], None] = lambda _: None,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> GrpoResult:
    """Train. `judge` rewards answers; `sampler_of` makes the sampler of the model that is trained. `longest` is what an answer may come to
    in tokens where it takes several turns; else it is `max_new_tokens`. `context` is what the model can attend to, where that is known.

    `report` hears of each step and its answers, `observe` is called at each evaluation, `say` receives sentences for people.
    `beside` are files to lie in the folder of the result. Raises as `sft` does. Whatever ends the loop, a checkpoint of the last
    whole step is saved first.
    """
    if not asked:
        raise DataError("There is nothing to ask: no prompt is left. The ledger above says where they went.")
    steps = config.steps
    eval_every = config.eval_every or max(1, -(-steps // 4))
    save_every = config.save_every or max(1, -(-steps // 10))
    made_of = _fingerprint(model, asked, config)

    def line(first: int, count: int) -> list[Asked]:
        chosen = [
            step_examples(place, num_examples=len(asked), batch=1, epochs=ENDLESS, seed=config.seed)
            for place in range(first, first + count)
        ]
        return [asked[int(index[0])] for index in chosen]

    model = with_what_is_trained(model, config)
    reference = Reference(model) if config.policy.kl else None
    optimizer = Optimizer(trainable_parameters(model), config.optim)
    sampler = sampler_of(model)
    parameters = count_parameters(model)
    say(f"Training {parameters.trained:,} of {parameters.total:,} parameters ({parameters.trained / parameters.total:.2%}).")

    # continue, or try everything once
    checkpoint = newest_checkpoint(run.path, made_of, say)
    if checkpoint is not None:
        optimizer.restore(checkpoint.tensors)
        first, budget, taken = checkpoint.step, config.budget or checkpoint.budget, int(checkpoint.tensors[TAKEN])
        say(f"Continuing from {checkpoint.path.name}.")
    else:
        rehearsal = rehearse(
            model,
            optimizer,
            _longest_groups(asked, config, longest or config.max_new_tokens, context),
            (),
            run.path,
            config.budget,
            batch=config.prompts,
        )
        first, budget, taken = 0, rehearsal.budget, 0
        for sentence in (passed(rehearsal), *rehearsal.notes):
            say(sentence)
        run.clear("metrics")
        run.clear("rollouts")

    def save(step: int) -> Path:
        state = {**optimizer.state(), TAKEN: torch.tensor(taken)}
        return save_checkpoint(run.path, step, state, budget=budget, fingerprint=made_of, keep=config.keep)

    seconds = 0.0
    silent = 0
    whole: int | None = first
    saved = first if checkpoint is not None else None
    try:
        for step in range(first, steps + 1):
            if step % eval_every == 0 or step == steps:
                observe(step, model)
            if step == steps:
                break

            begin = time.perf_counter()
            rollouts = roll_out(
                sampler,
                judge,
                line,
                taken,
                prompts=config.prompts,
                group=config.group,
                rounds=config.resample,
                params=config.sampling,
                seed=(config.seed, step),
            )
            release(sampler)  # its keys and values are of weights that change now
            silent = refuse_silent_judge(rollouts, silent, SILENT)
            groups, facts, rows, tokens = rows_to_train(rollouts, config.policy)
            if not model.shares_prefixes:
                groups, facts = by_rows(groups), [[fact] for some in facts for fact in some]

            probing = time.perf_counter()
            old = before = None
            if groups and (config.inner > 1 or config.policy.correction != "none"):
                old = row_logprobs(model, groups, budget, temperature=config.temperature)
            if groups and reference is not None:
                with reference.in_force():
                    before = row_logprobs(model, groups, budget, temperature=config.temperature)
            objective = Objective(with_logprobs(facts, old, before), config.policy)
            weight = total(config.policy, rows=rows, tokens=tokens, longest=longest or config.max_new_tokens)

            updating = time.perf_counter()
            lr = learning_rate(config.optim, step, steps)
            passes: list[Sums] = []
            norm = 0.0
            with unbroken():
                for inner in range(config.inner if groups else 0):
                    draw = (config.seed, step * config.inner + inner)
                    sums = accumulate(model, groups, budget, draw=draw, objective=objective, weight=weight, temperature=config.temperature)
                    whole = None  # an update under way must not be saved
                    norm = optimizer.step(lr)
                    if not np.isfinite(norm):
                        whole = step if inner == 0 else None
                        raise not_taken(step + 1, norm, groups)
                    passes.append(sums)
                taken, now = rollouts.taken, time.perf_counter()
                spent = (probing - begin, updating - probing, now - updating)
                done = report_of(step + 1, steps, rollouts, passes, lr, norm, spent, taken / len(asked))
                run.append("metrics", record_of(done))
                run.append("rollouts", *shown(rollouts, step + 1))
                whole = step + 1
            seconds += done.seconds
            report(done, rollouts)
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save(step + 1)
                saved = step + 1
    except BaseException:
        if whole and whole != saved:
            rescue(lambda: save(whole), say)
        raise

    save_result(model, run.path, beside)
    return GrpoResult(model, steps, seconds, taken)


def _longest_groups(asked: Sequence[Asked], config: GrpoConfig, length: int, context: int | None) -> list[Example]:
    """The worst-case step: the longest prompts, each with G answers of the greatest length that share nothing with each other. Nothing is
    longer than the context, for nothing will be: a model with learned positions has none beyond it."""
    longest = sorted(asked, key=lambda one: -len(one.prompt.ids))[: config.prompts]
    rng = np.random.default_rng(0)
    groups = []
    for one in longest:
        ids = np.array(one.prompt.ids, dtype=np.int64)
        room = length if context is None else max(1, min(length, context - len(ids)))
        ones = np.ones(room, np.float32)
        rows = tuple(Row(ids, rng.choice(ids, room), ones, one.prompt.media) for _ in range(config.group))
        groups.append(Example(rows, one.item.conversation.source))
    return groups


def _fingerprint(model: LanguageModel, asked: Sequence[Asked], config: GrpoConfig) -> dict[str, str]:
    """The rows are what is asked; a reference counts as well, because rewards read it."""
    settings = to_dict(from_dict(GrpoConfig, to_dict(config), "the config"))
    one = np.ones(1, np.float32)
    rows = [Example((Row(np.array(each.prompt.ids, np.int64), np.zeros(1, np.int64), one),)) for each in asked]
    items = hashlib.sha256(" ".join(each.item.id for each in asked).encode()).hexdigest()
    kept = {name: value for name, value in settings.items() if name not in config.may_change}
    return fingerprint(model, f"{hash_of_rows(rows)} {items}", kept)
