"""A stream of requests in, their tokens out as they are sampled: what generation and serving are made of.

`add` puts a prompt in the queue, `step` runs one forward and samples one token for each sequence of it, `cancel` on an answer ends it.
Requests that came between two steps are planned together, so that what they share is computed once; batches of them are let in
in the order in which they came. A sequence's tokens depend on its own parameters, seed and index alone, up to rounding of logits.
A session belongs to one thread: nothing here is locked. Left out on purpose: preemption, speculative decoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sapwood.errors import ConfigError, ModelError
from sapwood.generate.answer import Answer, agreeing
from sapwood.generate.drawing import draw
from sapwood.model import LanguageModel, packed
from sapwood.model.scoring import likeliest
from sapwood.records import Prompt, Row, SamplingParams

if TYPE_CHECKING:
    from sapwood.generate.engine import Engine


class Rows(Protocol):
    """The running sequences of a model: over a tree (`ForestRows`), or one at a time (`PlainRows`)."""

    running: list[Answer]

    @property
    def slots(self) -> int:
        """Sequences that run at a time."""
        ...

    def refusal(self, answer: Answer) -> str | None:
        """Why a prompt can never be answered, if it cannot."""
        ...

    def plan(self, answers: Sequence[Answer]) -> list[Answer]:
        """The order in which to let in answers that are new."""
        ...

    def withdraw(self, answer: Answer) -> None:
        """An answer that was planned will not be let in."""
        ...

    def fits(self, answer: Answer) -> bool:
        """Can it be let in now?"""
        ...

    def admit(self, waiting: Sequence[Answer]) -> tuple[list[Answer], Tensor | None]:
        """One forward for the first of those that wait: those that enter, if any, and the logits (N, V) behind their prompts."""
        ...

    def settle(self, entered: Sequence[Answer]) -> None:
        """They have their first token: those that have not ended run."""
        ...

    def decode(self) -> Tensor:
        """Logits (N, V) behind the last token of each running sequence."""
        ...

    def leave(self) -> None:
        """Let ended sequences go."""
        ...


class Session:
    """A queue of answers and those that run. Made by `Engine.open`; owned by one thread."""

    def __init__(self, engine: Engine, rows: Rows) -> None:
        self._engine, self._rows = engine, rows
        self._model = engine.model
        self._inbox: list[Answer] = []
        self._waiting: deque[Answer] = deque()
        self._over: list[Answer] = []
        self._in_chunks = False
        self._known: dict[nn.Module, Any] = {}
        """What layers know of themselves while sequences run: weights stay as they are until nothing does."""
        self._turned = False
        """Was the model put from training into evaluation, once while sequences run?"""

    @property
    def idle(self) -> bool:
        """Has every answer ended and been given back?"""
        return not (self._inbox or self._waiting or self._rows.running or self._over)

    @property
    def load(self) -> tuple[int, int]:
        """How many answers run, and how many wait."""
        return len(self._rows.running), len(self._inbox) + len(self._waiting)

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        index: int = 0,
        adapter: str | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Answer:
        """Put a prompt in the queue. n samples of it are n calls with indices 0 to n - 1: they share its cache, and draw apart.

        `adapter` names one of those that are loaded, or `BASE`; None is the model as it stands. `on_token` is called within `step` with
        each token, once those of the whole step are taken; it may cancel answers and add prompts. A prompt that can never be
        answered (it does not fit the context, or the memory) ends at once with `Ended.ERROR`. Raises `ModelError` for a token id that
        the model does not have, `ConfigError` for a constraint, an adapter or a bias that cannot be used.
        """
        check_ids(self._model, prompt)
        if wrong := [token for token, _ in params.logit_bias if not 0 <= token < self._model.vocabulary]:
            raise ConfigError(f"logit_bias names token id {wrong[0]}; the model knows ids below {self._model.vocabulary}. Leave it out.")
        self._engine.routes.check(adapter)
        answer = Answer(prompt, params, self._engine.chat_like, index=index, adapter=adapter, on_token=on_token)
        refusal = None if answer.ended else self._rows.refusal(answer)
        if refusal is not None:
            answer.fail(refusal)
        if params.constraint is not None:
            answer.steering = self._engine.steerer.begin(params.constraint)
        (self._inbox if answer.ended is None else self._over).append(answer)
        return answer

    def step(self) -> list[Answer]:
        """Run one forward, if there is anything to do; returns the answers that ended since the last step, each once.

        Those that were cancelled (`Answer.cancel`) are among them. A model that trains is without dropout from the first step until nothing
        is left to do, an error is raised, or the session is closed.
        """
        if self._model.module.training:
            self._model.module.eval()
            self._turned = True
        try:
            self._step()
        except BaseException:
            self._turn_back()
            raise
        over, self._over = self._over, []
        if self.idle:
            self._turn_back()
        return over

    def _step(self) -> None:
        with torch.inference_mode(), packed.in_force(self._known):
            self._clear()
            if not self._rows.running:
                self._known.clear()
                if self._inbox or self._waiting:
                    self._engine.check_weights()
            if self._inbox:
                self._waiting.extend(self._rows.plan(self._inbox))
                self._inbox.clear()
            if self._waiting and self._refill_pays():
                self._refill()
            elif self._rows.running:
                self._in_chunks = False
                self._push(self._rows.running, self._rows.decode())
            self._clear()

    def _turn_back(self) -> None:
        """Let the model train again, if it did."""
        if self._turned:
            self._turned = False
            self._model.module.train()

    def close(self) -> None:
        """Cancel what has not ended, and give its memory back. What the tree holds stays."""
        for answer in (*self._inbox, *self._waiting, *self._rows.running):
            answer.cancel()
        self._clear()
        self._turn_back()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _refill_pays(self) -> bool:
        """Prefill when a quarter of the slots is free: fewer and larger forwards, and no slot idle for long.

        A prompt that takes several forwards lets those that run go on between them.
        """
        running, slots = len(self._rows.running), self._rows.slots
        if not running:
            return True
        return not self._in_chunks and slots - running >= max(1, slots // 4) and self._rows.fits(self._waiting[0])

    def _refill(self) -> None:
        """One forward for those that wait, then the first token of each whose path is computed."""
        entered, logits_NV = self._rows.admit(self._waiting)
        self._in_chunks = not entered
        if logits_NV is None:
            return
        for answer in entered:
            self._waiting.popleft()
            if answer.params.prompt_logprobs:
                self._measure_prompt(answer)
        self._push(entered, logits_NV, settle=True)

    def _push(self, answers: Sequence[Answer], logits_NV: Tensor, *, settle: bool = False) -> None:
        """Sample one token for each answer. Callers are told last: what they raise finds everything in order."""
        answers = list(answers)
        for answer in answers:
            if answer.steering is not None and answer.steering.problem is not None:
                answer.fail(answer.steering.problem)
        lengths = [len(answer.ids) for answer in answers]
        for answer, drawn in zip(answers, draw(logits_NV, answers), strict=True):
            if answer.ended is None:
                answer.push(*drawn)
        going = [answer for answer in answers if answer.steering is not None and answer.ended is None]
        if going:
            self._engine.steerer.advance([(answer.steering, answer.ids[-1]) for answer in going if answer.steering is not None])
        if settle:
            self._over += [answer for answer in answers if answer.ended is not None]
            self._rows.settle(answers)
        for answer, length in zip(answers, lengths, strict=True):
            if answer.on_token is not None and len(answer.ids) > length:
                answer.on_token(answer.ids[-1])

    def _measure_prompt(self, answer: Answer) -> None:
        """How likely each token of the prompt but the first is, by the path that training takes; with images or sounds, of those behind
        the last. And what else was likely there, where that was asked for."""
        ids, media = np.array(answer.prompt.ids, dtype=np.int64), answer.prompt.media
        begin = max((int(span.places_F[-1]) + 1 for span in media), default=1)
        if begin >= len(ids):
            return
        row = Row(ids[:begin], ids[begin:], np.ones(len(ids) - begin, np.float32), media)
        with self._engine.routes.of([answer.adapter] * len(ids)):
            answer.prompt_logprobs = tuple(self._model.logprobs([row])[0].tolist())
            if count := answer.params.top_logprobs:
                tops = map(tuple, likeliest(self._model, row, count))
                tokens = row.completion_T.tolist()
                answer.prompt_top_logprobs = tuple(map(agreeing, tops, tokens, answer.prompt_logprobs))

    def _clear(self) -> None:
        """Let go what has ended, in the queue and in the rows."""
        for answer in [answer for answer in self._waiting if answer.ended is not None]:
            self._waiting.remove(answer)
            self._rows.withdraw(answer)
            self._over.append(answer)
        ended = [answer for answer in (*self._inbox, *self._rows.running) if answer.ended is not None]
        if ended:
            self._over += ended
            self._inbox = [answer for answer in self._inbox if answer.ended is None]
            self._rows.leave()


def check_ids(model: LanguageModel, prompt: Prompt, name: str = "A prompt") -> None:
    """Raises `ModelError` for a token id that the model does not have."""
    ids = np.array(prompt.ids, dtype=np.int64)
    outside = ids[(ids < 0) | (ids >= model.vocabulary)]
    if len(outside):
        raise ModelError(
            f"{name} holds token id {outside[0]}, but the model knows ids below {model.vocabulary}. "
            "Tokenizer and model do not belong together: load both from one folder."
        )


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Without dropout, and as it was before afterwards. Costs nothing where it is so already."""
    if not model.module.training:
        yield
        return
    model.module.eval()
    try:
        yield
    finally:
        model.module.train()
