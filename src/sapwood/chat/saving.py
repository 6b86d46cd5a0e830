"""The files by which others chat as a run did: transformers, peft, vLLM, llama.cpp's converter.

In: a folder's values (with tokens a given template added), the template, the stop tokens. Out: file names and contents.
tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja and generation_config.json, and those of a
processor for images or sounds; what the model's own files say beside what is changed here is kept. config.json belongs to
the weights and is not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from sapwood.chat.files import Folder, misnamed_class, read_json

_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What transformers makes the processor of a model for images or sounds of; a copy is as good as the original."""


def saved_files(folder: Folder, given: str | None, turn_end: int | None, stop_ids: Iterable[int]) -> dict[str, bytes]:
    """Name → content. `given` is a template that took the place of the model's own; the turn's end then becomes the eos token.

    Raises `AssetError` where a file of the model is not valid JSON.
    """
    settings = read_json(folder.path / "tokenizer_config.json")
    mapped = read_json(folder.path / "special_tokens_map.json")
    generation = read_json(folder.path / "generation_config.json")
    added = {int(entry["id"]): entry for entry in folder.tokenizer.get("added_tokens", ())}
    settings.pop("auto_map", None)  # names code that is not here
    if misnamed_class(settings, folder.tokenizer) is not None:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if given is not None:
        settings["chat_template"] = given
        known = {entry["content"] for entry in added.values()} | set(_words(folder.tokenizer))
        for file in (settings, mapped):
            # transformers would add a named token that the tokenizer lacks, with an id that the model has no row for
            for name in [name for name, token in _roles(file).items() if _text(token) not in known]:
                del file[name]
        if turn_end in added:
            settings["eos_token"] = added[turn_end]["content"]
            mapped |= {"eos_token": added[turn_end]["content"]} if mapped else {}
    if isinstance(settings.get("added_tokens_decoder"), dict):
        settings["added_tokens_decoder"] = {str(number): _without_id(entry) for number, entry in sorted(added.items())}
    last = -1 if turn_end is None else turn_end
    stops = sorted(stop_ids, key=lambda number: (number != last, number))
    generation["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    files = {
        "tokenizer.json": orjson.dumps(folder.tokenizer),
        "tokenizer_config.json": _written(settings),
        "special_tokens_map.json": _written(mapped or _roles(settings)),
        "generation_config.json": _written(generation),
    }
    if "default" in folder.templates:
        files["chat_template.jinja"] = folder.templates["default"].encode()
    for name in _PROCESSORS:
        if (folder.path / name).is_file():
            files[name] = orjson.dumps(read_json(folder.path / name), option=orjson.OPT_INDENT_2)
    return files


def _words(tokenizer: Mapping[str, Any]) -> Iterable[str]:
    """The vocabulary of tokenizer.json: an object, or pairs of token and score."""
    vocabulary = tokenizer.get("model", {}).get("vocab", ())
    return vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary)


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _without_id(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}


def _roles(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str | dict)}


def _written(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_INDENT_2)
