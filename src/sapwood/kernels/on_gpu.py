"""Functions that torch compiles for a GPU: once for each form, whatever the lengths of their inputs.

In: a function of tensors and constants. Out: the same function as compiled kernels (TorchInductor; Ansel et al., ASPLOS 2024). Lengths of
rows differ from pass to pass, so the caller says which sizes vary, and these are symbols in the compiled code; all else (widths, types,
constants) is fixed in it, and another value makes another form. Compiling happens at the first call of a form and takes seconds.
Left out on purpose: a CPU, which has kernels of its own, and `dynamic=True`, which would make widths symbols, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

FORMS = 64
"""Most forms of a function. torch's own limit, 8, is meant against lengths; beyond its limit it would run uncompiled."""


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled function, once a process."""
    return torch.compile(function, fullgraph=True)


def call(function: Callable[..., Any], varying: Sequence[tuple[Tensor | None, Sequence[int]]], *given: Any) -> Any:
    """`function(*given)`, compiled. `varying` are tensors among the given, each with its dimensions whose size is a symbol."""
    for tensor, dimensions in varying:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, list(dimensions))
    known = torch._dynamo.config
    limit = "recompile_limit" if hasattr(known, "recompile_limit") else "cache_size_limit"  # its name until torch 2.7
    settings: dict[str, Any] = {"automatic_dynamic_shapes": False, limit: max(FORMS, getattr(known, limit))}
    with torch._dynamo.config.patch(**settings):
        return compiled(function)(*given)


def failure(error: Exception) -> str:
    """Whatever a compiler, its helpers or a driver raised, in a line. Memory that ran out is raised again: it says nothing of a kernel."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
