"""A GPU that is not there: tensors say that they lie on it, and every operation checks that the others do, too.

torch's `FakeTensorMode` carries shapes, types and devices and no numbers. It raises where devices are mixed and where a number is read.
What it cannot carry on a torch without CUDA, and what stands in for that here:

    autograd asks a device's guard whenever it notes a tensor     `guard` compiles torch's own guard that does nothing
    the engine of `backward` asks for an accelerator              `walk` goes back through the graph in Python, node by node
    parameters of fake tensors cannot be put in others' places    `stay` moves no module; adapters are made where they belong
    numbers are read on the host (a loss, a norm)                 `Pretended` notes from which line, and says 1

In: nothing. Out: a mode to compute in. Used in a process of its own, for a guard stays.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> none;
static c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, &none);
"""
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default)


def guard(folder: Path) -> None:
    """Register a guard of CUDA, where this torch has none."""
    if torch.version.cuda is not None:
        return
    source, library, home = folder / "guard.cpp", folder / "guard.so", Path(torch.__file__).parent
    source.write_text(GUARD)
    compiler = next(found for name in ("c++", "g++", "clang++") if (found := shutil.which(name)))
    flags = ["-std=c++20", "-fPIC", "-shared", f"-I{home / 'include'}", f"-L{home / 'lib'}", "-lc10"]
    subprocess.run([compiler, str(source), "-o", str(library), *flags], check=True)
    ctypes.CDLL(str(library))


class Pretended(FakeTensorMode):
    """The mode; `reads` counts by file and function where numbers of the device were read on the host."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)  # arrays keep their numbers
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS and any(isinstance(leaf, Tensor) and leaf.device.type == "cuda" for leaf in tree_leaves(args)):
            self.note()
            if func is READS[0]:
                return 1.0 if args[0].is_floating_point() else 1
        if args and isinstance(args[0], Tensor) and not isinstance(args[0], FakeTensor) and _leaves_the_cpu(args, kwargs or {}):
            args = (self.from_tensor(args[0]), *args[1:])  # in inference mode a real tensor would look for a real GPU
        return super().__torch_dispatch__(func, types, args, kwargs)

    def note(self) -> None:
        """Count the innermost line of Sapwood that is being run."""
        frame: Any = sys._getframe()
        while frame is not None and "/sapwood/" not in frame.f_code.co_filename:
            frame = frame.f_back
        self.reads["nobody" if frame is None else f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"] += 1


def _leaves_the_cpu(args: Any, kwargs: Any) -> bool:
    return any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in tree_leaves((args, kwargs)))


def numbers(self: Tensor, *_: Any, **__: Any) -> Any:
    """In place of `Tensor.numpy`, which fake tensors have not."""
    assert self.device.type == "cpu", "numpy sees what lies on the CPU alone"
    return np.zeros(tuple(self.shape), str(self.dtype).removeprefix("torch."))


def stay(self: torch.nn.Module, *_: Any, **__: Any) -> torch.nn.Module:
    """In place of `Module.to`."""
    assert all(tensor.device.type == "cuda" for tensor in self.parameters()), "a module would have been moved"
    return self


def walk(loss: Tensor, *_: Any, **__: Any) -> None:
    """In place of `Tensor.backward`: the same nodes in the same order, and what the engine checks of each gradient on its way."""
    root = loss.grad_fn
    assert root is not None
    waiting: Counter[Any] = Counter()
    seen, stack = {root}, [root]
    while stack:
        for node, _number in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    gradients: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    ready = [root]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        if hasattr(node, "variable"):
            _accumulate(node.variable, given[0])
            continue
        wanted = node._input_metadata
        filled = [_as_wanted(given.get(number), one) for number, one in enumerate(wanted)]
        edges = node.next_functions
        if isinstance(node, torch.autograd.function.BackwardCFunction):  # gives one gradient an argument, tensor or not
            needed = zip(node.apply(*filled), node.needs_input_grad, strict=True)
            found, edges = tuple(gradient for gradient, needs in needed if needs), [edge for edge in edges if edge[0] is not None]
        else:
            found = node(*filled)
        found = found if isinstance(found, tuple) else (found,)
        for (behind, number), gradient in zip(edges, found, strict=True):
            if behind is None:
                continue
            if gradient is not None:
                sums = gradients.setdefault(behind, {})
                sums[number] = sums[number] + gradient if number in sums else gradient
            waiting[behind] -= 1
            if not waiting[behind]:
                ready.append(behind)


def _as_wanted(gradient: Tensor | None, metadata: Any) -> Tensor:
    """What the engine makes of a gradient before a node sees it: zeros for none, sums over what was broadcast, the type of forward."""
    if gradient is None:
        return torch.zeros(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)
    assert gradient.device == metadata.device, f"a gradient on {gradient.device} of what lies on {metadata.device}"
    return gradient.sum_to_size(tuple(metadata.shape)).to(metadata.dtype)


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    assert gradient.device == parameter.device, f"a gradient on {gradient.device} of a parameter on {parameter.device}"
    gradient = gradient.detach().sum_to_size(parameter.shape).to(parameter.dtype)
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def install(mode: Pretended) -> None:
    """`walk` and `numbers` in the place of what they stand for; what numpy made keeps its numbers as long as it lies on the CPU."""
    torch.Tensor.backward = walk  # type: ignore[assignment]

    hop = torch.ops.higher_order.flex_attention  # rules are found by a mode's very class
    hop.py_impl(Pretended)(hop.python_key_table[FakeTensorMode])
    torch.nn.Module.to = stay  # type: ignore[assignment,method-assign]
    make = torch.from_numpy

    def with_numbers(array: Any) -> Tensor:
        with _disable_current_modes():
            return make(array)

    def read(self: Tensor, *given: Any, **named: Any) -> Any:
        mode.note()
        return numbers(self, *given, **named)

    torch.from_numpy = with_numbers  # type: ignore[assignment]
    FakeTensor.numpy = read  # type: ignore[assignment,method-assign]
