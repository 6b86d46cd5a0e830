"""LoRA adapters in peft's own layers and file format, so that a saved adapter loads in plain peft.

Hu et al., arXiv:2106.09685: h = W x + (alpha / r) B A x, with B = 0 at the start.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import safetensors
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sapwood.errors import CheckpointError, ConfigError, ModelError, storage
from sapwood.model.fused import fuse
from sapwood.model.language_model import LanguageModel
from sapwood.model.new_tokens import check_wrapped, fuse_tokens, make_room, token_indices
from sapwood.model.norms import fuse_norms


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter."""

    r: int = 16
    """Rank of the update. More can express more and costs more memory; 8 to 32 suits most tasks."""
    alpha: float = 32.0
    """Scale of the update: it is multiplied by alpha / r."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter, or `all-linear` for every one but the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732), which keeps large ranks stable."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"lora.r is {self.r}; give a rank of at least 1, or train all weights with `full: true`.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha is {self.alpha}; give a number above 0.")


def add_lora(model: LanguageModel, config: LoraConfig, seed: int) -> LanguageModel:
    """Wrap the model in a fresh adapter, in fp32 whatever the base is in. The draw of A depends on `seed` alone.

    Raises `ConfigError` where one of `targets` matches no layer of the model, `ModelError` for a model that carries an adapter.
    """
    if any(isinstance(layer, BaseTunerLayer) for layer in model.module.modules()):
        raise ModelError(
            "This model carries an adapter already, and a second one would mix with it. Load the model again, or merge the first."
        )
    _refuse_unknown_targets(model, config.targets)
    tokens = token_indices(model) if model.new_tokens else None
    targets: Any = config.targets[0] if config.targets == ("all-linear",) else list(config.targets)
    lora = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules=targets,
        use_rslora=config.rslora,
        exclude_modules=_outside_the_language_model(model),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=tokens,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            module = peft.get_peft_model(model.module, lora)
        except ValueError as error:
            raise ConfigError(f"lora.targets is {config.targets!r}: {error} {_linear_layers(model)}") from error
    wrapped = _same_but(model, module)
    if tokens is not None:
        check_wrapped(wrapped)
    return wrapped


def _refuse_unknown_targets(model: LanguageModel, targets: tuple[str, ...]) -> None:
    """peft is content if one name of several matches; a misspelt one among them would be accepted and ignored."""
    if targets == ("all-linear",):
        return
    names = [name for name, _ in model.module.named_modules()]
    unknown = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if unknown or not targets:
        found = f"no layer is called {', '.join(map(repr, unknown))}" if targets else "it is empty"
        raise ConfigError(f"lora.targets is {targets!r}: {found}. {_linear_layers(model)} Or give `all-linear` alone.")


def _outside_the_language_model(model: LanguageModel) -> str | None:
    """A pattern for the towers of images and sounds, which stay as they are; None where the model reads text alone."""
    decoder = model.base.get_decoder()
    name = next((name for name, module in model.base.named_modules() if module is decoder), "")
    own = {id(parameter) for part in (decoder, model.base.get_output_embeddings()) for parameter in part.parameters()}
    if not name or all(id(parameter) in own for parameter in model.base.parameters()):
        return None
    return rf"(?!{re.escape(name)}\.).*"


def _linear_layers(model: LanguageModel) -> str:
    names = sorted({name.rsplit(".", 1)[-1] for name, layer in model.module.named_modules() if isinstance(layer, nn.Linear)})
    return f"Linear layers here: {', '.join(names)}."


def load_adapter(model: LanguageModel, folder: Path, *, trainable: bool = False) -> LanguageModel:
    """Wrap the model in a saved adapter; its embedding grows by the tokens the adapter brings.

    Raises `CheckpointError` where the folder holds none, or one of another model.
    """
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds no adapter_config.json with adapter_model.safetensors. Name a run's `adapter` folder.")
    _make_room(model, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft only warns of tensors that are missing; they are an error below
            module = peft.PeftModel.from_pretrained(model.module, str(folder), is_trainable=trainable)
            wanted = set(peft.get_peft_model_state_dict(module, save_embedding_layers=False))
        with safetensors.safe_open(folder / "adapter_model.safetensors", "pt") as file:
            saved = set(file.keys())
    except (RuntimeError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder}: this adapter does not fit the model: {' '.join(str(error).split())[:300]}") from error
    if saved != wanted:
        raise CheckpointError(
            f"{folder}: this adapter belongs to another model: {len(wanted - saved)} of the tensors it should hold are missing and "
            f"{len(saved - wanted)} have no layer here, such as {min(saved ^ wanted)}. Load the model it was trained on."
        )
    return _same_but(model, module)


def _make_room(model: LanguageModel, folder: Path) -> None:
    """Grow the embedding for the tokens an adapter brings, and say so in the model's notes. Raises `CheckpointError`."""
    try:
        trained = json.loads((folder / "adapter_config.json").read_bytes()).get("trainable_token_indices")
        tokens = {int(token) for ids in (trained.values() if isinstance(trained, dict) else [trained or []]) for token in ids}
        grown = make_room(model, tokens) if tokens else None
    except ModelError as error:
        raise CheckpointError(f"{folder}: this adapter belongs to a model with another vocabulary. {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: this adapter does not fit the model: adapter_config.json cannot be read ({error}).") from error
    if grown is not None:
        model.notes.append(grown)
    model.new_tokens = tuple(sorted(tokens))


def save_adapter(model: LanguageModel, folder: Path) -> None:
    """Write the adapter in peft's format. Raises `StorageError` where the disk refuses."""
    with storage(folder, "write the adapter to"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks a hub about the base model's vocabulary
        model.module.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def trainable_parameters(model: LanguageModel) -> dict[str, nn.Parameter]:
    """Names and parameters that training changes, in a stable order."""
    return {name: parameter for name, parameter in model.module.named_parameters() if parameter.requires_grad}


def _same_but(model: LanguageModel, module: Any) -> LanguageModel:
    fuse(module)
    fuse_norms(module)
    fuse_tokens(module)
    wrapped = LanguageModel(module, probe=False)
    wrapped.shares_prefixes, wrapped.notes, wrapped._own_head = model.shares_prefixes, model.notes, model._own_head
    wrapped.new_tokens = model.new_tokens
    return wrapped
