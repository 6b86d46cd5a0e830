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
import psutil
import torch

from sapwood.errors import TrainingError
from sapwood.model import LanguageModel, save_adapter, saved_values
from sapwood.records import Example, facts_of
from sapwood.train.optimizer import Optimizer
from sapwood.train.result import save_whole
from sapwood.train.step import accumulate, evaluate, is_out_of_memory, tokens_in_a_pass

BUDGETS = (1024, 2048, 4096)
"""Unique tokens a micro-batch that are tried: larger ones fill the matrix products better, smaller ones the caches."""


@dataclass(frozen=True)
class Rehearsal:
    """What was found."""

    budget: int
    """Unique tokens a micro-batch, as chosen."""
    worst_tokens: int
    """Unique tokens of the largest example."""
    worst_seconds: float
    peak_bytes: int
    """The most memory that the process has held so far; where the system does not say, what it holds after the worst-case step."""


def rehearse(
    model: LanguageModel, optimizer: Optimizer, examples: Sequence[Example], held_out: Sequence[Example], run: Path, budget: int | None
) -> Rehearsal:
    """Try everything once. Raises `TrainingError`, `StorageError` or `ModelError` for what would have ended the run later."""
    place, worst_tokens = _largest(model, examples)
    worst = examples[place]
    by_size = [worst, *_longest(examples, besides=place)]
    try:
        _pass(model, [worst], worst_tokens)
        optimizer.clear()
        if budget is None:
            budget = _fastest(model, optimizer, by_size)
        full = _filled(model, by_size, max(budget, worst_tokens))
        seconds = _pass(model, full, budget)
    finally:
        optimizer.clear()
    peak = _peak_bytes()
    if held_out:
        evaluate(model, [held_out[_largest(model, held_out)[0]]], budget)
    if hasattr(model.module, "peft_config"):
        _save_and_reload(model, worst, run, budget)
    else:
        _save_whole_and_compare(model, run)
    return Rehearsal(budget, worst_tokens, seconds, peak)


def _longest(examples: Sequence[Example], besides: int) -> list[Example]:
    """The longest examples but one, as many as a pass could ever hold: not all of them, which may be millions."""
    order = np.argsort(-facts_of(examples).of("length"), kind="stable")[: max(BUDGETS)]
    return [examples[int(place)] for place in order if place != besides]


def _largest(model: LanguageModel, examples: Sequence[Example]) -> tuple[int, int]:
    """The place of the example whose pass is the largest, and its tokens: unique ones, or the longest row's where rows run alone."""
    facts = facts_of(examples)
    if not model.shares_prefixes:
        place = int(np.argmax(facts.of("longest")))
        return place, int(facts.of("longest")[place]) - 1
    length_B = facts.of("length")
    largest, most = 0, 0
    for place in np.argsort(-length_B, kind="stable"):
        if length_B[place] <= most:
            break  # unique tokens are fewer than row tokens: no later example can have more
        tokens = tokens_in_a_pass(model, examples[int(place)])
        if tokens > most:
            largest, most = int(place), tokens
    return largest, most


def _fastest(model: LanguageModel, optimizer: Optimizer, by_size: list[Example]) -> int:
    """The budget with the least time a unique token, among those whose memory the machine can be expected to have."""
    speeds: dict[int, float] = {}
    process = psutil.Process()
    for budget in BUDGETS:
        chosen = _filled(model, by_size, budget)
        before = process.memory_info().rss
        free = psutil.virtual_memory().available
        seconds = _pass(model, chosen, budget)
        optimizer.clear()
        grown = max(0, process.memory_info().rss - before)
        speeds[budget] = sum(tokens_in_a_pass(model, example) for example in chosen) / seconds
        if len(chosen) == len(by_size) or 3 * grown > free:
            break  # a larger budget would hold no more, or would not fit
    return max(speeds, key=lambda key: speeds[key])


def _filled(model: LanguageModel, by_size: list[Example], budget: int) -> list[Example]:
    """The largest examples that together fill one micro-batch."""
    chosen, total = [by_size[0]], tokens_in_a_pass(model, by_size[0])
    for example in by_size[1:]:
        total += tokens_in_a_pass(model, example)
        if total > budget:
            break
        chosen.append(example)
    return chosen


def _pass(model: LanguageModel, examples: list[Example], budget: int) -> float:
    begin = time.perf_counter()
    try:
        accumulate(model, examples, budget)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, TrainingError) or not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"The worst-case step ({sum(e.length for e in examples)} tokens, {examples[0].where}) does not fit into memory. "
            "Lower `budget`, leave out the longest rows, or choose a smaller model."
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
        if not np.isclose(before, after, rtol=1e-9, atol=0):
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


def _peak_bytes() -> int:
    try:
        import resource  # not on Windows
    except ImportError:
        return int(psutil.Process().memory_info().rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
