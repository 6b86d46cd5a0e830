"""A model in small: a few of its layers at their real widths with random weights, and all of it without any weights.

In: the folder of a model (its config.json is enough) and how it is to be trained. Out: `on_paper`, the whole model on torch's
meta device, whose parameters can be counted; `miniature`, a part that computes, whose time and memory can be measured. Both
go through the functions that training itself calls, so that a new option needs no second description here.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from sapwood.attention import NAME, for_text, register
from sapwood.errors import ConfigError, ModelError
from sapwood.model import Dtype, LanguageModel, LoraConfig, add_lora, checkpoint_layers
from sapwood.model.load import device_for, torch_dtype
from sapwood.model.lora import REWRITING
from sapwood.model.media import FAMILIES
from sapwood.model.new_tokens import make_room
from sapwood.train.sft import SftConfig

VOCABULARY = 256
"""Tokens of a miniature: its head is measured apart."""

_REFUSALS = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
"""What families raise that cannot be built in part, or without weights. Broad on purpose: each family reads its config with code of
its own, which fails in its own way on one that was cut down, and an estimate must end in a sentence."""


def config_of(folder: Path) -> Any:
    """The model's config. Raises `ModelError`."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _REFUSALS as error:
        raise ModelError(f"{folder}: config.json cannot be read: {' '.join(str(error).split())[:300]}") from error


def on_paper(folder: Path, config: SftConfig, dtype: Dtype, new_tokens: Collection[int] = ()) -> LanguageModel:
    """The whole model as it will be trained, without weights: for counting. Raises `ModelError`, `ConfigError`."""
    register()
    described = config_of(folder)
    family = FAMILIES.get(described.model_type)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind: Any = AutoModelForCausalLM if family is None else getattr(transformers, family.model)
            # the class of a media family takes its config, the automatic class makes one from it
            make = kind.from_config if family is None else kind._from_config
            module = make(described, dtype=torch_dtype(dtype), attn_implementation=for_text(described, NAME))
            model = LanguageModel(module, probe=False)
            if new_tokens:
                make_room(model, new_tokens)
                model.new_tokens = tuple(sorted(new_tokens))
            return _trainable(model, config, config.lora)
    except _REFUSALS as error:
        if isinstance(error, ConfigError | ModelError):
            raise
        raise ModelError(f"{folder}: this model cannot be laid out without its weights: {' '.join(str(error).split())[:300]}") from error


def miniature(folder: Path, config: SftConfig, dtype: Dtype, layers: int) -> LanguageModel:
    """`layers` layers of the model, evenly spread over its depth, as they will be trained. Raises `ModelError`."""
    register()
    text = config_of(folder).get_text_config()
    depth = int(text.num_hidden_layers)
    chosen = [(2 * number + 1) * depth // (2 * layers) for number in range(layers)]
    for name in ("layer_types", "mlp_layer_types"):
        kinds = getattr(text, name, None)
        if isinstance(kinds, list) and len(kinds) == depth:
            setattr(text, name, [kinds[place] for place in chosen])
    text.num_hidden_layers = layers
    text.vocab_size = VOCABULARY
    text.pad_token_id, text.bos_token_id, text.eos_token_id = None, 0, 0
    # what names single layers or ends of the model does not fit a part of it
    lora = replace(config.lora, layers=(), rank_pattern=(), alpha_pattern=(), modules_to_save=())
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            module = AutoModelForCausalLM.from_config(text, dtype=torch_dtype(dtype), attn_implementation=for_text(text, NAME))
            model = LanguageModel(module.to(device_for()).eval())
            try:
                return _trainable(model, config, lora)
            except ConfigError:  # patterns of the targets that match other layers alone
                return _trainable(model, config, replace(lora, targets=("all-linear",), exclude=()))
    except _REFUSALS as error:
        if isinstance(error, ConfigError):
            raise
        raise ModelError(f"{folder}: no part of this model can be built: {' '.join(str(error).split())[:300]}") from error


def _trainable(model: LanguageModel, config: SftConfig, lora: LoraConfig) -> LanguageModel:
    if config.full:
        model.module.requires_grad_(True)
    else:
        # a start that takes the weights apart would do so here, for nothing
        model = add_lora(model, replace(lora, init="default") if lora.init in REWRITING else lora, config.seed)
    if config.checkpointing:
        checkpoint_layers(model)
    return model
