"""`sapwood plan`: what a run will take, said before it begins: memory, time, money, disk, and what would make it fit.

In: what `sapwood sft` takes. Out: a `Plan`. The rows are prepared and the steps cut as training will, on the real forest; the
model is counted without its weights, and a few of its layers are measured on this machine (`train.measuring`).
Left out on purpose: the time of questions answered before and after training, which depends on how long the answers get.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from sapwood.chat import Chat
from sapwood.data.sequences import PackedExamples
from sapwood.errors import ConfigError, ModelError
from sapwood.model import Dtype, LanguageModel, device_for
from sapwood.recipes.plan_lines import lines_of
from sapwood.recipes.prepare import Prepared
from sapwood.records import Example
from sapwood.train import OptimConfig, SftConfig
from sapwood.train.estimate import GIB, Estimate, Parts, Work, work_of
from sapwood.train.measuring import estimate
from sapwood.train.memory import room
from sapwood.train.order import epoch_length, kin_of, num_steps, spread, step_examples
from sapwood.train.rehearsal import TYPICAL, budgets_for, worst_step
from sapwood.train.step import forests_of

MOST_STEPS, CUT_SECONDS = 64, 3.0
"""Steps that are cut into passes to see what they hold, evenly spread over the run; no further one after so many seconds."""
SMALL_BUDGET = 512
"""Tokens of a pass that is small and still worth its overhead."""
EVALUATED = 64
"""Held-out examples by which the time of an evaluation is told."""


@dataclass(frozen=True)
class Way:
    """Something that would make the run fit."""

    options: str
    """As given to `sapwood sft`."""
    peak: int
    """Bytes it would take then."""
    effect: str
    """What else it changes."""


@dataclass(frozen=True)
class Disk:
    """Bytes that the run will write."""

    checkpoints: int
    """All that are kept, and the one that is being written."""
    result: int
    """The adapter or the model."""
    rows: int
    """Prepared rows in the cache."""
    free: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.written + self.rows

    @property
    def written(self) -> int:
        """What comes into the run directory."""
        return self.checkpoints + self.result


@dataclass(frozen=True)
class Plan:
    """What was found. Shows itself as `sapwood plan` does; `plan_lines.record_of` gives it to machines."""

    train: SftConfig
    dtype: Dtype
    estimate: Estimate
    examples: int
    steps: int
    work: Work
    """Of all training steps."""
    steps_looked_at: int
    """Steps that were cut to see what they hold."""
    budget: int
    """Unique tokens a pass."""
    largest: int
    """Tokens of the largest pass."""
    longest: int
    """Tokens of the largest example."""
    longest_at: str
    room: int
    """Bytes that the process may grow to."""
    evaluation_seconds: float
    """Losses on what is held out, over the whole run."""
    disk: Disk
    price_per_hour: float | None
    ways: tuple[Way, ...]

    @property
    def parts(self) -> Parts:
        """Memory at the peak."""
        return self.estimate.parts(self.largest)

    @property
    def peak(self) -> int:
        """Bytes at the peak, loading included."""
        return self.estimate.peak(self.largest)

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.peak <= self.room

    @property
    def training_seconds(self) -> float:
        """Of all steps, the updates included."""
        return self.estimate.seconds(self.work) + self.steps * self.estimate.update_seconds

    @property
    def foretold(self) -> Estimate:
        """The estimate with the run's own steps, for the rehearsal to confirm or correct."""
        return replace(self.estimate, steps=self.steps, step_seconds=self.training_seconds / self.steps)

    @property
    def seconds(self) -> float:
        """Training and its evaluations on held-out rows."""
        return self.training_seconds + self.evaluation_seconds

    @property
    def price(self) -> float | None:
        """Money for that time."""
        return None if self.price_per_hour is None or self.estimate.measured is None else self.seconds / 3600 * self.price_per_hour

    def __str__(self) -> str:
        return "\n".join(lines_of(self))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def plan_of(
    folder: Path,
    chat: Chat,
    prepared: Prepared,
    train: SftConfig,
    dtype: Dtype,
    *,
    out: Path | None = None,
    memory: float | None = None,
    price_per_hour: float | None = None,
    anew: bool = False,
) -> Plan:
    """The plan of a run on rows that are ready, which will be written below `out`.

    `memory` are the GiB that the run may take, what this machine has free where not given; `anew` measures the layers again.
    Raises `ModelError` for a model that cannot be counted without its weights, `ConfigError` for options that training refuses.
    """
    new_tokens = tuple(chat.new_tokens.values())
    found, paper = estimate(folder, train, dtype, new_tokens=new_tokens, anew=anew)
    examples = prepared.examples
    epoch = epoch_length(len(examples), prepared.mixture)
    steps = train.max_steps or num_steps(epoch, train.batch, train.epochs)
    chosen = _some_steps(prepared, train, steps, epoch)
    budget = train.budget or _fastest(found, paper, chosen)
    work, looked_at = _work(paper, chosen, budget, steps)
    worst, longest = worst_step(paper, examples, train.batch)
    made = Plan(
        train=train,
        dtype=dtype,
        estimate=found,
        examples=len(examples),
        steps=steps,
        work=work,
        steps_looked_at=looked_at,
        budget=budget,
        largest=max(forest.num_tokens for forest in forests_of(paper, worst, budget)),
        longest=longest,
        longest_at=worst[0].where,
        room=int(memory * GIB) if memory is not None else room(device_for()),
        evaluation_seconds=_evaluations(found, paper, prepared.watched_examples, train, budget, steps),
        disk=_disk(found, prepared, train, steps, out or Path("runs")),
        price_per_hour=price_per_hour,
        ways=(),
    )
    return made if made.fits else replace(made, ways=tuple(_ways(folder, made, new_tokens)))


