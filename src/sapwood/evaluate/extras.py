"""Libraries that only some scorers need: imported when a scorer is made, with a word on how to get one that is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from sapwood.errors import ConfigError


def needed(module: str, what: str) -> ModuleType:
    """The module. Raises `ConfigError` naming the extra that brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise ConfigError(f"{what} needs the package {error.name}, which is not here. Install it: pip install 'sapwood[eval]'") from None
