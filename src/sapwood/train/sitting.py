"""What every loop does around its steps: the trained part of a model, what a run is recognised by, and how it ends early.

In: a model and a loop's config. Out: the model with its trainable part, a fingerprint for checkpoints, errors and sentences.
Left out on purpose: control flow. Loops share functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from sapwood.errors import ModelError, StorageError, TrainingError
from sapwood.model import LanguageModel, LoraConfig, add_lora, checkpoint_layers, train_whole, trainable_parameters
from sapwood.records import Example
from sapwood.train.rehearsal import Rehearsal

WEIGHTS_READ = 256
"""Weights of each tensor, evenly spread, by which a run recognises the model it was started with."""


class Trains(Protocol):
    """What a loop's config says of what is trained."""

    @property
    def full(self) -> bool:
        """All weights instead of an adapter."""
        ...

    @property
    def lora(self) -> LoraConfig:
        """The adapter."""
        ...

    @property
    def seed(self) -> int:
        """Of the adapter's start."""
        ...

    @property
    def checkpointing(self) -> bool:
        """Compute each layer's inside again in the backward pass."""
        ...


def passed(rehearsal: Rehearsal) -> str:
    """For people: what a rehearsal found."""
    return (
        f"Rehearsal passed: worst step ({rehearsal.worst_tokens:,} tokens), evaluation, save and reload; "
        f"{rehearsal.budget:,} tokens a pass, {rehearsal.peak_bytes / 2**30:.1f} GiB."
    )


def not_taken(step: int, norm: float, chosen: Sequence[Example]) -> TrainingError:
    """Of a step whose gradient is not finite: nothing was updated."""
    return TrainingError(
        f"The gradient of step {step} is {norm}; the step was not taken. Lower optim.lr, or look at its examples with `sapwood doctor`: "
        f"{', '.join(example.where for example in chosen[:5])}."
    )


def with_what_is_trained(model: LanguageModel, config: Trains) -> LanguageModel:
    """The model with its trainable part: everything, the adapter that it carries, or a fresh one."""
    if hasattr(model.module, "peft_config"):
        _refuse_beside_adapter(model, config)
    elif config.full:
        train_whole(model)
    else:
        model = add_lora(model, config.lora, config.seed)
    if config.checkpointing:
        checkpoint_layers(model)
    return model


def rescue(save: Callable[[], Path], say: Callable[[str], None]) -> None:
    """Save what was trained before the error that is under way goes on; a disk that refuses must not hide that error."""
    try:
        say(f"The run ends here. What was trained so far is kept in {save()}. Name the run directory to continue from there.")
    except StorageError as error:
        say(f"What was trained since the last checkpoint is lost: {error}")


def _refuse_beside_adapter(model: LanguageModel, config: Trains) -> None:
    """An adapter that the caller brought is trained as it is. Raises `ModelError` where that cannot be what was meant."""
    if config.full:
        raise ModelError("This model carries an adapter, and training all weights would change what lies below it. Merge it first.")
    if not trainable_parameters(model):
        raise ModelError("This model carries an adapter of which nothing is trainable. Load it with `is_trainable=True`, or merge it.")


def fingerprint(model: LanguageModel, rows: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of all that a result depends on: `rows` (a hash), every knob but those of speed and space, and the model."""
    shape = model.base.config.to_dict()
    for changing in ("_name_or_path", "transformers_version"):  # where it lies and who reads it do not change what is computed
        shape.pop(changing, None)
    facts = [str(model.dtype), type(model.base).__name__, shape, *([model.new_tokens] if model.new_tokens else [])]
    digest = hashlib.sha256(_as_bytes(facts))
    for name, parameter in model.base.named_parameters():
        flat = parameter.detach().flatten()
        digest.update(name.encode() + flat[:: max(1, len(flat) // WEIGHTS_READ)].float().cpu().numpy().tobytes())
    return {"rows": rows, "settings": hashlib.sha256(_as_bytes(settings)).hexdigest(), "model": digest.hexdigest()}


def _as_bytes(facts: Any) -> bytes:
    return orjson.dumps(facts, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)