def _some_steps(prepared: Prepared, train: SftConfig, steps: int, epoch: int) -> list[list[Example]]:
    """The examples of steps that are evenly spread over the run, the first one among them."""
    epochs = max(train.epochs, steps * train.batch / epoch) if train.max_steps else train.epochs
    began, found = time.perf_counter(), []
    kin = kin_of(prepared.examples, train.together)
    for place in spread(steps, MOST_STEPS):
        indices = step_examples(
            place,
            num_examples=len(prepared.examples),
            batch=train.batch,
            epochs=epochs,
            seed=train.seed,
            mixture=prepared.mixture,
            kin=kin,
        )
        found.append([prepared.examples[int(index)] for index in indices])
        if time.perf_counter() - began > CUT_SECONDS:
            break
    return found


def _fastest(found: Estimate, paper: LanguageModel, steps: list[list[Example]]) -> int:
    """The budget that the rehearsal can be expected to choose."""
    typical = [steps[place] for place in spread(len(steps), TYPICAL)]

    def seconds(budget: int) -> float:
        return sum(found.seconds(work_of(forests_of(paper, step, budget))) for step in typical)

    return min(budgets_for(device_for()), key=seconds)


def _work(paper: LanguageModel, chosen: list[list[Example]], budget: int, steps: int) -> tuple[Work, int]:
    """Work of all steps, by those that are looked at; and how many these are."""
    total = Work()
    began, looked_at = time.perf_counter(), 0
    for examples in chosen:
        total, looked_at = total + work_of(forests_of(paper, examples, budget)), looked_at + 1
        if time.perf_counter() - began > CUT_SECONDS:
            break
    return total.times(steps / looked_at), looked_at


def _evaluations(found: Estimate, paper: LanguageModel, held_out: Sequence[Example], train: SftConfig, budget: int, steps: int) -> float:
    """Seconds of all passes over what is held out: at each evaluation, and for bits a token before and after."""
    if not held_out:
        return 0.0
    some = [held_out[place] for place in range(min(len(held_out), EVALUATED))]
    once = found.forward_seconds(work_of(forests_of(paper, some, budget))) * len(held_out) / len(some)
    every = train.eval_every or max(1, -(-steps // 4))
    return once * (2 + 1 + -(-steps // every))


def _disk(found: Estimate, prepared: Prepared, train: SftConfig, steps: int, out: Path) -> Disk:
    sizes = found.sizes
    checkpoint = sizes.trained + sizes.optimizer
    folder = prepared.examples.folder if isinstance(prepared.examples, PackedExamples) else None
    rows = sum(path.stat().st_size for path in folder.iterdir()) if folder is not None else 0
    while not out.exists():
        out = out.absolute().parent
    return Disk(
        checkpoints=checkpoint * min(train.keep + 1, steps),
        result=sizes.weights if train.full else sizes.adapters,
        rows=rows,
        free=shutil.disk_usage(out).free,
    )


def _ways(folder: Path, made: Plan, new_tokens: tuple[int, ...]) -> list[Way]:
    """Changes that would make the run fit: first those that leave its result as it is."""
    train = made.train
    found: list[Way] = []
    fitting = made.estimate.largest_pass(made.room) if made.estimate.measured is not None else 0
    if made.longest <= fitting < made.largest:
        found.append(Way(f"--budget {fitting}", made.estimate.peak(fitting), "smaller passes; the result stays the same"))
    changes: list[tuple[str, SftConfig, Dtype, str]] = []
    if not train.checkpointing:
        effect = "a third slower; the result stays the same"
        changes.append(("--checkpointing True", replace(train, checkpointing=True), made.dtype, effect))
    if made.estimate.sizes.wide:
        changes.append(("--dtype bf16", train, "bf16", "weights and passes in 16 bits"))
    if train.full:
        changes.append(("--full False", replace(train, full=False), made.dtype, "an adapter is trained instead of all weights"))
        if train.optim.optimizer == "adamw":
            thrifty = replace(OptimConfig(), optimizer="adafactor", lr=train.optim.lr, schedule=train.optim.schedule)
            changes.append(("--optimizer adafactor", replace(train, optim=thrifty), made.dtype, "another optimizer"))
    least = max(made.longest, min(made.largest, SMALL_BUDGET))
    for options, changed, dtype, effect in changes:
        try:
            other, _ = estimate(folder, changed, dtype, new_tokens=new_tokens, timed=False)
        except (ConfigError, ModelError):
            continue  # it cannot be had with what else is set
        for tokens, more in ((made.largest, ""), (least, f" --budget {least}")):
            if other.measured is not None and other.peak(tokens) <= made.room:
                found.append(Way(options + more, other.peak(tokens), effect))
                break
    if fitting and fitting < made.longest:
        found.append(Way("", made.estimate.peak(fitting), f"leave out rows of more than {fitting:,} tokens"))
    return found
