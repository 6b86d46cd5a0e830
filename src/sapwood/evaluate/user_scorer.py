"""A scorer from the user's own file: `my_scorer.py:name`. It is loaded only because the user named it.

The function takes (item, completion) and gives a `Score`, a number from 0 to 1, true or false, or None where nothing can be judged.
Its exceptions are recorded outcomes like those of any scorer.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.evaluate.scorers import Scorer, guarded
from sapwood.records import Completion, Item, Score


def is_user_scorer(name: str) -> bool:
    """Whether a scorer's name names a function in a file."""
    file, colon, function = name.rpartition(":")
    return bool(colon) and file.endswith(".py") and function.isidentifier()


def user_function(name: str) -> Callable[..., Any]:
    """Load `FILE.py:NAME`. Raises `ConfigError` where there is no such file or function, or the file cannot be run."""
    place, _, function = name.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"scorer is {name}: there is no file {path}. Give FILE.py:NAME, from the folder you are in.")
    spec = importlib.util.spec_from_file_location(f"sapwood_scorer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"scorer is {name}: {path} could not be run ({type(error).__name__}: {error}). Mend it and try again.") from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"scorer is {name}: {path} has no function {function!r}.{did_you_mean(function, known)}")
    return found


def user_scorer(name: str) -> Scorer:
    """The scorer that a function in a file is. Raises as `user_function` does."""
    found, function = user_function(name), name.rpartition(":")[2]

    def score(item: Item, completion: Completion) -> Score:
        given = found(item, completion)
        if given is None:
            return Score(None, None, f"{function} gave no value")
        if isinstance(given, Score):
            return given
        if isinstance(given, bool | int | float):
            return Score(float(given))
        raise TypeError(f"{function} gave {type(given).__name__}; give a Score, a number from 0 to 1, or None")

    return guarded(score)
