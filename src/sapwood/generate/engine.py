"""The local `Sampler`: prompts in, completions out, in one process with training, on the same weights.

The prompts become a radix tree. Work goes through it in depth-first order: free slots take the next waiting sequences, the
nodes on their paths that are not yet computed are computed in forwards of at most `budget` tokens, and every running
sequence then takes one token a step. A sequence that ends leaves; new ones enter when enough slots are free.
What else is in the batch changes a sequence's logits by rounding only, and its random numbers not at all.
Left out on purpose: preemption (a sequence that was let in has room for all its tokens), speculative decoding.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.errors import ModelError
from sapwood.forest import MIN_SAVING
from sapwood.generate.answer import Answer, ChatLike
from sapwood.generate.decode import DecodeAttention, OwnCache
from sapwood.generate.media import PromptInputs
from sapwood.generate.prefill import compute
from sapwood.generate.row_by_row import RowByRow
from sapwood.generate.sampling import sample, uniforms
from sapwood.generate.tree import KEEP_FROM, Layers, Node, grow
from sapwood.model import LanguageModel
from sapwood.records import Completion, Prompt, SamplingParams
from sapwood.records.protocols import OnToken

SHARE_OF_MEMORY = 0.25
"""Share of the free memory that the caches of running sequences may take."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Sequence:
    """A prompt's place in the tree, and its answer so far."""

    answer: Answer
    end: Node
    uniform_T: NDArray[np.float64]
    length: int = 0
    """Tokens in its row of the cache."""
    base: int = 0
    """Depth of the first token in its row: what is above lies in kept nodes."""
    shift: int = 0
    """What is added to a sampled token's depth to get its position."""

    @property
    def room(self) -> int:
        """Tokens its row of the cache may come to hold."""
        return self.end.end - self.base + self.answer.limit


