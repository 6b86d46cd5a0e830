"""Adapters as files, in peft's own format: loading, saving, and reading back what was saved.

In: a `LanguageModel` with or without an adapter, and a folder. Out: the other of the two. A saved adapter loads in plain peft
on the very base it was trained on, also where its start has rewritten the base weights (PiSSA, OLoRA): it is then saved as the
difference from that start, with twice the rank.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sapwood.errors import CheckpointError, ConfigError, ModelError, storage
from sapwood.model.attending import fuse_attention
from sapwood.model.fused import fuse
from sapwood.model.gated import fuse_gates
from sapwood.model.language_model import LanguageModel
from sapwood.model.new_tokens import fuse_tokens, make_room
from sapwood.model.norms import fuse_norms
from sapwood.model.on_gpu import fuse_on_gpu
from sapwood.model.quantized import before_peft, is_quantized


def load_adapter(model: LanguageModel, folder: Path, *, trainable: bool = False, name: str = "default") -> LanguageModel:
    """Wrap the model in a saved adapter; its embedding grows by the tokens the adapter brings. More of them: see `several`.

    Raises `CheckpointError` where the folder holds none, or one of another model.
    """
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds no adapter_config.json with adapter_model.safetensors. Name a run's `adapter` folder.")
    before_peft()
    _make_room(model, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft only warns of tensors that are missing; they are an error below
            module = peft.PeftModel.from_pretrained(model.module, str(folder), adapter_name=name, is_trainable=trainable)
            wanted = set(peft.get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False))
        with safetensors.safe_open(folder / "adapter_model.safetensors", "pt") as file:
            saved = set(file.keys())
    except (RuntimeError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder}: this adapter does not fit the model: {' '.join(str(error).split())[:300]}") from error
    if saved != wanted:
        raise CheckpointError(
            f"{folder}: this adapter belongs to another model: {len(wanted - saved)} of the tensors it should hold are missing and "
            f"{len(saved - wanted)} have no layer here, such as {min(saved ^ wanted)}. Load the model it was trained on."
        )
    return wrapped_in(model, module)


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
        if model.taken_out:
            _save_as_difference(model, folder)


def _save_as_difference(model: LanguageModel, folder: Path) -> None:
    """Turn a saved adapter, whose base has lost s B0 A0, into one on the base as it was.

    W - s B0 A0 + s B A = W + s [B, -B0] [A; A0], a plain adapter of twice the rank (peft's conversion of PiSSA and OLoRA).
    """
    file, described = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = safetensors.torch.load_file(file)
    for name, key in _keys_of(model).items():
        start = model.taken_out.get(name)
        if start is not None:
            rows = ".lora_A." in name
            tensors[key] = torch.cat([tensors[key], start.cpu() if rows else -start.cpu()], dim=0 if rows else 1).contiguous()
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads(described.read_bytes())
    wider = math.sqrt(2) if config["use_rslora"] else 2
    config |= {"r": 2 * config["r"], "lora_alpha": wider * config["lora_alpha"], "init_lora_weights": True}
    config["rank_pattern"] = {key: 2 * rank for key, rank in config["rank_pattern"].items()}
    config["alpha_pattern"] = {key: wider * alpha for key, alpha in config["alpha_pattern"].items()}
    described.write_text(json.dumps(config, indent=2, sort_keys=True))


def saved_values(model: LanguageModel, folder: Path) -> dict[str, Tensor]:
    """What `save_adapter` wrote for each trained parameter of `model`, by the parameter's name; what is missing there is missing here."""
    with storage(folder, "read the adapter in"):
        saved = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    found = {name: saved[key] for name, key in _keys_of(model).items() if key in saved}
    for name in found.keys() & model.taken_out.keys():
        found[name] = torch.tensor_split(found[name], 2, dim=0 if ".lora_A." in name else 1)[0]
    return found


def _keys_of(model: LanguageModel) -> dict[str, str]:
    """The name in an adapter file of each trained parameter, by the parameter's own name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = peft.get_peft_model_state_dict(model.module, save_embedding_layers=False)
    by_place = {tensor.data_ptr(): key for key, tensor in written.items()}
    return {name: by_place[p.data_ptr()] for name, p in trainable_parameters(model).items() if p.data_ptr() in by_place}


def train_whole(model: LanguageModel) -> None:
    """Let every weight be trained. Raises `ConfigError` for weights of 4 bits, which have no gradients."""
    if is_quantized(model.module):
        raise ConfigError(
            "The base weights have 4 bits, and only an adapter on them can be trained. Leave --full out, or give --dtype bf16 or fp32."
        )
    model.module.requires_grad_(True)


def trainable_parameters(model: LanguageModel) -> dict[str, nn.Parameter]:
    """Names and parameters that training changes, in a stable order."""
    return {name: parameter for name, parameter in model.module.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers there are in a model, adapter included, and how many of them training changes."""

    trained: int
    total: int


def count_parameters(model: LanguageModel) -> Parameters:
    """Count the parameters; weights of 4 bits count each, not the bytes that hold two."""
    trained = total = 0
    for parameter in model.module.parameters():
        count = parameter.numel()
        quantized = getattr(parameter, "quant_state", None)
        total += math.prod(quantized.shape) if quantized is not None else count
        trained += count if parameter.requires_grad else 0
    return Parameters(trained, total)


def wrapped_in(model: LanguageModel, module: Any) -> LanguageModel:
    """The model with `module`, which wraps its own, and the fast paths in it."""
    fuse(module)
    fuse_norms(module)
    fuse_gates(module)
    fuse_attention(module)
    fuse_tokens(module)
    fuse_on_gpu(module)
    wrapped = LanguageModel(module, probe=False)
    wrapped.shares_prefixes, wrapped.notes, wrapped._own_head = model.shares_prefixes, model.notes, model._own_head
    wrapped.new_tokens = model.new_tokens
    return wrapped
