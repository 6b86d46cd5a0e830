"""Sequences over the tree: which may run, and what is computed for them.

In: answers that wait. Out: the logits behind each prompt that is let in, and behind each token that was sampled. Memory is bounded: a
sequence is let in only if it fits at its greatest length beside those that run, what stays of the tree for them included; what others
left in the tree is dropped for it, oldest first. So nothing that was let in is ever sent away again. Where keys and values lie, and how
one token of each is run, is the business of a `DecodeStep`.
Left out on purpose: preemption, and the activations of a forward, which `budget` bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sapwood.errors import ModelError
from sapwood.generate.answer import Answer
from sapwood.generate.media import PromptInput
from sapwood.generate.prefill import compute
from sapwood.generate.steps import DecodeStep, Place
from sapwood.generate.tree import Node, Tree
from sapwood.model import LanguageModel
from sapwood.model.routes import Routes


class ForestRows:
    """The running sequences of one session, over a tree that outlives it."""

    def __init__(
        self, model: LanguageModel, tree: Tree, routes: Routes, step: DecodeStep, *, slots: int, budget: int, token_bytes: int
    ) -> None:
        """At most `slots` run at a time; a prefill holds at most `budget` tokens; one token's keys and values take `token_bytes`."""
        self._model, self._tree, self._routes, self.step = model, tree, routes, step
        self.slots, self._budget, self._bytes = slots, budget, token_bytes
        self.running: list[Answer] = []
        """The sequence in row i of the step is the i-th."""
        self._places: dict[Answer, Place] = {}

    def refusal(self, answer: Answer) -> str | None:
        """Why a prompt can never be answered, if it cannot: alone, it would need more memory than there is."""
        length = len(answer.prompt.ids)
        need = self.step.alone(length, answer.limit)
        if need <= self.step.tokens:
            return None
        megabytes, allowed = need * self._bytes / 1e6, self.step.tokens * self._bytes / 1e6
        return (
            f"A prompt of {length} tokens with up to {answer.limit} new ones needs {megabytes:,.1f} MB of cache, and the engine may take "
            f"{allowed:,.1f} MB. Ask for fewer new tokens, shorten the prompt, or give the engine more memory."
        )

    def plan(self, answers: Sequence[Answer]) -> list[Answer]:
        """Find each its place in the tree; returns them in an order in which what they share is computed once."""
        order: list[Answer] = []
        for adapter in dict.fromkeys(answer.adapter for answer in answers):
            some = [answer for answer in answers if answer.adapter == adapter]
            inputs = [PromptInput(answer.prompt, adapter) for answer in some]
            for index, end in self._tree.insert([prompt.keys_T for prompt in inputs], adapter):
                self._places[some[index]] = Place(inputs[index], end, some[index].limit)
                order.append(some[index])
        self.step.regroup()  # nodes may have been split
        return order

    def withdraw(self, answer: Answer) -> None:
        """A waiting answer was cancelled."""
        self._tree.withdraw(self._places.pop(answer).end)

    def fits(self, answer: Answer) -> bool:
        """Is there a slot, and memory for one more sequence at its greatest length?"""
        return self._fits([answer], set(self._places[answer].end.path))

    def admit(self, waiting: Sequence[Answer]) -> tuple[list[Answer], Tensor | None]:
        """One forward for the first of those that wait; returns those whose paths are computed, and the logits (N, V) behind them."""
        entering, nodes, path = self._next(waiting)
        if not (entering or nodes or self.running):
            raise ModelError("Another session of this engine holds the memory that this one waits for: finish or close it first.")
        self._tree.touch(path)
        room = self.step.prepare([self._places[answer] for answer in entering], len(waiting) - len(entering), path)
        self._tree.evict(room - _uncomputed(nodes), keep=path)
        if nodes:
            compute(self._model, nodes, self._routes, self.step)
        if not entering:
            return [], None
        hidden = [self._places[answer].end.end_hidden_D for answer in entering]
        with self._routes.of([answer.adapter for answer in entering]):
            return entering, self._model.logits(torch.stack([state for state in hidden if state is not None]))

    def settle(self, entered: Sequence[Answer]) -> None:
        """Give each that goes on a row; the others leave."""
        for answer in entered:
            if answer.ended is not None:
                self.withdraw(answer)
        stay = [answer for answer in entered if answer.ended is None]
        self.step.enter([self._places[answer] for answer in stay])
        self.running += stay
        self.step.regroup()

    def decode(self) -> Tensor:
        """One forward of the last token of each running sequence; returns the logits (N, V) behind it."""
        return self.step.forward(np.array([answer.ids[-1] for answer in self.running]))

    def leave(self) -> None:
        """Let ended sequences go; the last rows move into the places they leave."""
        ended = [row for row, answer in enumerate(self.running) if answer.ended is not None]
        for row in reversed(ended):
            self.step.leave(row)
            self.withdraw(self.running[row])
            last = self.running.pop()
            if row < len(self.running):
                self.running[row] = last
        if ended:
            self.step.regroup()

    def _next(self, waiting: Sequence[Answer]) -> tuple[list[Answer], dict[Node, PromptInput], set[Node]]:
        """The next sequences to let in, what to compute for them (at most `budget` tokens), and all nodes on their paths.

        A path longer than the budget is computed over several forwards; its sequence enters with the last.
        """
        entering: list[Answer] = []
        nodes: dict[Node, PromptInput] = {}
        path: set[Node] = set()
        tokens = 0
        for answer in waiting:
            place = self._places[answer]
            if not self._fits([*entering, answer], path.union(place.end.path)):
                break
            self._reopen(place.end, nodes)
            path.update(place.end.path)
            for node in place.end.path:
                if node not in nodes and (node.layers is None or (node is place.end and node.end_hidden_D is None)):
                    if nodes and tokens + len(node.tokens_T) > self._budget:
                        return entering, nodes, path
                    nodes[node] = place.prompt
                    tokens += len(node.tokens_T)
            entering.append(answer)
        return entering, nodes, path

    def _reopen(self, end: Node, nodes: dict[Node, PromptInput]) -> None:
        """A prompt may end where another went on, of which the last hidden state was not kept: its last token is computed once more."""
        if end.layers is not None and end.end_hidden_D is None and end not in nodes and len(end.tokens_T) > 1:
            self._tree.split(end, len(end.tokens_T) - 1)

    def _fits(self, entering: Sequence[Answer], path: set[Node]) -> bool:
        """Is there room for these beside those that run, if all else is dropped from the tree?"""
        if len(self.running) + len(entering) > self.slots:
            return False
        return self.step.fits([self._places[answer] for answer in entering], path)


def _uncomputed(nodes: dict[Node, PromptInput]) -> int:
    return sum(len(node.tokens_T) for node in nodes if node.layers is None)
