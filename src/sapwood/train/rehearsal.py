"""Before step 1: everything that could end a run after hours, tried in its first minute.

The worst-case step forward and backward, an evaluation step, a save of the real thing and a reload that gives the same
log-probabilities. Where the budget of a micro-batch is not given, it is chosen here by measurement. Nothing of it is
left behind: parameters, gradients and files are as before.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sapwood.errors import TrainingError
from sapwood.model import LanguageModel, save_adapter, saved_values
from sapwood.records import Example, facts_of
from sapwood.train.estimate import GIB, Estimate, duration, work_of
from sapwood.train.memory import Watch, give_back, peak_memory, resident_memory, room, synchronize
from sapwood.train.optimizer import Optimizer
from sapwood.train.result import save_whole
from sapwood.train.step import accumulate, evaluate, forests_of, is_out_of_memory, tokens_in_a_pass

BUDGETS = (1024, 2048, 4096)
"""Unique tokens a micro-batch that are tried: larger ones fill the matrix products better, smaller ones the caches."""
BUDGETS_ON_A_GPU = (4096, 8192, 16384, 32768)
"""The same where products are a hundred times as fast, and a pass has memory of its own."""
TYPICAL = 6
"""Steps of the run that are cut into passes for each budget, to see how many tokens it computes."""
REPEATS = {"cpu": 1e-9, "cuda": 1e-4}
"""Share by which a loss that is computed again may differ: a GPU may choose another order of sums."""
FAR = 0.15
"""A plan that is off by more than this share is said to be corrected."""
BRIEF = 1.0
"""Seconds under which a step's time is not held against its plan: there, the machine's other work is most of the difference."""
BRIEF_RUN = 60.0
"""Seconds of training below which nobody waits for a word on how long it will take."""
LOOKED_AT = 256
"""Of the examples with most row tokens, so many are tried for the most unique ones, beside the one with the longest row: of millions
of conversations that share their beginnings, each would have to be looked at to be sure of the last token."""

NOTICED = 64 << 20
"""Growth of the process from which the memory of a larger pass can be told."""
MOMENTS = 3
"""Bytes for each byte of what is trained that an update may take: moments and gradients."""


@dataclass(frozen=True)
class Rehearsal:
    """What was found."""

    budget: int
    """Unique tokens a micro-batch, as chosen."""
    worst_tokens: int
    """Unique tokens of the largest example."""
    worst_seconds: float
    """Forward and backward of the worst-case step."""
    peak_bytes: int
    """The most memory that the process has held so far, loading included; on a GPU, of the GPU's."""
    step_bytes: int = 0
    """The most that it held in the worst-case step, its update included."""
    update_seconds: float = 0.0
    planned: Planned | None = None
    """What had been expected of that step, where something was."""
    notes: tuple[str, ...] = ()
    """What a person should know: a budget that was lowered, a plan that was off."""


@dataclass(frozen=True)
class Planned:
    """What an estimate said of the worst-case step, and of the run."""

    seconds: float
    """Of its passes."""
    bytes: int
    update_seconds: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0
    """Of an average step of the run."""


