"""Reward models as people hand them to TRL → Sapwood's rewards.

In: the name of a folder or an id of the hub, or a classifier of transformers that is held in code; its tokenizer, or none. Out: a
`Reward` of its numbers. Rows of texts are read as TRL reads them, the answer behind the row's prompt; rows of messages are written by the
reward model's template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sapwood.assets import resolve_model
from sapwood.chat import Chat
from sapwood.errors import ConfigError
from sapwood.evaluate.rewards import Reward
from sapwood.model.classifier import Classifier
from sapwood.recipes.reward_model import PREFIX, RewardModel, is_reward_model, reading
from sapwood.trl.models import written


@dataclass(frozen=True)
class ModelRewards:
    """Makes rewards of reward models."""

    conversational: bool
    processing: Any = None
    """One tokenizer, or a list with one a reward; those of functions are not looked at. None takes that of the model's folder."""
    place: Path | None = None
    """Takes the files of tokenizers that are held in code."""
    device: str = "cpu"

    def check(self, count: int) -> None:
        """Raise `ConfigError` for another number of tokenizers than of rewards."""
        if self.processing is not None and len(self._tokenizers) != count:
            raise ConfigError(
                f"reward_processing_classes holds {len(self._tokenizers)} tokenizers for {count} reward functions. Give one for each, "
                "None for a function."
            )

    @staticmethod
    def names(word: str) -> bool:
        """Whether a word is that of a reward model: `model:…`, a folder, or an id of the hub."""
        return is_reward_model(word) or Path(word).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", word) is not None

    def named(self, word: str, place: int, name: str, weight: float) -> Reward:
        """The reward model of a folder, loaded."""
        folder = resolve_model(word.removeprefix(PREFIX))
        return self._reward(RewardModel(name, self._chat(place, folder), folder, self.device).loaded(), weight)

    def held(self, module: Any, place: int, name: str, weight: float) -> Reward:
        """The reward model that is held in code, as it is."""
        where = str(getattr(module.config, "_name_or_path", "") or "")
        if self._tokenizer(place) is None and not (Path(where) / "tokenizer.json").is_file():
            raise ConfigError(
                f"reward_funcs holds a {type(module).__name__}, whose folder ({where or 'none'}) is not here. Give its tokenizer: "
                "reward_processing_classes=[tokenizer]."
            )
        model = RewardModel(name, self._chat(place, Path(where)), Path(where))
        return self._reward(replace(model, classifier=Classifier(module, model.padding, type(module).__name__)), weight)

    def _tokenizer(self, place: int) -> Any:
        return None if self.processing is None else self._tokenizers[place]

    @property
    def _tokenizers(self) -> Sequence[Any]:
        return self.processing if isinstance(self.processing, list | tuple) else [self.processing]

    def _chat(self, place: int, folder: Path) -> Chat:
        given = self._tokenizer(place)
        if given is not None:
            folder = Path(given) if isinstance(given, str | Path) else written(given, (self.place or Path()) / f"reward_{place}")
        return reading(folder, texts=not self.conversational)

    def _reward(self, model: RewardModel, weight: float) -> Reward:
        read = model if self.conversational else replace(model, texts=lambda item: str(item.meta["prompt"]))
        return Reward(model.name, batch=read.scores, weight=weight)
