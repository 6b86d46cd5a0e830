"""A sequence classifier with one label, as reward models are: rows of token ids in, one number each out.

In: a folder (safetensors alone, no remote code), or a module that is held in code. Out: a number for each row, without gradients, as
transformers' own classes compute it: read behind the last token that is no padding.
Left out on purpose: classifiers of several labels, whose numbers are no reward, and sharing beginnings: each row is read by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification

from sapwood.errors import ModelError
from sapwood.model.load import device_for, loading

TOKENS = 8192
"""Tokens of one pass, its padding included."""
HEAD = "ForSequenceClassification"
"""What the names of such classes end in."""


class Classifier:
    """Made by `load`, or of a module of transformers."""

    def __init__(self, module: Any, padding: int | None, where: str) -> None:
        """`padding` is the tokenizer's id for it, by which the module finds where a row ends. Raises `ModelError`."""
        _refuse_unlike(module.config, [type(module).__name__], where)
        if padding is None:
            raise ModelError(
                f"{where}: its tokenizer has neither a padding token nor an end, so rows of different lengths cannot be read together. "
                "Name a `pad_token` in tokenizer_config.json."
            )
        module.config.get_text_config().pad_token_id = padding
        self.module, self._padding = module.eval(), padding

    @classmethod
    def load(cls, folder: Path, padding: int | None, *, device: str | torch.device = "auto") -> Classifier:
        """Load a folder, in the type that its weights have there. Raises `ModelError` for one that holds something else."""
        with loading(folder):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _refuse_unlike(config, config.architectures or [], str(folder))
        with loading(folder):
            module, found = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype="auto",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        if found["missing_keys"]:
            missing = ", ".join(sorted(found["missing_keys"])[:3])
            raise ModelError(f"{folder} lacks weights of its model ({missing}), which would be random. Fetch or save the folder again.")
        return cls(module.to(device_for(device)), padding, str(folder))

    def numbers(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """(B,) the number of each row of token ids, in its order; rows of about one length are read together, `TOKENS` at a time."""
        found = np.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
        while order:
            width = len(rows[order[0]])
            count = max(1, TOKENS // width)
            some, order = order[:count], order[count:]
            found[some] = self._pass([rows[place] for place in some], width)
        return found

    def _pass(self, rows: Sequence[Sequence[int]], width: int) -> NDArray[np.float64]:
        ids_BT = torch.full((len(rows), width), self._padding)
        mask_BT = torch.zeros_like(ids_BT)
        for place, row in enumerate(rows):
            ids_BT[place, : len(row)] = torch.tensor(row)
            mask_BT[place, : len(row)] = 1
        device = self.module.device
        with torch.inference_mode():
            logits_BL = self.module(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits
        values: NDArray[np.float64] = logits_BL[:, 0].double().cpu().numpy()
        return values


def _refuse_unlike(config: Any, kinds: Sequence[str], where: str) -> None:
    """Raise `ModelError` for anything but a classifier with one label: a head that is not there would be made of random numbers."""
    if not any(kind.endswith(HEAD) for kind in kinds):
        raise ModelError(
            f"{where} holds {' and '.join(kinds) or f'a {config.model_type} whose kind is not said'}, and a reward model is a …{HEAD} with "
            "one label. Name the folder of one; a language model on a server can judge by --judge-url."
        )
    if config.num_labels != 1:
        raise ModelError(
            f"{where} holds a classifier of {config.num_labels} labels, and a reward is one number. Name a model with num_labels=1; for "
            "one of these labels, write a function that asks it (FILE.py:NAME)."
        )
