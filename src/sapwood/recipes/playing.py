"""Answers of several turns: tools that the model may call, or an environment that answers it.

In: functions and classes of the user's own files, by name, or given in Python. Out: what offers them in prompts, and what plays a
sampler's answers out. Training sees the turns of the model alone; what a tool or an environment said stands in prompts.
Left out on purpose: both at once, for an environment can offer what it likes in its words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sapwood.chat import Chat
from sapwood.chat.functions import schema_of
from sapwood.errors import ConfigError
from sapwood.evaluate.environments import Environment, InEnvironment, items_by_prompt
from sapwood.evaluate.tool_turns import Tool, WithTools
from sapwood.evaluate.user_scorer import is_user_scorer, user_function
from sapwood.records import Conversation, Prompt, Sampler
from sapwood.train.policy import PolicyConfig
from sapwood.train.rollouts import Asked


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """What answers the model between its turns."""

    tools: tuple[str, ...] = ()
    """Python functions that the model may call while it answers, as FILE.py:NAME; what they say is never trained."""
    environment: str | None = None
    """A class that answers each turn, as FILE.py:NAME, with `reset(item)` and `step(answer)`; what it gives is the reward `environment`."""
    turns: int = 8
    """Most rounds of calls, or replies of the environment, in one answer; one that goes on then counts as cut."""

    def __post_init__(self) -> None:
        if self.tools and self.environment is not None:
            raise ConfigError("tools and environment are both given. Give one of them: an environment says by itself what can be done.")
        for name in (*self.tools, *([self.environment] if self.environment is not None else [])):
            if not is_user_scorer(name):
                raise ConfigError(f"{name!r} names no function. Give FILE.py:NAME, such as tools.py:search.")
        if self.turns < 1:
            raise ConfigError(f"turns is {self.turns}; give at least 1.")


@dataclass(frozen=True)
class Play:
    """What was named, loaded."""

    tools: Mapping[str, Tool]
    environment: Callable[[], Environment] | None
    turns: int

    @property
    def several(self) -> bool:
        """Whether an answer may take several turns."""
        return bool(self.tools) or self.environment is not None

    def refuse_unlike(self, policy: PolicyConfig, *, shares_prefixes: bool) -> None:
        """Raise `ConfigError` where an answer's turns could not count as one: without shared prefixes each is a row of its own."""
        if self.several and not shares_prefixes and (policy.loss in ("grpo", "gspo") or policy.correction == "sequence"):
            raise ConfigError(
                f"This model computes each row alone, so an answer's turns would count as answers of their own under loss {policy.loss} "
                f"with correction {policy.correction}. Choose --loss dapo or dr_grpo, and --correction none or token."
            )

    def offered(self, asked: Sequence[Asked], chat: Chat) -> list[Asked]:
        """The same prompts, with the tools on offer. Raises `DataError` for a function that cannot be offered."""
        if not self.tools:
            return list(asked)
        schemas = tuple(schema_of(tool) for tool in self.tools.values())
        found = []
        for one in asked:
            conversation = replace(one.item.conversation, tools=schemas)
            found.append(Asked(replace(one.item, conversation=conversation), prompt_of(chat, conversation)))
        return found

    def around(self, sampler: Sampler, asked: Sequence[Asked], chat: Chat) -> Sampler:
        """The sampler whose answers are played out. Raises `DataError` where an environment could not tell two prompts apart."""

        def prompt(conversation: Conversation) -> Prompt:
            return prompt_of(chat, conversation)

        if self.environment is not None:
            return InEnvironment(sampler, prompt, self.environment, items_by_prompt([(one.item, one.prompt) for one in asked]), self.turns)
        if self.tools:
            return WithTools(sampler, prompt, self.tools, self.turns)
        return sampler

    def longest(self, max_new_tokens: int) -> int:
        """Tokens that an answer may come to, replies left out: for the rehearsal of the worst case."""
        return max_new_tokens * (1 + self.turns) if self.several else max_new_tokens


def play_of(config: PlayConfig, tools: Sequence[Tool] = (), environment: Callable[[], Any] | None = None) -> Play:
    """What `config` names, and functions of the caller's own. Raises `ConfigError` for files and names that are not there, two tools of
    one name, and `turns` that nothing reads."""
    given = [*(user_function(name) for name in config.tools), *tools]
    names = [getattr(tool, "__name__", "tool") for tool in given]
    if len(set(names)) < len(names):
        raise ConfigError(f"The tools are {', '.join(names)}; give each another name, for the model calls them by it.")
    made = user_function(config.environment) if config.environment is not None else environment
    if made is not None and given:
        raise ConfigError("tools and environment are both given. Give one of them: an environment says by itself what can be done.")
    play = Play(dict(zip(names, given, strict=True)), made, config.turns)
    if not play.several and config.turns != PlayConfig.turns:
        raise ConfigError(f"turns is {config.turns}, and neither tools nor an environment would answer between them. Leave it out.")
    return play


def prompt_of(chat: Chat, conversation: Conversation) -> Prompt:
    """The prompt of a conversation, as any other prompt is made."""
    return chat.prompt(conversation.messages, conversation.tools, conversation.template_arguments, where=conversation.where)