def rehearse(
    model: LanguageModel,
    optimizer: Optimizer,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    run: Path,
    budget: int | None,
    *,
    batch: int | None = None,
    typical: Sequence[Sequence[Example]] = (),
    expected: Estimate | None = None,
) -> Rehearsal:
    """Try everything once: the step of the `batch` largest examples above all, its update included.

    Where no budget is given, that is taken with which the `typical` steps (by default the largest examples) take the least time. A budget
    whose pass would not fit into memory is lowered, which changes no result. What `expected` says of the step is compared with what is
    measured. Raises `TrainingError`, `StorageError` or `ModelError` for what would have ended the run later.
    """
    by_size, worst_tokens = worst_step(model, examples, batch or max(budgets_for(model.device)))
    worst = by_size[0]
    _refuse_hopeless(expected, worst, worst_tokens, model.device)
    asked = budget
    try:
        with Watch(model.device) as first:
            _pass(model, [worst], worst_tokens)
        optimizer.clear()
        if budget is None:
            budget = _fastest(model, optimizer, by_size, typical or [by_size])
        budget = min(budget, _affordable(first.growth, worst_tokens, optimizer))
        full = by_size if batch is not None else _filled(model, by_size, max(budget, worst_tokens))
        budget, seconds, update, peak = _whole_step(model, optimizer, full, budget, worst_tokens)
    finally:
        optimizer.clear()
    notes = []
    if asked is not None and budget < asked:
        notes.append(
            f"A pass of {asked:,} tokens does not fit into the {room(model.device) / GIB:.1f} GiB that the run may take: the budget is "
            f"lowered to {budget:,}, which changes the speed and not the result."
        )
    planned = _planned(expected, model, full, budget)
    if planned is not None:
        notes += [_compared(planned, seconds, peak), *_corrected(planned, seconds + update)]
    whole = peak_memory()
    if held_out:
        evaluate(model, [held_out[_largest(model, held_out)[0]]], budget)
    if hasattr(model.module, "peft_config"):
        _save_and_reload(model, worst, run, budget)
    else:
        _save_whole_and_compare(model, run)
    return Rehearsal(budget, worst_tokens, seconds, whole, peak, update, planned, tuple(notes))


def worst_step(model: LanguageModel, examples: Sequence[Example], batch: int) -> tuple[list[Example], int]:
    """The `batch` largest examples, the one with the largest pass first; and the tokens of that pass."""
    place, tokens = _largest(model, examples)
    order = np.argsort(-facts_of(examples).of("length"), kind="stable")[:batch]
    others = [examples[int(other)] for other in order if other != place]
    return [examples[place], *others[: batch - 1]], tokens


def budgets_for(device: torch.device) -> tuple[int, ...]:
    """The budgets that are tried."""
    return BUDGETS_ON_A_GPU if device.type == "cuda" else BUDGETS


def _refuse_hopeless(expected: Estimate | None, worst: Example, tokens: int, device: torch.device) -> None:
    """A largest example that is far beyond memory is refused before a pass over it: some systems end a process without a word."""
    if expected is None or expected.measured is None:
        return
    peak, most = expected.peak(tokens, first=True), room(device)
    if peak <= 1.25 * most:  # the estimate may be off; nearer than this, trying is safe enough
        return
    fitting = expected.largest_pass(most)
    raise TrainingError(
        f"The largest example ({worst.where}, {tokens:,} tokens in one pass) would take about {peak / GIB:.1f} GiB, and the run may "
        f"take {most / GIB:.1f}. {_advice(fitting)}"
    )


def _advice(fitting: int) -> str:
    longest = f"leave out rows of more than {fitting:,} tokens, " if fitting else ""
    return f"Give --checkpointing True, {longest}or take a smaller model; `sapwood plan` says what would fit."


def _affordable(growth: int, tokens: int, optimizer: Optimizer) -> int:
    """Tokens of the largest pass that memory allows, by how much a pass of `tokens` made the process grow."""
    if growth <= NOTICED:
        return sys.maxsize
    device = next(iter(optimizer.parameters.values())).device
    free = room(device) - resident_memory(device) + growth  # what the first pass took stays with the process, and serves the next
    free -= sum(parameter.numel() * parameter.element_size() for parameter in optimizer.parameters.values()) * MOMENTS
    return max(tokens, int(tokens * free / growth))


