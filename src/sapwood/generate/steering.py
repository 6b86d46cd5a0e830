"""Constrained answers: which tokens may come next, found while the model computes.

In: the token that each constrained answer was given. Out: for each a bit mask over the vocabulary. One job a step runs in a thread of
its own beside the model's forward; llguidance does its work outside of Python's lock. A grammar is compiled once an engine, and each
answer runs a copy.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapwood.chat import Chat
from sapwood.errors import ConfigError
from sapwood.generate.constraints import grammar_of
from sapwood.records import Constraint

Bits = NDArray[np.int32]
COMPILED = 256
"""Grammars that are remembered."""


class Steering:
    """One answer's way through its grammar."""

    def __init__(self, matcher: Any, bits_W: Bits) -> None:
        self.matcher = matcher
        self.bits_W = bits_W
        """One bit a token: may it come next?"""
        self.job: Future[None] | None = None
        """What is finding the bits."""

    def bits(self) -> Bits:
        """(W,) which tokens may come next, a bit a token. Waits until that is known."""
        if self.job is not None:
            self.job.result()
        return self.bits_W

    @property
    def problem(self) -> str | None:
        """Why the grammar cannot be followed any further, if it cannot. Waits like `bits`."""
        if self.job is not None:
            self.job.result()
        return f"The constraint cannot be followed any further: {self.matcher.get_error()}" if self.matcher.is_error() else None


class Steerer:
    """The grammars of one engine."""

    def __init__(self, chat: Any, vocabulary: int) -> None:
        """`vocabulary` is that of the model's head. Raises `ConfigError` where llguidance is missing or the chat has no tokenizer."""
        try:
            self._library = importlib.import_module("llguidance")
        except ImportError:
            raise ConfigError("Constrained answers need the package llguidance: pip install 'sapwood[constrain]'.") from None
        if not isinstance(chat, Chat):
            raise ConfigError(f"Constrained answers need a Chat, which knows its tokens' bytes; this engine has a {type(chat).__name__}.")
        self._chat = chat
        stops = sorted(token for token in chat.stop_ids if token < vocabulary)
        self._tokenizer = self._library.LLTokenizer(chat.tokens.content, n_vocab=vocabulary, eos_token=stops)
        self._words = -(-vocabulary // 32)
        self._executor = self._library.LLExecutor()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sapwood-constraints")
        self._compiled: dict[tuple[str, str], Steering] = {}

    def begin(self, constraint: Constraint) -> Steering:
        """A fresh way through a constraint's grammar. Raises `ConfigError` for one that cannot be compiled."""
        key = constraint.kind, json.dumps(constraint.value, sort_keys=True, default=dict)
        if key not in self._compiled:
            if len(self._compiled) >= COMPILED:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[key] = self._compile(constraint)
        first = self._compiled[key]
        return Steering(first.matcher.deep_copy(), first.bits_W)

    def advance(self, moved: Sequence[tuple[Steering, int]]) -> None:
        """Each was given this token; what may follow is found in the background."""
        if moved:
            job = self._thread.submit(self._advance, moved)
            for steering, _ in moved:
                steering.job = job

    def _advance(self, moved: Sequence[tuple[Steering, int]]) -> None:
        bits_NW = np.zeros((len(moved), self._words), dtype=np.int32)
        for row, (steering, token) in enumerate(moved):
            steering.matcher.consume_token(token)
            steering.bits_W = bits_NW[row]
        going = [(steering.matcher, row) for row, (steering, _) in enumerate(moved) if not steering.matcher.is_error()]
        if going:
            self._executor.unsafe_compute_mask_ptr(going, bits_NW.ctypes.data, 4 * self._words, len(moved))

    def _compile(self, constraint: Constraint) -> Steering:
        text, kind = grammar_of(constraint, self._chat)
        matcher = self._library.LLMatcher
        grammar = {"json": matcher.grammar_from_json_schema, "regex": matcher.grammar_from_regex, "lark": matcher.grammar_from_lark}[kind](
            text
        )
        made = matcher(self._tokenizer, grammar, log_level=0)
        if made.is_error():
            raise ConfigError(
                f"The constraint ({constraint.kind}) cannot be used: {' '.join(made.get_error().split())[:300]}. "
                "Mend it, or leave out what is named."
            )
        bits_W = np.zeros(self._words, dtype=np.int32)
        made.unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)
        return Steering(made, bits_W)
