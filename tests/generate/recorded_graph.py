"""A CUDA graph on a CPU: what a step runs is noted operator by operator, and replayed without its Python.

A replay knows tensors by their storage alone, as a graph does: it runs the noted operators on the noted arguments and puts what they
give where it was put the first time. What a step would take from the host, from a new tensor or from a length, it would not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

READS = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "_to_copy.host")
"""Operators that make the host wait for a device."""


class Note(TorchDispatchMode):
    """Notes operators with their arguments and results; raises for one that reads data on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in READS:
            raise AssertionError(f"{name} reads data on the host")
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        """Run what was noted, on the same storage."""
        for func, args, kwargs, out in self.calls:
            given = {_place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif not all(_place(leaf) in given for leaf in outs):  # else it is a view, which is where it was
                for leaf, again in zip(outs, (one for one in tree_leaves(func(*args, **kwargs)) if isinstance(one, Tensor)), strict=True):
                    leaf.copy_(again)

    def trace(self) -> list[Hashable]:
        """All that a graph would hold: operators, shapes, numbers, and the addresses of tensors that were there before it."""
        made: set[int] = set()
        found: list[Hashable] = []
        for func, args, kwargs, out in self.calls:
            leaves, spec = tree_flatten((args, kwargs))
            found.append((str(func), str(spec), *(_described(leaf, made) for leaf in leaves)))
            made.update(_place(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and not func._schema.is_mutable)
        return found


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _described(leaf: Any, made: set[int]) -> Hashable:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    where = "made within" if _place(leaf) in made else leaf.data_ptr()
    return where, tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device


class Recorded:
    """What `capture.Graphs` is on a GPU: the first step of a key is noted, later ones are replayed. Counts both."""

    def __init__(self) -> None:
        self.notes: dict[Hashable, tuple[Note, Tensor]] = {}
        self.replays = 0

    def run(self, key: Hashable, step: Callable[[], Tensor]) -> Tensor:
        if key not in self.notes:
            with Note() as note:
                logits_BV = step()
            self.notes[key] = note, logits_BV
        note, logits_BV = self.notes[key]
        logits_BV.fill_(float("nan"))
        note.replay()
        self.replays += 1
        return logits_BV

    def drop(self) -> None:
        self.notes.clear()


class Traced:
    """Runs each step as it is, and holds its trace to that of the first step of its key."""

    def __init__(self) -> None:
        self.traces: dict[Hashable, list[Hashable]] = {}
        self.compared = 0

    def run(self, key: Hashable, step: Callable[[], Tensor]) -> Tensor:
        with Note() as note:
            logits_BV = step()
        found = note.trace()
        if key in self.traces:
            assert found == self.traces[key], next((pair for pair in zip(found, self.traces[key], strict=False) if pair[0] != pair[1]), "")
            self.compared += 1
        self.traces[key] = found
        return logits_BV

    def drop(self) -> None:
        self.traces.clear()
