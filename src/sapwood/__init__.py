"""Sapwood fine-tunes language models and proves that they got better.

    import sapwood

    result = sapwood.sft("my.jsonl", lr=5e-4)   # shows itself in a notebook
    sapwood.evaluate(result.path)

Importing this costs nothing: what a name needs is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "quickstart": "sapwood.recipes",
    "AssessResult": "sapwood.recipes",
    "TuneResult": "sapwood.recipes",
    "sft": "sapwood.recipes.api",
    "dpo": "sapwood.recipes.api",
    "grpo": "sapwood.recipes.api",
    "decide": "sapwood.recipes.api",
    "plan": "sapwood.recipes.api",
    "runs": "sapwood.recipes.runs",
    "sweep": "sapwood.recipes.api",
    "pull": "sapwood.assets",
    "SapwoodError": "sapwood.errors",
}

__all__ = [
    "AssessResult",
    "SapwoodError",
    "TuneResult",
    "decide",
    "dpo",
    "evaluate",
    "grpo",
    "plan",
    "pull",
    "quickstart",
    "runs",
    "sft",
    "sweep",
]


class _EvaluateRoom(ModuleType):
    """`sapwood.evaluate` is a room, and `sapwood.evaluate(...)` is what users expect to call: the module is callable."""

    def __call__(self, *arguments: Any, **knobs: Any) -> Any:
        return import_module("sapwood.recipes.api").evaluate(*arguments, **knobs)


class _FrontDoor(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "evaluate":
            return import_module("sapwood.evaluate")
        if name in _PUBLIC:
            return getattr(import_module(_PUBLIC[name]), name)
        raise AttributeError(f"module 'sapwood' has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "evaluate" and isinstance(value, ModuleType):  # the import system hands over the room here
            value.__class__ = _EvaluateRoom
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _FrontDoor
