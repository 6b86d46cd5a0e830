"""Several adapters on one set of weights, each under a name of its own: what a server answers by, and what a chat lays side by side.

In: a model, with or without an adapter, and `NAME=FOLDER` words. Out: the model with all of them loaded, and who answers to which name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sapwood.errors import ConfigError
from sapwood.model import LanguageModel
from sapwood.model.routes import BASE
from sapwood.model.several import adapter_names, add_adapter


def load_beside(model: LanguageModel, called: str, adapters: Sequence[str]) -> tuple[LanguageModel, dict[str, str | None]]:
    """The model with more adapters loaded, and who answers to which name: its own adapter, none (`base`), or one of the others.

    Raises `ConfigError` for a word that is no NAME=FOLDER, and for a name that is given twice.
    """
    own = adapter_names(model)
    models: dict[str, str | None] = {called: own[0], "base": BASE} if own else {called: None}
    if adapters and not own:
        models = {called: BASE}
    for word in adapters:
        name, found, folder = word.partition("=")
        if not found or not folder:
            raise ConfigError(f"adapters holds {word!r}; give NAME=FOLDER, such as law=runs/law-1/adapter.")
        if name in models:
            raise ConfigError(f"adapters gives the name {name!r} twice, or one that is taken already: {', '.join(models)}.")
        model = add_adapter(model, Path(folder), name)
        models[name] = name
    return model, models
