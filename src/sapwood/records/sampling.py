"""What goes into a sampler and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

from sapwood.errors import ConfigError
from sapwood.records.conversation import Message
from sapwood.records.media import MediaSpan


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to the point where the model speaks, rendered once by `chat`.

    A local engine reads `ids`; a remote server reads `messages`, `tools` and `template_arguments`.
    """

    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    text: str
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    media: tuple[MediaSpan, ...] = ()
    """Images and sounds, at their places in `ids`."""


class Ended(StrEnum):
    """How a completion ended."""

    STOP = "stop"
    """At a token or string that ends the turn."""
    LENGTH = "length"
    """At the limit of new tokens, of turns or of the context: as far as it came, it is an answer, and is judged."""
    ERROR = "error"
    """It failed; `Completion.error` says why. Never scored as a wrong answer."""


Alternatives = tuple[tuple[int, float], ...]
"""Token ids with their log-probabilities, most likely first."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer. `ids` holds the stop token where one was sampled; `text` does not."""

    prompt: Prompt
    ids: tuple[int, ...]
    text: str
    ended: Ended
    logprobs: tuple[float, ...] = ()
    """Of each id, at the sampling temperature, before biases, penalties, constraints and truncation. The engine's own: diagnosis."""
    error: str | None = None
    message: Message | None = None
    """The answer understood: content, reasoning, calls. None where nobody parsed it."""
    top_logprobs: tuple[Alternatives, ...] = ()
    """For each id the `SamplingParams.top_logprobs` most likely tokens, most likely first, by the same measure as `logprobs`."""
    prompt_logprobs: tuple[float, ...] = ()
    """Of the prompt's tokens but the first, at temperature 1, where `SamplingParams.prompt_logprobs` asked for them.

    Of a prompt with images or sounds, of the tokens behind the last of these.
    """
    prompt_top_logprobs: tuple[Alternatives, ...] = ()
    """The `SamplingParams.top_logprobs` most likely tokens in the places of `prompt_logprobs`, by the same measure."""
    counted: tuple[int, int] | None = None
    """Tokens of (prompt, answer) as a server counted them for its bill; None where the ids are what was read and written."""
    before: tuple[Completion, ...] = ()
    """Turns of the model that led here, oldest first, where tools or an environment answered between; each has its own prompt."""
    earned: float | None = None
    """What an environment gave for all turns together; None where there is none."""
    outgrown: bool = False
    """The context is full: that, and not `max_new_tokens`, cut it; or, where it failed, left no room for its first token."""

    @property
    def turns(self) -> tuple[Completion, ...]:
        """All turns of the model, this one last."""
        return (*self.before, self)


ConstraintKind = Literal["json", "json_schema", "regex", "choice", "lark", "call", "calls", "call or text", "calls or text"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a whole answer must be. Only tokens that can still lead there are drawn."""

    kind: ConstraintKind
    value: Any = None
    """By kind: nothing (any JSON object), a JSON schema, a regular expression, texts to choose from, a Lark grammar, or tools to call."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise ConfigError(f"A constraint's kind is {self.kind!r}; give one of {', '.join(get_args(ConstraintKind))}.")
        wanted: Any = {"json": type(None), "json_schema": (Mapping, bool), "regex": str, "lark": str}.get(self.kind, Sequence)
        if not isinstance(self.value, wanted) or (wanted is Sequence and (isinstance(self.value, str) or not self.value)):
            told = {"json": "nothing", "json_schema": "a JSON schema (a mapping)", "regex": "a text", "lark": "a text"}
            need = told.get(self.kind, "a sequence of texts" if self.kind == "choice" else "a sequence of tools, at least one")
            raise ConfigError(f"A constraint of kind {self.kind!r} has the value {str(self.value)[:60]!r}; give {need}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample. Temperature 0 is greedy. After biases and penalties the filters apply to the tempered distribution, in this order."""

    max_new_tokens: int = 256
    """Upper limit of sampled tokens, the stop token included."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches p."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Logits of tokens that stand in the prompt or the completion are divided by it where positive, multiplied where negative.

    1 is off. arXiv:1909.05858 §4.1, as transformers has it.
    """
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that stand in the completion. 0 is off. As in OpenAI's API."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens once for each time that they stand in the completion. 0 is off. As in OpenAI's API."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each token once, before penalties; -100 as good as bans it. As in OpenAI's API."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are cut from its text."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion beside the model's own; they are cut from its text."""
    top_logprobs: int = 0
    """How many most likely tokens to give with each sampled one."""
    prompt_logprobs: bool = False
    """Give the log-probabilities of the prompt too, by the code that training uses; it costs one more pass over the prompt."""
    constraint: Constraint | None = None
    """What the whole answer must be; None leaves it free. It holds from the first token, so a thought must not be open there."""
    seed: int = 0
    """Seed of the whole call; sequence i draws from its own stream (seed, i), whatever else is in the batch."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; give at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature is {self.temperature}; give 0 (greedy) or more.")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; give 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; give a number above 0 and at most 1.")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}; give a number from 0 to 1.")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}; give a number above 0, or 1 for none.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; give a finite number, or 0 for none.")
        if not all(math.isfinite(value) for _, value in self.logit_bias):
            raise ConfigError(f"logit_bias is {self.logit_bias}; give finite numbers.")
        if len(dict(self.logit_bias)) < len(self.logit_bias):
            raise ConfigError(f"logit_bias is {self.logit_bias}; give each token once.")
        if self.top_logprobs < 0:
            raise ConfigError(f"top_logprobs is {self.top_logprobs}; give 0 (none) or more.")
        if "" in self.stop:  # true of a bare string too
            raise ConfigError(
                f"stop is {self.stop!r}; give a tuple of strings, none of them empty: an empty one ends every answer at once."
            )
