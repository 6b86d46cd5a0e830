"""What a model folder says about chatting: tokenizer, templates, special tokens, stop tokens, context length.

In: a folder with `tokenizer.json` and, where they exist, `tokenizer_config.json`, `special_tokens_map.json`,
`config.json`, `generation_config.json`, `chat_template.jinja`. Out: a `Folder` of plain values. Nothing is rendered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import AssetError, storage

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SENTENCEPIECE = ("LlamaTokenizer", "LlamaTokenizerFast")
"""Classes whose tokenizers put a sign for a space before every word."""
_SANE_LENGTH = 100_000_000
"""Above this, `model_max_length` only means that nobody set it."""


@dataclass(frozen=True)
class Folder:
    """The values that matter for chatting; `stops` maps a stop id to the files that name it."""

    path: Path
    tokenizer: dict[str, Any]
    templates: dict[str, str]
    template_origin: str
    special: dict[str, str]
    stops: dict[int, list[str]]
    context_length: int | None
    rows: int | None = None
    """Rows of the model's embedding, where config.json says so."""


def read_folder(path: Path) -> Folder:
    """Read a model folder. Raises `AssetError` if there is no tokenizer or a file is not valid JSON."""
    if not (path / "tokenizer.json").is_file():
        raise AssetError(
            f"{path}: there is no tokenizer.json. Give the folder of a model with a fast tokenizer; one that only has tokenizer.model must "
            "be saved once with transformers' `AutoTokenizer.from_pretrained(...).save_pretrained(...)`."
        )
    tokenizer = read_json(path / "tokenizer.json")
    settings = read_json(path / "tokenizer_config.json")
    config, generation = read_json(path / "config.json"), read_json(path / "generation_config.json")
    special = _special_tokens(read_json(path / "special_tokens_map.json")) | _special_tokens(settings)
    templates, origin = _templates(path, settings)
    stops: dict[int, list[str]] = {}
    for name, ids in (
        ("generation_config.json", generation.get("eos_token_id")),
        ("config.json", config.get("eos_token_id", _text_config(config).get("eos_token_id"))),
        ("tokenizer_config.json", _id_of(tokenizer, special.get("eos_token"))),
    ):
        for token_id in ids if isinstance(ids, list) else [ids]:
            if isinstance(token_id, int):
                stops.setdefault(token_id, []).append(name)
    rows = config.get("vocab_size", _text_config(config).get("vocab_size"))
    return Folder(
        path, tokenizer, templates, origin, special, stops, _context_length(config, settings), rows if isinstance(rows, int) else None
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file. Raises `AssetError` if it holds anything else."""
    if not path.is_file():
        return {}
    with storage(path, "read"):
        content = path.read_bytes()
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise AssetError(f"{path}: not valid JSON ({error}). Fetch the file again.") from None
    if not isinstance(found, dict):
        raise AssetError(f"{path}: expected an object, found {type(found).__name__}. Fetch the file again.")
    return found


def misnamed_class(settings: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str | None:
    """The class that tokenizer_config.json names where it is not one for this tokenizer.json; None where it is.

    Some versions of transformers 5 rebuild a tokenizer by the name of its class (transformers#45488, #46710).
    """
    named = settings.get("tokenizer_class")
    byte_level = b'"ByteLevel"' in orjson.dumps(tokenizer.get("pre_tokenizer"))
    return str(named) if named in _SENTENCEPIECE and byte_level else None


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _NAMED:
        token = settings.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def default_template(path: Path) -> str | None:
    """The source of a model folder's own template, if it has one."""
    return _templates(path, read_json(path / "tokenizer_config.json"))[0].get("default")


def _templates(path: Path, settings: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Templates by name; a file of its own goes before the tokenizer's settings, as in transformers."""
    found: dict[str, str] = {}
    origin = "no file"
    setting = settings.get("chat_template")
    if isinstance(setting, str):
        found, origin = {"default": setting}, str(path / "tokenizer_config.json")
    elif isinstance(setting, list):
        found = {entry["name"]: entry["template"] for entry in setting}
        origin = str(path / "tokenizer_config.json")
    of_processor = read_json(path / "chat_template.json").get("chat_template")  # how processors were saved before transformers 4.50
    if isinstance(of_processor, str):
        found, origin = {"default": of_processor}, str(path / "chat_template.json")
    files = {"default": path / "chat_template.jinja", "tool_use": path / "additional_chat_templates" / "tool_use.jinja"}
    for name, file in files.items():
        if file.is_file():
            with storage(file, "read"):
                found = {**(found if name != "default" else {}), name: file.read_text(encoding="utf-8")}
            origin = str(file) if name == "default" else origin
    return found, origin


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else {}


def _id_of(tokenizer: Mapping[str, Any], token: str | None) -> int | None:
    return next((int(entry["id"]) for entry in tokenizer.get("added_tokens", ()) if entry["content"] == token), None)


def _context_length(config: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    for length in (
        config.get("max_position_embeddings", _text_config(config).get("max_position_embeddings")),
        settings.get("model_max_length"),
    ):
        if isinstance(length, int | float) and 0 < length < _SANE_LENGTH:
            return int(length)
    return None
