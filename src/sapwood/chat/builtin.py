"""Templates for models that have none: by name, or from a file.

In: what a person wrote behind `--template`, and the model's folder. Out: the template's source. The named ones lie in
`templates/`; where the tokenizer puts a BOS before a text by itself, as the model saw it in pretraining, the source gets one in
front, because prompts are tokenised without added BOS.
Left out on purpose: a template for each family. A model of a family comes with its own; a base model has no habit to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from sapwood.chat.files import default_template, read_json
from sapwood.config import did_you_mean
from sapwood.errors import TemplateError, storage

NAMES: Mapping[str, str] = {
    "chatml": "<|im_start|>role … <|im_end|>, with tools, calls and reasoning; its two tokens are added where the tokenizer lacks them",
    "plain": "User: … Assistant: … and the tokenizer's own end of text; no new tokens, no tools",
}
"""The templates that Sapwood brings, and what a person should know to choose."""

SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".template")
"""What tells the name of a file that does not exist from a misspelt name of a template."""


def named_template(named: str | Path, folder: Path) -> str:
    """The source of a template by name, or of a Jinja file, for the model in `folder`.

    A name goes before a file of that name in the current folder; write `./chatml` for the file.
    Raises `TemplateError` for a name that is neither, with the names there are; `StorageError` for a file that cannot be read.
    """
    if str(named) in NAMES:
        source = files("sapwood.chat").joinpath("templates", f"{named}.jinja").read_text(encoding="utf-8")
        return "{{- bos_token }}" + source if begins_with_bos(folder) else source
    file = Path(named)
    known = "; ".join(f"`{name}` ({what})" for name, what in NAMES.items())
    try:
        with storage(file, "read the template"):
            text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if file.suffix in SUFFIXES or len(file.parts) > 1:
            raise TemplateError(
                f"{file}: no such file. Name a file with a Jinja chat template after --template, or one of {known}."
            ) from None
        raise TemplateError(
            f"There is no template called {str(named)!r}, and no file of that name.{did_you_mean(str(named), list(NAMES))} Give the path "
            f"of a Jinja file after --template, or one of {known}."
        ) from None
    except UnicodeDecodeError as error:
        raise TemplateError(f"{file}: not UTF-8 text ({error}). Save the template as UTF-8.") from None
    if "{{" not in text and "{%" not in text:
        raise TemplateError(f"{file}: no Jinja stands in it ({{{{ … }}}} or {{% … %}}), so it is no chat template. Name another file.")
    return text


def trained_template(trained: Path, folder: Path) -> str | None:
    """The template that an adapter or whole model in `trained` was given; None where it had the own one of the model in `folder`.

    Raises `StorageError` for a file that cannot be read.
    """
    text = default_template(trained)
    return None if text == default_template(folder) else text


def begins_with_bos(folder: Path) -> bool:
    """Whether the tokenizer in `folder` puts its BOS before every text by itself."""
    settings = read_json(folder / "tokenizer_config.json")
    bos = settings.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    if not isinstance(bos, str) or settings.get("add_bos_token") is False:
        return False
    tokenizer = read_json(folder / "tokenizer.json")
    if all(entry["content"] != bos for entry in tokenizer.get("added_tokens", ())):
        return False
    return settings.get("add_bos_token") is True or _leads(tokenizer.get("post_processor"), bos)


def _leads(processor: Any, bos: str) -> bool:
    """Does a post-processor of `tokenizer.json` put this token first?"""
    if not isinstance(processor, dict):
        return False
    if processor.get("type") == "Sequence":
        return any(_leads(part, bos) for part in processor.get("processors", ()))
    first = (processor.get("single") or [{}])[0] if processor.get("type") == "TemplateProcessing" else {}
    return isinstance(first, dict) and first.get("SpecialToken", {}).get("id") == bos
