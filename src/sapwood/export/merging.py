"""Adapter and base as one set of weights: merged in fp32, saved in a stated type, with all that others need to chat with it.

In: a model with an adapter, in fp32, on the very base it was trained on (rounded as it was then). Out: a folder that
transformers, vLLM and llama.cpp's converter load: weights, config, tokenizer, chat template, stop tokens.
W + (alpha / r) B A is formed in fp32 and rounded once, to the type that is saved. Trained rows of new tokens take their places in
both embeddings, which stay tied where they are.
Left out on purpose: merging into quantized weights, which would round what was trained away (`widen` takes their base apart first).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.utils import logging as transformers_logging

from sapwood.errors import ExportError, storage
from sapwood.model import LanguageModel
from sapwood.model.quantized import is_quantized

SavedType = Literal["fp32", "bf16", "fp16"]
"""Type of saved weights."""

TYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def widen(model: LanguageModel) -> LanguageModel:
    """The same model, computing in fp32 (fp64 stays): its weights keep the values they were rounded to. In place.

    Weights of 4 bits become what they stand for. An adapter is put on afterwards.
    """
    if is_quantized(model.module):
        model.module = model.module.dequantize()
    if model.dtype in (torch.bfloat16, torch.float16):
        model.module.float()
    return model


def merge(model: LanguageModel) -> LanguageModel:
    """The model with its adapter in its weights. The model that is given is used up.

    A model without an adapter comes back as it is. Raises `ExportError` for weights that are not finite, or quantized ones.
    """
    if not hasattr(model.module, "merge_and_unload"):
        return model
    if is_quantized(model.module):
        raise ExportError("This base is quantized; merging would round away what was trained. Load it dequantized before merging.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = model.module.merge_and_unload(safe_merge=True)
        except ValueError as error:  # what peft says of a merge that is not finite
            raise ExportError(f"The adapter cannot be merged: {error}") from error
    _keep_ties_true(module)
    merged = LanguageModel(module, probe=False)
    merged.shares_prefixes, merged.notes, merged._own_head = model.shares_prefixes, model.notes, model._own_head
    return merged


def _keep_ties_true(module: Any) -> None:
    """Config and weights must say the same of the two embeddings: saving drops the head's of a model that calls them tied."""
    head, table = module.get_output_embeddings(), module.get_input_embeddings()
    config = module.config.get_text_config()
    tied = bool(getattr(module.config, "tie_word_embeddings", False) or getattr(config, "tie_word_embeddings", False))
    if head is None or not tied or head.weight is table.weight:
        return
    if torch.equal(head.weight, table.weight):
        head.weight = table.weight
    else:  # the head was trained by itself
        module.config.tie_word_embeddings = config.tie_word_embeddings = False


def save_weights(model: LanguageModel, folder: Path, dtype: SavedType, files: Mapping[str, bytes]) -> None:
    """Write a merged model in place of nothing: `folder` is made. The model is rounded to `dtype`, and stays so.

    `files` lie beside it, by name: tokenizer, template, stop tokens (`Chat.saved_files`).
    Raises `StorageError` where the disk refuses, `ExportError` for a weight that fp16 cannot hold.
    """
    module = model.module
    if dtype == "fp16":
        largest = max(float(parameter.detach().abs().max()) for parameter in module.parameters())
        if largest > torch.finfo(torch.float16).max:
            raise ExportError(f"A weight of {largest:.3g} does not fit fp16, whose largest number is 65504. Save as bf16 or fp32.")
    module.to(TYPES[dtype])
    module.config.dtype = TYPES[dtype]
    transformers_logging.disable_progress_bar()
    try:
        with storage(folder, "write the model to"):
            module.save_pretrained(str(folder))
            for name, content in files.items():
                (folder / name).write_bytes(content)
    finally:
        transformers_logging.enable_progress_bar()