def _whole_step(model: LanguageModel, optimizer: Optimizer, full: list[Example], budget: int, least: int) -> tuple[int, float, float, int]:
    """(budget, seconds of the passes, seconds of the update, the most bytes held) of the worst-case step.

    Where memory runs out, the budget is halved until one example a pass is left. The update goes with a rate of 0 and is
    forgotten, so that nothing has changed.
    """
    while True:
        with Watch(model.device) as watch:
            try:
                seconds = _pass(model, full, budget)
                begin = time.perf_counter()
                _update(optimizer, full)
                synchronize(model.device)
                return budget, seconds, time.perf_counter() - begin, watch.seen()
            except _OutOfMemoryError as error:
                if budget <= least:
                    raise TrainingError(str(error)) from error
        optimizer.clear()
        give_back(model.device)
        budget = max(least, budget // 2)


def _update(optimizer: Optimizer, full: list[Example]) -> None:
    try:
        norm = optimizer.step(0.0)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "The optimizer's moments do not fit into memory. Train an adapter instead of all weights, or give --optimizer adafactor."
        ) from error
    finally:
        optimizer.forget()
    if not np.isfinite(norm):
        raise TrainingError(
            f"The gradient of the worst-case step is {norm}. Nothing was trained. Look at its examples with `sapwood doctor`: "
            f"{', '.join(example.where for example in full[:5])}."
        )


def _planned(expected: Estimate | None, model: LanguageModel, full: list[Example], budget: int) -> Planned | None:
    if expected is None or expected.measured is None:
        return None
    forests = forests_of(model, full, budget)
    largest = max(forest.num_tokens for forest in forests)
    seconds = expected.seconds(work_of(forests))
    return Planned(seconds, expected.peak(largest), expected.update_seconds, expected.steps, expected.step_seconds)


def _compared(planned: Planned, seconds: float, peak: int) -> str:
    """One line: predicted and measured, and by how much they differ. Steps of under a second say nothing of the clock."""
    memory, clock = peak / planned.bytes - 1, seconds / planned.seconds - 1
    brief = max(planned.seconds, seconds) < BRIEF
    word = "confirmed" if abs(memory) <= FAR and (brief or abs(clock) <= FAR) else "corrected"
    times = f"under {BRIEF:.0f} s, as planned" if brief else f"{planned.seconds:.1f} s planned, {seconds:.1f} measured ({clock:+.0%})"
    return (
        f"Plan {word} by the worst-case step: memory {planned.bytes / GIB:.2f} GiB planned, {peak / GIB:.2f} measured ({memory:+.0%}); "
        f"time {times}."
    )


def _corrected(planned: Planned, seconds: float) -> list[str]:
    """What the run will take by the measured step, update included, where a plan said what it would; nothing for what is over at once.

    A plan may be hours old, and the machine busier now: then every step takes longer by about the same factor.
    """
    step = planned.step_seconds * seconds / (planned.seconds + planned.update_seconds)
    total = planned.steps * step
    if total < BRIEF_RUN:
        return []
    return [
        f"An average step was planned to take {planned.step_seconds:.2g} s, and takes {step:.2g} by that measure: "
        f"about {duration(total)} of training."
    ]


def _largest(model: LanguageModel, examples: Sequence[Example]) -> tuple[int, int]:
    """The place of the example whose pass is the largest, and its tokens: unique ones, or the longest row's where rows run alone."""
    facts = facts_of(examples)
    if not model.shares_prefixes:
        place = int(np.argmax(facts.of("longest")))
        return place, int(facts.of("longest")[place]) - 1
    length_B, longest_B = facts.of("length"), facts.of("longest")
    largest, most = 0, 0
    for place in [int(np.argmax(longest_B)), *np.argsort(-length_B, kind="stable")[:LOOKED_AT].tolist()]:
        if length_B[place] <= most:
            continue  # unique tokens are fewer than row tokens
        tokens = tokens_in_a_pass(model, examples[place])
        if tokens > most:
            largest, most = place, tokens
    return largest, most