class Engine:
    """Generates with a `LanguageModel`. One call at a time; the weights may change between calls."""

    def __init__(
        self,
        model: LanguageModel,
        chat_like: ChatLike,
        *,
        slots: int = 32,
        budget: int = 2048,
        min_saving: int = MIN_SAVING,
        keep_from: int = KEEP_FROM,
    ) -> None:
        """At most `slots` sequences run at a time (fewer where memory is short); a prefill holds at most `budget` tokens.

        `min_saving` and `keep_from` trade speed only: see `generate.tree`.
        """
        assert slots > 0, "there is at least one slot"
        assert budget > 0, "a prefill holds at least one token"
        self.model = model
        self.chat_like = chat_like
        self.slots = slots
        self.budget = budget
        self.min_saving, self.keep_from = min_saving, keep_from

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in their order.

        A prompt that does not fit the context, or logits that are not finite, give a completion with `Ended.ERROR`; so does
        cancelling, with the tokens sampled by then. Raises `ModelError` for a token id that the model does not have.
        """
        answers = [Answer(index, prompt, params, self.chat_like) for index, prompt in enumerate(prompts)]
        self._check_ids(prompts)
        with _evaluating(self.model), torch.inference_mode():
            going = [answer for answer in answers if answer.ended is None]
            if going and self.model.shares_prefixes:
                _Batch(self, params, on_token, cancelled).run(going)
            elif going:
                _row_by_row(self.model, going, params, on_token, cancelled)
        return [answer.completion() for answer in answers]

    @cached_property
    def one_token(self) -> Layers:
        """Keys and values of one token in every layer: what the cache of a token looks like."""
        node = Node(np.zeros(1, dtype=np.int64), 0, None, 1, 1)
        compute(self.model, [node], PromptInputs([Prompt((), (0,), "")]))
        assert node.layers is not None, "compute gives a node its layers"
        return node.layers

    def _check_ids(self, prompts: Sequence[Prompt]) -> None:
        for index, prompt in enumerate(prompts):
            outside = [token for token in prompt.ids if not 0 <= token < self.model.vocabulary]
            if outside:
                raise ModelError(
                    f"Prompt {index} holds token id {outside[0]}, but the model knows ids below {self.model.vocabulary}. "
                    "Tokenizer and model do not belong together: load both from one folder."
                )


class _Batch:
    """The state of one call of `generate`."""

    def __init__(self, engine: Engine, params: SamplingParams, on_token: OnToken | None, cancelled: Callable[[], bool] | None) -> None:
        self.model = engine.model
        self.slots, self.budget = engine.slots, engine.budget
        self.min_saving, self.keep_from = engine.min_saving, engine.keep_from
        self.params, self.on_token, self.cancelled = params, on_token, cancelled
        self.cache = OwnCache(engine.slots, engine.one_token)
        self.waiting: deque[_Sequence] = deque()
        self.running: list[_Sequence] = []
        """The sequence in row i of the cache is the i-th."""
        self.groups: list[tuple[Node, Tensor | None]] = []
        self.memory = _memory_budget(self.model.device)

    def run(self, answers: Sequence[Answer]) -> None:
        """Answer until all have ended, or the call is cancelled."""
        self.inputs = PromptInputs([answer.prompt for answer in answers])
        for place, end in grow(
            self.inputs.keys, slots=self.slots, longest=self.budget, min_saving=self.min_saving, keep_from=self.keep_from
        ):
            answer = answers[place]
            uniform_T = uniforms(self.params.seed, answer.index, answer.limit)
            self.waiting.append(_Sequence(answer, end, uniform_T, shift=self.inputs.shift(place)))
        while (self.waiting or self.running) and not (self.cancelled and self.cancelled()):
            if self.waiting and self._refill_pays():
                self._refill()
            else:
                self._step()

    def _refill_pays(self) -> bool:
        """Prefill when a quarter of the slots is free: fewer and larger forwards, and no slot idle for long."""
        free = self.slots - len(self.running)
        return not self.running or (free >= max(1, self.slots // 4) and self._fits(self.waiting[0]))

    def _fits(self, candidate: _Sequence, entering: Sequence[_Sequence] = ()) -> bool:
        """Is there a slot, and memory for one more sequence at its greatest length?"""
        everyone = [*self.running, *entering]
        if len(everyone) >= self.slots:
            return False
        longest = max(sequence.room for sequence in [*everyone, candidate])
        return not everyone or (len(everyone) + 1) * longest * self.cache.token_bytes <= self.memory

    def _refill(self) -> None:
        """Let sequences in while there is room: one forward, then the first token of each whose path is computed."""
        entering, nodes = self._next()
        if nodes:
            compute(self.model, nodes, self.inputs)
        if not entering:
            return
        hidden = [sequence.end.end_hidden_D for sequence in entering]
        logits_NV = self.model.logits(torch.stack([state for state in hidden if state is not None]))
        uniform_N = np.array([sequence.uniform_T[0] for sequence in entering])
        _push([sequence.answer for sequence in entering], logits_NV, uniform_N, self.params, self.on_token)
        for sequence in entering:
            self.waiting.popleft()
            path = sequence.end.path
            copied = [node for node in path if not node.kept]
            if sequence.answer.ended is None:
                sequence.length = self.cache.place(len(self.running), copied)
                sequence.base = sequence.end.end - sequence.length
                self.running.append(sequence)
                path = copied
            for node in path:
                node.release()
        self._regroup()

    def _next(self) -> tuple[list[_Sequence], list[Node]]:
        """The next sequences to let in, and what to compute for them: at most `budget` tokens, depth first.

        A path longer than the budget is computed over several forwards; its sequence enters with the last.
        """
        entering: list[_Sequence] = []
        nodes: dict[Node, None] = {}
        tokens = 0
        for sequence in self.waiting:
            if not self._fits(sequence, entering):
                break
            for node in sequence.end.path:
                if node.layers is None and node not in nodes:
                    if nodes and tokens + len(node.tokens_T) > self.budget:
                        return entering, list(nodes)
                    nodes[node] = None
                    tokens += len(node.tokens_T)
            entering.append(sequence)
        return entering, list(nodes)

    def _step(self) -> None:
        """One token for each running sequence."""
        running = self.running
        length_N = np.array([sequence.length for sequence in running])
        base_N = np.array([sequence.base for sequence in running])
        tokens_N = np.array([sequence.answer.ids[-1] for sequence in running])
        self.cache.reserve(int(length_N.max()) + 1)
        device = self.model.device
        attention = DecodeAttention(self.cache, torch.from_numpy(length_N).to(device), torch.from_numpy(base_N).to(device), self.groups)
        shift_N = np.array([sequence.shift for sequence in running])
        logits_NV = self.model.logits(self.model.hidden(tokens_N, base_N + length_N + shift_N, attention))
        for sequence in running:
            sequence.length += 1
        uniform_N = np.array([sequence.uniform_T[len(sequence.answer.ids)] for sequence in running])
        _push([sequence.answer for sequence in running], logits_NV, uniform_N, self.params, self.on_token)
        self._leave()

    def _leave(self) -> None:
        """Let ended sequences go; the last rows of the cache move into the places they leave."""
        ended = [row for row, sequence in enumerate(self.running) if sequence.answer.ended is not None]
        for row in reversed(ended):
            for node in self.running[row].end.path:
                if node.kept:
                    node.release()
            last = self.running.pop()
            if row < len(self.running):
                self.cache.move(len(self.running), row, last.length)
                self.running[row] = last
        if ended:
            self._regroup()

    def _regroup(self) -> None:
        """Which rows lie below which kept node."""
        rows: dict[Node, list[int]] = {}
        for row, sequence in enumerate(self.running):
            for node in sequence.end.path:
                if node.kept:
                    rows.setdefault(node, []).append(row)
        everyone = len(self.running)
        self.groups = [
            (node, None if len(below) == everyone else torch.tensor(below, device=self.model.device)) for node, below in rows.items()
        ]


def _row_by_row(
    model: LanguageModel,
    answers: Sequence[Answer],
    params: SamplingParams,
    on_token: OnToken | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Answer one prompt after the other, for a model that cannot share prefixes."""
    logger.info("%s cannot share prefixes: it generates one prompt at a time, which is slower.", type(model.base).__name__)
    for answer in answers:
        if answer.prompt.media:
            answer.fail(f"{type(model.base).__name__} cannot share prefixes, and answers prompts of text alone. Choose another model.")
            continue
        row = RowByRow(model, answer.prompt.ids)
        uniform_T = uniforms(params.seed, answer.index, answer.limit)
        while answer.ended is None and not (cancelled and cancelled()):
            sampled = len(answer.ids)
            _push([answer], row.logits(), uniform_T[sampled : sampled + 1], params, on_token)
            row.extend(answer.ids[sampled:])


def _push(
    answers: Sequence[Answer], logits_NV: Tensor, uniform_N: NDArray[np.float64], params: SamplingParams, on_token: OnToken | None
) -> None:
    """Sample one token for each answer."""
    token_N, logprob_N = sample(logits_NV, params, uniform_N)
    for answer, token, logprob in zip(answers, token_N.tolist(), logprob_N.tolist(), strict=True):
        before = len(answer.ids)
        answer.push(token, logprob)
        if on_token is not None and len(answer.ids) > before:
            on_token(answer.index, token)


def _memory_budget(device: torch.device) -> float:
    """Bytes that the caches of running sequences may take."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return SHARE_OF_MEMORY * free


@contextmanager
def _evaluating(model: LanguageModel) -> Iterator[None]:
    """Without dropout, and as it was before afterwards."""
    training = model.module.training
    model.module.eval()
    try:
        yield
    finally:
        model.module.train(training)
