"""`SFTConfig`: TRL's options of supervised fine-tuning.

In: keywords as people write them. Out: an object whose fields are the options that are honoured, with TRL's defaults.
Left out on purpose: what the options do. `settings` turns them into the knobs of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.trl.options import Options


@dataclass(init=False, eq=False)
class SFTConfig(Options):
    """Options of `SFTTrainer`. Any that TRL 1.16 or transformers 5 knows may be given, and those that the course still uses."""

    others: ClassVar[Mapping[str, Any]] = {
        "packing_strategy": "bfd",
        "truncation_mode": "keep_start",
        "pad_to_multiple_of": "auto",
        "loss_type": "nll",
        "save_safetensors": True,
    }

    max_length: int | None = None
    """Most tokens of a row; a longer one is refused by name, never cut. None: what the model can attend to."""
    dataset_text_field: str = "text"
    """Column of texts, where rows hold no conversation."""
    dataset_kwargs: Mapping[str, Any] | None = None
    """`skip_prepare_dataset`, for rows that hold `input_ids`; others are answered with a note."""
    completion_only_loss: bool | None = None
    """False trains the prompts of rows of `prompt` and `completion`, too. None and True train completions alone."""
    assistant_only_loss: bool | None = None
    """False trains every turn of conversations. None and True train the assistant's turns alone."""
    load_best_model_at_end: bool = False
    """Give back the weights of the evaluation with the lowest held-out loss; the one before the first step counts, too."""
    metric_for_best_model: str | None = None
    """`loss` is what is compared."""

    def _comment(self, name: str) -> None:
        """Notes on options that are honoured in part. Raises `ConfigError` for the part that nobody knows."""
        if name == "dataset_kwargs":
            for key, value in dict(self.dataset_kwargs or {}).items():
                if key in ("add_special_tokens", "append_concat_token"):
                    self.notes.append(
                        f"dataset_kwargs: {key}={value}: special tokens come from the template alone, and texts end in theirs."
                    )
                elif key != "skip_prepare_dataset":
                    known = ["skip_prepare_dataset", "add_special_tokens", "append_concat_token"]
                    raise ConfigError(f"SFTConfig(dataset_kwargs=…): unknown key {key!r}.{did_you_mean(key, known)} Leave it out.")
        elif name == "metric_for_best_model" and self.metric_for_best_model and not self.load_best_model_at_end:
            self.notes.append("metric_for_best_model: the held-out loss is what is compared.")

    def _special(self, name: str, value: Any) -> bool:
        if name == "loss_type" and value in ("nll", "chunked_nll"):
            self.notes.append(f"loss_type={value!r}: the head runs on the trained places only, and in chunks; the loss is the same.")
            return True
        return super()._special(name, value)
