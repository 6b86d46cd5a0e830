"""A reward model's folder, but tiny: random weights with a head of one label; and what transformers itself makes of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from tiny.folder import write_model


def write_reward_model(folder: Path, *, labels: int = 1, seed: int = 3, **settings: Any) -> Path:
    """Write one, with the tokenizer and template of `write_model`, and return it."""
    write_model(folder, **settings)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=labels)
    torch.manual_seed(seed)
    model = transformers.LlamaForSequenceClassification(config)
    for parameter in model.parameters():  # as initialised, all answers are about alike to it
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def by_transformers(folder: Path, asked: Sequence[str | Sequence[Mapping[str, str]]]) -> list[float]:
    """The number of each conversation (or text), one at a time, with nothing of Sapwood's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    found = []
    for one in asked:
        text = one if isinstance(one, str) else tokenizer.apply_chat_template(one, tokenize=False)
        with torch.no_grad():
            found.append(float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]))
    return found
