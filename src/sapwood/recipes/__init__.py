"""Where training and evaluation meet: whole chains that a person starts with one command.

`tune` is the chain (rows → ledger → base arms → training → tuned arm → verdict → report); `quickstart` is that chain on a
task of ours; `assess` measures a model or a finished run; `examine` and `templates` look before anything is trained; `screen`
is what a person sees meanwhile. Importing this costs nothing: what trains or runs a model is loaded when it is first used,
so that verbs that do neither start at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sapwood.recipes.screen import Screen

if TYPE_CHECKING:
    from sapwood.recipes.assess import AssessConfig, AssessResult, assess
    from sapwood.recipes.chain import TuneResult
    from sapwood.recipes.quickstart import QUICKSTART, quickstart
    from sapwood.recipes.tune import TuneConfig, tune

_HOMES = {
    "AssessConfig": "assess",
    "AssessResult": "assess",
    "assess": "assess",
    "TuneResult": "chain",
    "QUICKSTART": "quickstart",
    "quickstart": "quickstart",
    "TuneConfig": "tune",
    "tune": "tune",
}

__all__ = ["QUICKSTART", "AssessConfig", "AssessResult", "Screen", "TuneConfig", "TuneResult", "assess", "quickstart", "tune"]


class _Room(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            return  # the import system hands over a file here; the function of the same name is what the room offers
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Room
