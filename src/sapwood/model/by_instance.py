"""Another `forward` for single modules of a model, and the way back: no class is patched, and names and parameters stay.

In: a model, the function that shall run, and the test of which modules it serves. `type(module).forward` is what a module runs without.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn


def attach(forward: Callable[..., Any], inside: nn.Module, serves: Callable[[Any], bool]) -> int:
    """Give every module inside that `serves` this `forward`; returns how many have it. May be called again."""
    modules = [module for module in inside.modules() if serves(module)]
    for module in modules:
        module.__dict__["forward"] = MethodType(forward, module)
    return len(modules)


def detach(forward: Callable[..., Any], inside: nn.Module) -> int:
    """Give the modules inside that have this `forward` that of their class again; returns how many had it."""
    modules = [module for module in inside.modules() if has(forward, module)]
    for module in modules:
        del module.__dict__["forward"]
    return len(modules)


def has(forward: Callable[..., Any], module: nn.Module) -> bool:
    """Does this very module run this `forward`?"""
    return getattr(module.__dict__.get("forward"), "__func__", None) is forward
