"""`model:FOLDER`: a reward model as a reward, and as a scorer of evaluation.

In: the name of a classifier with one label (a folder, or an id of the hub), and answers. Out: a `Reward` of its numbers as they are, a
batch at a time; or a `Scorer`, whose scores lie in 0..1. A conversation is written by the reward model's own template and tokenizer, the
whole answer as the last message, and read without gradients. What cannot be read is a score without a value, never a 0; nothing is cut.
Left out on purpose: images and sounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sapwood.assets import resolve_model
from sapwood.chat import Chat, named_template
from sapwood.chat.files import default_template
from sapwood.errors import DataError, SapwoodError, TemplateError
from sapwood.evaluate.rewards import Reward
from sapwood.evaluate.scorer_names import scorer_named
from sapwood.evaluate.scorers import Scorer, guarded
from sapwood.model.classifier import Classifier
from sapwood.recipes.identity import hash_of_weights
from sapwood.records import Completion, Conversation, Item, Message, Score

PREFIX = "model:"


@dataclass(eq=False)
class RewardModel:
    """A classifier, and the chat that writes conversations for it. Its weights are loaded when it is first asked."""

    name: str
    chat: Chat
    folder: Path
    device: str = "auto"
    texts: Callable[[Item], str] | None = None
    """The text in front of an answer, where the two are read as plain texts, as TRL has it for rows of those; else conversations are."""
    classifier: Classifier | None = None

    def scores(self, items: Sequence[Item], completions: Sequence[Completion]) -> list[Score]:
        """One number an answer, as the model gives it; any finite number."""
        found = [Score(None)] * len(items)
        rows: dict[int, list[int]] = {}
        for place, (item, completion) in enumerate(zip(items, completions, strict=True)):
            try:
                rows[place] = self._row(item, completion)
            except SapwoodError as error:
                found[place] = Score(None, None, f"the reward model cannot read it: {error}")
        for place, number in zip(rows, self._loaded().numbers(list(rows.values())), strict=True):
            finite = math.isfinite(number)
            found[place] = (
                Score(float(number)) if finite else Score(None, None, f"the reward model gave {number}, which is no finite number")
            )
        return found

    def __call__(self, item: Item, completion: Completion) -> Score:
        """As a scorer of evaluation, whose scores lie in 0..1: the logistic function of the number. By the Bradley–Terry model, by which
        reward models are trained, that is how likely a person is to prefer this answer to one whose number is 0."""
        return guarded(self._share)(item, completion)

    def _share(self, item: Item, completion: Completion) -> Score:
        (score,) = self.scores([item], [completion])
        return score if score.value is None else Score(0.5 * (1 + math.tanh(score.value / 2)), f"{score.value:.6g}")

    def release(self) -> None:
        """Its weights' memory is wanted for something else; they are loaded again when it is asked."""
        self.classifier = None

    @property
    def padding(self) -> int | None:
        """The id of its tokenizer's padding, else of its end, as TRL takes it."""
        special = self.chat.special_tokens
        token = special.get("pad_token") or special.get("eos_token")
        return None if token is None else self.chat.tokens.id_of(token)

    def loaded(self) -> RewardModel:
        """With its weights. Raises `ModelError` for what is no reward model."""
        self._loaded()
        return self

    def _loaded(self) -> Classifier:
        if self.classifier is None:
            self.classifier = Classifier.load(self.folder, self.padding, device=self.device)
        return self.classifier

    def _row(self, item: Item, completion: Completion) -> list[int]:
        """Raises `DataError` for what is no text and for what is longer than the context, `TemplateError` as templates do."""
        if self.texts is not None:
            ids = self.chat.tokens.encode(self.texts(item) + self.chat.tokens.shield.cover(completion.text))
        else:
            messages = (*(completion.prompt.messages or item.conversation.messages), Message("assistant", completion.text))
            if any(message.media for message in messages):
                raise DataError("it holds images or sounds, and a reward model is given text alone.")
            ids = self.chat.whole(Conversation(messages, (), item.conversation.template_arguments, {}, item.conversation.source))
        if self.chat.context_length is not None and len(ids) > self.chat.context_length:
            raise DataError(f"it has {len(ids)} tokens with its question, and the reward model's context holds {self.chat.context_length}.")
        return ids


def is_reward_model(name: str) -> bool:
    """Whether a name is that of a reward model."""
    return name.startswith(PREFIX) and len(name) > len(PREFIX)


def reward_model(name: str) -> RewardModel:
    """The reward model `model:FOLDER`, looked at and loaded. Raises `AssetError`, `ModelError` or `TemplateError` for what is none."""
    folder = resolve_model(name.removeprefix(PREFIX))
    return RewardModel(name, reading(folder), folder).loaded()


def reading(folder: Path, *, texts: bool = False) -> Chat:
    """The chat by which a reward model reads. Raises `TemplateError` where it has no template of its own, and reads more than `texts`."""
    if default_template(folder) is None:
        if texts:
            return Chat.load(folder, template=named_template("plain", folder))
        raise TemplateError(
            f"{folder}: a reward model reads conversations by its own chat template, and there is none (no chat_template.jinja, no "
            "`chat_template` in tokenizer_config.json). Lay the one that it was trained with beside it as chat_template.jinja."
        )
    return Chat.load(folder)


def rewards_of_models(words: Sequence[str]) -> dict[str, Reward]:
    """The reward models among words as `--rewards` takes them, by their names, a weight behind a star left out."""
    names = [name for word in words if is_reward_model(name := word.rpartition("*")[0] or word)]
    return {name: Reward(name, batch=reward_model(name).scores) for name in dict.fromkeys(names)}


def told_apart(words: Sequence[str]) -> list[str]:
    """The words that name rewards, and what tells a reward model's weights apart: a run that goes on must be rewarded alike."""
    names = [name.removeprefix(PREFIX) for word in words if is_reward_model(name := word.rpartition("*")[0] or word)]
    return [*words, *(hash_of_weights(resolve_model(name)) for name in names)]


def scorer_by_name(name: str, *, allow_code: bool = False) -> Scorer:
    """As `scorer_named`, reward models among the names."""
    return reward_model(name) if is_reward_model(name) else scorer_named(name, allow_code=allow_code)