def _fastest(model: LanguageModel, optimizer: Optimizer, by_size: list[Example], typical: Sequence[Sequence[Example]]) -> int:
    """The budget with which steps take the least time, among those whose memory the machine can be expected to have.

    Two things count: the time of a token, which is measured on the largest examples, and how many tokens there are to compute. What
    examples of a step share is computed once in each pass, so a larger pass may have far fewer.
    """
    seconds: dict[int, float] = {}
    for budget in budgets_for(model.device):
        chosen = _filled(model, by_size, budget)
        with Watch(model.device) as watch:
            taken = _pass(model, chosen, budget)
        optimizer.clear()
        passes = [forests_of(model, step, budget) for step in typical]
        token = taken / work_of(forests_of(model, chosen, budget)).tokens
        seconds[budget] = token * sum(work_of(forests).tokens for forests in passes)
        one_each = all(len(forests) == 1 for forests in (*passes, forests_of(model, by_size, budget)))
        if one_each or watch.peak + 2 * watch.growth > room(model.device):
            break  # a larger budget would hold no more, or would not fit
    return min(seconds, key=lambda key: seconds[key])


def _filled(model: LanguageModel, by_size: list[Example], budget: int) -> list[Example]:
    """The largest examples that together fill one micro-batch."""
    chosen, total = [by_size[0]], tokens_in_a_pass(model, by_size[0])
    for example in by_size[1:]:
        total += tokens_in_a_pass(model, example)
        if total > budget:
            break
        chosen.append(example)
    return chosen


class _OutOfMemoryError(TrainingError):
    """A pass that does not fit."""


def _pass(model: LanguageModel, examples: list[Example], budget: int) -> float:
    """Seconds of a step's passes."""
    synchronize(model.device)
    begin = time.perf_counter()
    try:
        accumulate(model, examples, budget)
        synchronize(model.device)
    except (MemoryError, RuntimeError) as error:
        cause = error.__cause__
        if not is_out_of_memory(error) and not (isinstance(cause, Exception) and is_out_of_memory(cause)):
            raise
        raise _OutOfMemoryError(
            f"The worst-case step ({sum(e.length for e in examples)} tokens, {examples[0].where}) does not fit into memory. "
            f"Lower `budget`, or where it holds one example alone: {_advice(0)}"
        ) from error
    return time.perf_counter() - begin


def _save_and_reload(model: LanguageModel, example: Example, run: Path, budget: int) -> None:
    """Save the adapter with weights that matter, read it back, and compare what the model computes."""
    folder = run / ".rehearsal"
    parameters = {name: parameter for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))
        before = evaluate(model, [example], budget).loss
        save_adapter(model, folder)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.zero_()
            saved = saved_values(model, folder)
            for name, parameter in parameters.items():
                if name not in saved:
                    raise TrainingError(
                        f"The adapter was saved, but without {name}, which is trained. Nothing was trained yet. "
                        "This is a defect of the model family's saving; please report it with the model's name."
                    )
                parameter.copy_(saved[name])
        after = evaluate(model, [example], budget).loss
        if not np.isclose(before, after, rtol=REPEATS.get(model.device.type, REPEATS["cuda"]), atol=0):
            raise TrainingError(
                f"The adapter was saved and loaded again, but computes something else (loss {before} before, {after} after). "
                "Nothing was trained. This is a defect of the model family's saving; please report it with the model's name."
            )
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
        shutil.rmtree(folder, ignore_errors=True)


def _save_whole_and_compare(model: LanguageModel, run: Path) -> None:
    """Save all weights, load them as a user would, and compare bit for bit.

    By way of the model's class, because the files may name tensors otherwise (experts, say).
    """
    folder = run / ".rehearsal"
    try:
        save_whole(model, folder)
        loaded = type(model.base).from_pretrained(folder, dtype=model.dtype, local_files_only=True, use_safetensors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = dict(loaded.named_parameters())
    lost = [
        name for name, value in model.module.named_parameters() if name not in found or not torch.equal(found[name], value.detach().cpu())
    ]
    if lost:
        raise TrainingError(
            f"The model was saved and loaded again, but {len(lost)} of its tensors are not as they were, such as {lost[0]}. "
            "Nothing was trained. This is a defect of the model family's saving; please report it with the model's name."
        )
