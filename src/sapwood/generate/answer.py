"""One sequence from its first sampled token to its `Completion`: when it stops, and what text it gives.

In: sampled ids and log-probabilities, one at a time. Out: whether it has ended, and the `Completion`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sapwood.chat.parsing import Answer as Parsed
from sapwood.generate.penalties import Seen
from sapwood.generate.sampling import uniforms
from sapwood.generate.steering import Steering
from sapwood.records import Completion, Ended, Prompt, SamplingParams
from sapwood.records.sampling import Alternatives


class ChatLike(Protocol):
    """What the engine needs of room `chat`."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens at which generation stops."""
        ...

    @property
    def context_length(self) -> int | None:
        """Tokens the model can attend to; None where its files do not say."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def parse(self, answer: str | Sequence[int], prompt: Prompt) -> Parsed:
        """The message that an answer to a prompt is."""
        ...


class Answer:
    """The sampled tokens of one prompt: what `Session.add` gives. `ended` is None while it goes on."""

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        chat: ChatLike,
        *,
        index: int = 0,
        adapter: str | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """`index` tells samples of one seed apart: each draws from a stream of its own. `on_token` is called with each sampled token."""
        self.prompt, self.params, self.index, self.adapter, self.on_token = prompt, params, index, adapter, on_token
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[Alternatives] = []
        self.prompt_logprobs: tuple[float, ...] = ()
        self.prompt_top_logprobs: tuple[Alternatives, ...] = ()
        self.steering: Steering | None = None
        """Its way through the grammar of its constraint, if it has one."""
        self.ended: Ended | None = None
        self.error: str | None = None
        self._chat, self._stop, self._stop_ids = chat, params.stop, chat.stop_ids.union(params.stop_ids)
        # a token that gives text gives at least one byte, so a stop string lies in this many last tokens; a few more
        # keep the edge of the window, where a letter may be cut in half, away from it
        self._window = max((len(stop.encode()) for stop in params.stop), default=0) + 8
        room = math.inf if chat.context_length is None else chat.context_length - len(prompt.ids)
        self.limit = int(min(params.max_new_tokens, room))
        """Tokens that may be sampled."""
        if not prompt.ids:
            self.fail("The prompt has no tokens, so there is nothing to continue. Give it at least a BOS token.")
        elif self.limit < 1:
            self.fail(
                f"The prompt has {len(prompt.ids)} tokens and the model's context holds {chat.context_length}, its answer included. "
                "Shorten the prompt, or choose a model with a longer context."
            )

    @cached_property
    def uniform_T(self) -> NDArray[np.float64]:
        """The numbers in [0, 1) that it draws, one a token."""
        return uniforms(self.params.seed, self.index, self.limit)

    @cached_property
    def seen(self) -> Seen:
        """The tokens of its prompt, what it has told of the sampled ones, and biases."""
        return Seen(self.prompt.ids, self.limit, self.params.logit_bias)

    def fail(self, error: str) -> None:
        """End it with a reason; what was sampled stays."""
        self.ended, self.error = Ended.ERROR, error

    def cancel(self) -> None:
        """End it where it is, if it has not ended. Never scored as a wrong answer."""
        if self.ended is None:
            self.fail(f"Cancelled after {len(self.ids)} tokens.")

    def push(self, token: int, logprob: float, alternatives: Alternatives = ()) -> None:
        """Take one more token and see whether it ends the answer."""
        if not math.isfinite(logprob):
            self.fail(
                f"The model's logits after {len(self.ids)} sampled tokens are not finite numbers. "
                "Look at the loss of the run that made these weights, and try fp32."
            )
            return
        self.ids.append(token)
        self.logprobs.append(logprob)
        if alternatives:
            self.top_logprobs.append(agreeing(alternatives, token, logprob))
        if token in self._stop_ids or self._stopped():
            self.ended = Ended.STOP
        elif len(self.ids) >= self.limit:
            self.ended = Ended.LENGTH

    def completion(self) -> Completion:
        """The completion of an answer that has ended."""
        assert self.ended is not None, "an answer that goes on has no completion yet: cancel it first"
        text = self._text()
        by_text = self.ended is Ended.STOP and self.ids[-1] not in self._chat.stop_ids
        message = self._chat.parse(text if by_text else self.ids, self.prompt).message
        outgrown = self.ended is not Ended.STOP and len(self.ids) >= self.limit < self.params.max_new_tokens
        return Completion(
            self.prompt,
            tuple(self.ids),
            text,
            self.ended,
            tuple(self.logprobs),
            self.error,
            message,
            tuple(self.top_logprobs),
            self.prompt_logprobs,
            self.prompt_top_logprobs,
            outgrown=outgrown,
        )

    def _stopped(self) -> bool:
        if not self._stop:
            return False
        tail = self._chat.decode(self.ids[-self._window :])
        return any(stop in tail for stop in self._stop) and self._cut() is not None

    def _cut(self) -> str | None:
        """The text in front of the stop string that begins first; None if there is none."""
        text = self._chat.decode(self.ids)
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else None

    def _text(self) -> str:
        if self.ids and self.ids[-1] in self._stop_ids:
            return self._chat.decode(self.ids[:-1])
        cut = self._cut() if self.ended is Ended.STOP else None
        return self._chat.decode(self.ids) if cut is None else cut


def agreeing(alternatives: Alternatives, token: int, logprob: float) -> Alternatives:
    """The same, with the token's own log-probability where it is among them: rounded in another way it would be another number, and who
    looks whether a token was the most likely one compares numbers (lm-eval does)."""
    found = ((other, logprob if other == token else value) for other, value in alternatives)
    return tuple(sorted(found, key=lambda one: -one[1]))
