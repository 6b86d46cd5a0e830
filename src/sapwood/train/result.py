"""What a run leaves behind: `adapter/`, or `model/` where all weights were trained. Whole, or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers.utils import logging as transformers_logging

from sapwood.errors import storage
from sapwood.model import LanguageModel, save_adapter


def save_result(model: LanguageModel, run: Path, beside: Mapping[str, bytes]) -> Path:
    """Write the adapter, or all weights of a model without one, in place of what a former sitting left.

    `beside` are files to lie in the same folder, by name: tokenizer, template, stop tokens. Raises `StorageError`.
    """
    adapter = hasattr(model.module, "peft_config")
    path = run / ("adapter" if adapter else "model")
    temporary = run / f".{path.name}.tmp"
    with storage(path, "write"):
        shutil.rmtree(temporary, ignore_errors=True)
        if adapter:
            save_adapter(model, temporary)
        else:
            save_whole(model, temporary)
        for name, content in beside.items():
            (temporary / name).write_bytes(content)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    return path


def save_whole(model: LanguageModel, folder: Path) -> None:
    """Write all weights as transformers does, as safetensors. Raises `StorageError` where the disk refuses."""
    transformers_logging.disable_progress_bar()
    try:
        with storage(folder, "write the model to"):
            model.module.save_pretrained(str(folder))
    finally:
        transformers_logging.enable_progress_bar()
