"""One sequence from its first sampled token to its `Completion`: when it stops, and what text it gives.

In: sampled ids and log-probabilities, one at a time. Out: whether it has ended, and the `Completion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from sapwood.chat.parsing import Answer as Parsed
from sapwood.records import Completion, Ended, Prompt, SamplingParams


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
    """The sampled tokens of one prompt. `ended` is None while it goes on."""

    def __init__(self, index: int, prompt: Prompt, params: SamplingParams, chat: ChatLike) -> None:
        self.index = index
        """Place of the prompt in the call."""
        self.prompt = prompt
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.ended: Ended | None = None
        self.error: str | None = None
        self._chat, self._stop = chat, params.stop
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

    def fail(self, error: str) -> None:
        """End it with a reason; what was sampled stays."""
        self.ended, self.error = Ended.ERROR, error

    def push(self, token: int, logprob: float) -> None:
        """Take one more token and see whether it ends the answer."""
        if not math.isfinite(logprob):
            self.fail(
                f"The model's logits after {len(self.ids)} sampled tokens are not finite numbers. "
                "Look at the loss of the run that made these weights, and try fp32."
            )
            return
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self._chat.stop_ids or self._stopped():
            self.ended = Ended.STOP
        elif len(self.ids) >= self.limit:
            self.ended = Ended.LENGTH

    def completion(self) -> Completion:
        """The completion. One that has not ended was cancelled: an `Ended.ERROR`, for it must never be scored as a wrong answer."""
        if self.ended is None:
            self.fail(f"Cancelled after {len(self.ids)} tokens.")
        assert self.ended is not None
        text = self._text()
        by_text = self._stop and self.ended is Ended.STOP and self.ids[-1] not in self._chat.stop_ids
        message = self._chat.parse(text if by_text else self.ids, self.prompt).message
        return Completion(self.prompt, tuple(self.ids), text, self.ended, tuple(self.logprobs), self.error, message)

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
        if self.ids and self.ids[-1] in self._chat.stop_ids:
            return self._chat.decode(self.ids[:-1])
        cut = self._cut() if self.ended is Ended.STOP else None
        return self._chat.decode(self.ids) if cut is None else cut
