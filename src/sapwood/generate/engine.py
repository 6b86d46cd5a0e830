"""The local `Sampler`: prompts in, completions out, in one process with training, on the same weights.

An engine holds the tree of what was computed; its sessions run sequences over it. One call of `generate` is a session that is fed at
once and stepped until it is idle: there is one path. Weights may change while nothing runs: what was computed with the old ones is
then forgotten. What else is in the batch changes a sequence's logits by rounding only, and its random numbers not at all.
An engine belongs to one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from typing import Literal

import numpy as np
import psutil
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from sapwood.errors import ModelError
from sapwood.forest import MIN_SAVING
from sapwood.generate.answer import ChatLike
from sapwood.generate.forest_rows import ForestRows
from sapwood.generate.kept import Apart, Layers
from sapwood.generate.media import PromptInput
from sapwood.generate.padded import PaddedStep
from sapwood.generate.prefill import compute
from sapwood.generate.row_by_row import PlainRows
from sapwood.generate.session import Rows, Session, check_ids, evaluating
from sapwood.generate.static import StaticMemory, StaticStep
from sapwood.generate.steering import Steerer
from sapwood.generate.steps import DecodeStep
from sapwood.generate.tree import KEEP_FROM, Node, Tree
from sapwood.model import LanguageModel, packed
from sapwood.model.attending import fuse_attention
from sapwood.model.gated import fuse_gates
from sapwood.model.layers import fuse_layers
from sapwood.model.norms import fuse_norms
from sapwood.model.packed import packed_bytes
from sapwood.model.routes import Routes
from sapwood.records import Completion, Prompt, SamplingParams
from sapwood.records.protocols import OnToken

SHARE_OF_MEMORY = 0.25
"""Share of the free memory that keys and values may take, and packed weights, where nothing else is said."""

StepKind = Literal["padded", "static"]
"""How one token of each running sequence is computed: in shapes that are needed, or in few shapes that a CUDA graph can hold."""

logger = logging.getLogger(__name__)


class Engine:
    """Generates with a `LanguageModel`."""

    def __init__(
        self,
        model: LanguageModel,
        chat_like: ChatLike,
        *,
        slots: int = 32,
        budget: int = 2048,
        memory: int | None = None,
        min_saving: int = MIN_SAVING,
        keep_from: int = KEEP_FROM,
        pack: bool | None = None,
        step: StepKind | None = None,
    ) -> None:
        """At most `slots` sequences run at a time (fewer where memory is short); a prefill holds at most `budget` tokens.

        `memory` is what keys and values may take, in bytes; None is a share of what is free when a session opens.
        `min_saving` and `keep_from` trade speed only: see `generate.tree`. `pack` lays a second copy of the weights out for inference
        on a CPU (`model.packed`), which is faster; None does so where that takes less than a quarter of the free memory. `step` None is
        "static" on a GPU, and takes all of `memory` with the first token; else it is "padded".
        """
        assert slots > 0, "there is at least one slot"
        assert budget > 0, "a prefill holds at least one token"
        self.model = model
        self.chat_like = chat_like
        self.slots, self.budget, self.memory, self.keep_from = slots, budget, memory, keep_from
        if model.device.type == "cpu":
            fuse_norms(model.module)
            fuse_gates(model.module)
            fuse_attention(model.module)
            if pack or (pack is None and packed_bytes(model.module) < SHARE_OF_MEMORY * _free_memory(model.device)):
                packed.pack(model.module)
                fuse_layers(model.module)
        self.routes = Routes(model)
        """How adapters share a batch."""
        self.kind = step or step_for(model.device)
        self._static: StaticMemory | None = None
        self._addresses: Hashable = None
        self._tree = Tree(longest=budget, min_saving=min_saving)
        self._weights: tuple[Hashable, Hashable] | None = None

    def open(self) -> Session:
        """A session that prompts are added to over time. Close it, or use it in `with`."""
        return Session(self, self._rows())

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
        adapter: str | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in their order.

        A prompt that does not fit the context, or logits that are not finite, give a completion with `Ended.ERROR`; so does
        cancelling, with the tokens sampled by then. `adapter` is that of `Session.add`, which says what is raised.
        """
        for index, prompt in enumerate(prompts):
            check_ids(self.model, prompt, f"Prompt {index}")
        with evaluating(self.model), self.open() as session:
            answers = [
                session.add(prompt, params, index=index, adapter=adapter, on_token=on_token and partial(on_token, index))
                for index, prompt in enumerate(prompts)
            ]
            while not (session.idle or (cancelled and cancelled())):
                session.step()
        return [answer.completion() for answer in answers]

    def release(self) -> None:
        """Give back the memory of what was computed. Raises `ModelError` while sequences run."""
        self._empty_tree()
        if self._static is not None:
            self._static.release()

    def forget(self) -> None:
        """Drop what was computed, and copies of weights. Needed only after weights were written in a way that torch does not see, through
        `.data`.

        Raises `ModelError` while sequences run.
        """
        self._empty_tree()
        packed.forget(self.model.module)

    def check_weights(self) -> None:
        """Forget what was computed with other weights. For sessions, where nothing runs."""
        base, adapters = _state(self.model)
        addresses = _addresses(self.model)
        if self._static is not None and addresses != self._addresses:
            self._static.graphs.drop()
        self._addresses = addresses
        if (base, adapters) != self._weights:
            self._empty_tree()
            if self._weights is None or base != self._weights[0]:  # copies of the base outlive a step of its adapter
                packed.forget(self.model.module)
            self._weights = base, adapters

    def _empty_tree(self) -> None:
        if self._tree.pinned:
            raise ModelError("The weights changed while sequences were running. Finish or cancel them before training goes on.")
        self._tree.evict(0)

    def _rows(self) -> Rows:
        if not self.model.shares_prefixes:
            logger.info("%s cannot share prefixes: it generates one prompt at a time, which is slower.", type(self.model.base).__name__)
            return PlainRows(self.model, self.routes)
        token_bytes = sum(side.nbytes for layer in self._one_token for side in layer)
        step = self._static_step(token_bytes) if self.kind == "static" else self._padded_step(token_bytes)
        return ForestRows(self.model, self._tree, self.routes, step, slots=self.slots, budget=self.budget, token_bytes=token_bytes)

    def _padded_step(self, token_bytes: int) -> DecodeStep:
        tokens = self._tokens(token_bytes, self._tree.held())
        limits = {"slots": self.slots, "keep_from": self.keep_from, "tokens": tokens}
        return PaddedStep(self.model, self._tree, self.routes, self._one_token, **limits)

    def _static_step(self, token_bytes: int) -> DecodeStep:
        """The memory is that of the engine, and outlives its sessions; its size is chosen anew where none of it is taken."""
        if self._static is None:
            tokens, longest = self._tokens(token_bytes, 0), self.chat_like.context_length
            self._static = StaticMemory(self._one_token, self.model.device, slots=self.slots, tokens=tokens, longest=longest)
        elif not self._static.arena.keys:
            self._static.arena.tokens = self._tokens(token_bytes, 0)
        return StaticStep(self.model, self._tree, self.routes, self._static)

    def _tokens(self, token_bytes: int, held: int) -> int:
        """Tokens whose keys and values may be in memory, of which `held` are there."""
        memory = self.memory
        if memory is None:
            memory = int(SHARE_OF_MEMORY * (_free_memory(self.model.device) + held * token_bytes))
        return memory // token_bytes

    @cached_property
    def steerer(self) -> Steerer:
        """What holds constrained answers to their grammars. Raises `ConfigError` where it cannot be had."""
        return Steerer(self.chat_like, self.model.vocabulary)

    @cached_property
    def _one_token(self) -> Layers:
        """Keys and values of one token in every layer: what the cache of a token looks like."""
        node = Node(np.zeros(1, dtype=np.int64), 0, None)
        with evaluating(self.model), torch.inference_mode():
            compute(self.model, {node: PromptInput(Prompt((), (0,), ""))}, self.routes, Apart)
        assert isinstance(node.layers, Apart), "compute gives a node its layers"
        return node.layers.layers


