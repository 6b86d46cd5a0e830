"""A Python file → the functions in it, and what a model is told of them.

In: a file that the user names; it is run as any script of theirs. Out: its public functions by name, and their JSON schemas, made by
transformers from type hints and docstrings (Google style, with an `Args:` section), as chat templates want them.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from sapwood.errors import ConfigError
from sapwood.evaluate.tool_turns import Tool

_ADVICE = 'Give it type hints and a docstring: """What it does.\n\n    Args:\n        city: What this is.\n    """'


def functions_of(file: Path) -> tuple[dict[str, Tool], tuple[Mapping[str, Any], ...]]:
    """The functions that the file defines and whose names do not begin with `_`, and their schemas.

    Raises `ConfigError` for a file that does not run, holds none, or does not say what they take.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such file. Name a Python file with the functions that may be called.")
    spec = importlib.util.spec_from_file_location(f"tools_of_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: this is no Python file. Name one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise ConfigError(f"{file}: it does not run: {type(error).__name__}: {error}.") from error
    tools: dict[str, Tool] = {
        name: found
        for name, found in vars(module).items()
        if inspect.isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")
    }
    if not tools:
        raise ConfigError(f"{file}: it defines no function. Each public function in it is one that the model may call.")
    schemas = []
    for name, function in tools.items():
        try:
            schemas.append(get_json_schema(function))
        except (DocstringParsingException, TypeHintParsingException) as error:
            raise ConfigError(f"{file}: {name}: {error} {_ADVICE}") from None
    return tools, tuple(schemas)
