"""Questions whose answer takes tools: a model is measured as it is used, with functions that answer its calls.

In: names of functions in the user's own files, and items. Out: the functions, the items as they are then asked, and a sampler that plays
the calls out. The last word is what scorers read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sapwood.chat.functions import schema_of
from sapwood.errors import DataError, storage
from sapwood.evaluate.items import ANSWER, COPIES
from sapwood.evaluate.tool_turns import PromptOf, WithTools
from sapwood.recipes.playing import Play, PlayConfig, play_of
from sapwood.records import Item, Message, Sampler


@dataclass(frozen=True, kw_only=True)
class ToolsConfig:
    """What the model may call while it is measured."""

    tools: tuple[str, ...] = ()
    """Python functions that the model may call, as FILE.py:NAME: each question is played out, call and result, and the last word judged."""
    turns: int = 8
    """Most rounds of calls in one answer."""

    def __post_init__(self) -> None:
        PlayConfig(tools=self.tools, turns=self.turns)  # raises for what cannot be, before any work is done

    @cached_property
    def play(self) -> Play:
        """The functions, loaded. Raises `ConfigError` as `play_of`."""
        return play_of(PlayConfig(tools=self.tools, turns=self.turns))

    @property
    def written(self) -> list[str]:
        """What their files say: answers that other tools gave are others. Raises `StorageError`."""
        said = []
        for file in sorted({Path(name.rpartition(":")[0]) for name in self.tools}):
            with storage(file, "read"):
                said.append(file.read_text(encoding="utf-8"))
        return said

    def questions(self, items: Sequence[Item]) -> list[Item]:
        """The items as they are asked with these tools: up to the user's last word, each question and reference once.

        Raises `DataError` for an item whose answer is itself a call, which nobody would judge, and a function that cannot be offered.
        """
        if not self.tools:
            return list(items)
        schemas = tuple(schema_of(tool) for tool in self.play.tools.values())
        found: dict[str, Item] = {}
        for item in items:
            answer, messages = item.meta.get(ANSWER), item.conversation.messages
            if isinstance(answer, Message) and answer.tool_calls:
                raise DataError(
                    f"{item.conversation.where}: its last answer is a call. Where tools answer, what the model says in the end is judged: "
                    "give rows that end in words, or leave --tools out to judge the call itself."
                )
            end = max((place for place, message in enumerate(messages) if message.role == "user"), default=len(messages) - 1)
            made = replace(item, conversation=replace(item.conversation, messages=messages[: end + 1], tools=schemas))
            copies = int(item.meta.get(COPIES, 1)) + (int(found[made.id].meta[COPIES]) if made.id in found else 0)
            found[made.id] = replace(made, meta={**made.meta, COPIES: copies})
        return list(found.values())

    def around(self, sampler: Sampler, prompt: PromptOf) -> Sampler:
        """The sampler whose calls are played out; itself where there are no tools."""
        return WithTools(sampler, prompt, self.play.tools, self.turns) if self.tools else sampler