def step_for(device: torch.device) -> StepKind:
    """What is taken where nothing is said."""
    return "static" if device.type == "cuda" else "padded"


def _state(model: LanguageModel) -> tuple[Hashable, Hashable]:
    """Two states, of the base and of its adapters. The first changes whenever base weights are trained, loaded or merged into, or adapters
    switched; the second when adapters are trained. torch counts writes to a tensor in place."""
    sides: tuple[list[Hashable], list[Hashable]] = [], []
    for name, weight in model.module.named_parameters():
        sides["lora_" in name].append((weight.data_ptr(), -1 if weight.is_inference() else weight._version))
    return (tuple(sides[0]), _switches(model)), tuple(sides[1])


def _addresses(model: LanguageModel) -> Hashable:
    """What a captured step holds of the model: where its tensors lie, and which adapters are in force. Training changes neither."""
    tensors = (*model.module.parameters(), *model.module.buffers())
    return tuple(tensor.data_ptr() for tensor in tensors), _switches(model)


def _switches(model: LanguageModel) -> Hashable:
    tuners = (module for module in model.module.modules() if isinstance(module, BaseTunerLayer))
    return tuple((tuple(tuner.active_adapters), tuple(tuner.merged_adapters), tuner.disable_adapters) for tuner in tuners)


def _free_memory(device: torch.device) -> int:
    """Bytes. On a GPU those that torch holds for later are free as well."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
