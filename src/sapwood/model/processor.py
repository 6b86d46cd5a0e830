"""A model's processor: transformers' own, called for one image or sound at a time.

In: a model folder. Out: a `Processor`, which is the chat room's `MediaProcessor`. What it puts into the text and what it
makes of the pixels is what transformers' processor does with the same call; nothing of it is written anew.
The image processors' Pillow variants serve where torchvision is not installed; a processor that also wants a video
processor is built without one. Features are made again whenever they are needed, with the latest ones kept.
"""

from __future__ import annotations

import hashlib
import importlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import transformers
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from sapwood.chat.media import medium_bytes, picture, waveform
from sapwood.errors import DataError, ModelError
from sapwood.model.media import Family, family_of
from sapwood.records import Content, Media, MediaKind

Arrays = Mapping[str, NDArray[Any]]
KEPT_BYTES = 1 << 28
"""Bytes of processed images and sounds that are kept for their next use."""
_OF_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "text_replacement_offsets")


def load_processor(folder: Path) -> Processor:
    """The processor of a model folder. Raises `ModelError` for a family that is not covered, or files that are missing."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: transformers could not read its config.json: {_line(error)}") from error
    family = family_of(config.model_type, str(folder))
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return Processor(_built(folder, family), family, config)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        hint = (
            'The folder needs preprocessor_config.json or processor_config.json, and reading media: pip install "sapwood[media]"'
            if isinstance(error, OSError | ImportError)
            else "Fetch the model's folder again, or choose another model."
        )
        raise ModelError(f"{folder}: the processor of this {config.model_type} model could not be built: {_line(error)} {hint}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def processor_or_reason(folder: Path) -> Processor | str:
    """The processor of a model folder, or a paragraph that says why there is none. A model of text alone costs no time."""
    try:
        return load_processor(folder)
    except ModelError as error:
        return str(error)


class Processor:
    """A `MediaProcessor` around transformers' processor of a covered family."""

    def __init__(self, inner: Any, family: Family, config: Any) -> None:
        self._inner = inner
        tokens: dict[MediaKind, str] = {kind: getattr(inner, f"{kind}_token") for kind in family.kinds}
        self.placeholders: Mapping[MediaKind, tuple[str, int]] = {
            kind: (token, int(inner.tokenizer.convert_tokens_to_ids(token))) for kind, token in tokens.items()
        }
        self._family = family
        parts = [getattr(inner, name, None) for name in ("image_processor", "feature_extractor")]
        settings = [part.to_dict() for part in parts if part is not None]
        own = {key: value for key, value in vars(inner).items() if isinstance(value, str | int | float)}
        content = orjson.dumps([family.processor, settings, own], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._lead = tuple(inner.tokenizer("")["input_ids"])
        if self._lead not in ((), (inner.tokenizer.bos_token_id,)):
            raise ValueError(
                f"its tokenizer puts the tokens {list(self._lead)} around every text, where at most BOS in front is understood."
            )
        self._kept: OrderedDict[str, tuple[str, Arrays]] = OrderedDict()
        self._kept_bytes = 0
        for kind, (token, token_id) in self.placeholders.items():
            known = getattr(config, f"{kind}_token_id", getattr(config, f"{kind}_token_index", token_id))
            if known != token_id:
                raise ValueError(f"its {kind} token {token!r} has id {token_id} in the tokenizer and {known} in config.json.")

    def prepare(self, medium: Media, where: str, *, among: int = 1) -> tuple[str, Content]:
        """See `MediaProcessor`. Raises `DataError` for what cannot be read, decoded or processed."""
        content = medium_bytes(medium, where)
        several = among > 1 and self._family.coarser_among_others
        key = hashlib.sha256(f"{medium.kind}:{self.fingerprint}:{several}:".encode() + content).hexdigest()
        text, arrays = self._processed(key, medium.kind, content, several, where)
        length = text.count(self.placeholders[medium.kind][0])
        grid = None
        if self._family.several_axes:
            merge = self._inner.image_processor.merge_size
            frames, height, width = (int(side) for side in arrays["image_grid_thw"][0])
            grid = (frames, height // merge, width // merge)

        def load() -> Arrays:
            kept = self._kept.get(key)
            return kept[1] if kept else self._processed(key, medium.kind, medium_bytes(medium, where), several, where)[1]

        return text, Content(medium.kind, key, length, load, grid)

    def lead(self, text: str) -> tuple[int, ...]:
        """See `MediaProcessor`: transformers adds what the tokenizer adds, unless the text begins with BOS."""
        bos = self._inner.tokenizer.bos_token
        return () if bos and text.startswith(bos) else self._lead

    def _processed(self, key: str, kind: MediaKind, content: bytes, several: bool, where: str) -> tuple[str, Arrays]:
        """What transformers' processor makes of a text that is this one medium, or the first of two where `several`."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        times = 2 if several else 1
        token = self.placeholders[kind][0]
        call: dict[str, Any] = {"text": token * times, "add_special_tokens": False, "return_text_replacement_offsets": True}
        if kind == "image":
            call["images"] = [[picture(content, where)] * times]
        else:
            extractor = self._inner.feature_extractor
            sound = waveform(content, extractor.sampling_rate, where)
            longest = getattr(extractor, "n_samples", None)
            if longest is not None and len(sound) > longest:
                rate = extractor.sampling_rate
                raise DataError(
                    f"{where}: the sound lasts {len(sound) / rate:.1f} s, and this model hears {longest / rate:.0f} s; the rest would be "
                    "cut off. Cut it into shorter ones."
                )
            call |= {"audio": [sound], "sampling_rate": extractor.sampling_rate}
        try:
            made = self._inner(**call)
        except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            raise DataError(f"{where}: the model's processor refused the {kind}: {_line(error)} Mend or remove it.") from error
        [[first, *_]] = made["text_replacement_offsets"]
        arrays = {name: np.asarray(value) for name, value in made.items() if name not in _OF_TEXT}
        if several:  # the second was there to be one of several; the number of images stays
            arrays = {name: array if name == "batch_num_images" else array[:1] for name, array in arrays.items()}
        self._keep(key, first["replacement"], arrays)
        return first["replacement"], arrays

    def _keep(self, key: str, text: str, arrays: Arrays) -> None:
        self._kept[key] = (text, arrays)
        self._kept_bytes += sum(array.nbytes for array in arrays.values())
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, (_, old) = self._kept.popitem(last=False)
            self._kept_bytes -= sum(array.nbytes for array in old.values())


def _built(folder: Path, family: Family) -> Any:
    """transformers' processor; where its class wants a video processor that cannot be had, the same class without one."""
    kind: Any = getattr(importlib.import_module("transformers"), family.processor)
    files: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if "video_processor" not in kind.get_attributes():
        return kind.from_pretrained(folder, **files)

    # images alone never reach the video processor, which needs torchvision
    without: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda self, name, value: None})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **files)
    images = transformers.AutoImageProcessor.from_pretrained(folder, **files)
    settings, _ = kind.get_processor_dict(folder, **files)
    attributes = kind.get_attributes()
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": None}
    built = without.from_args_and_dict([parts[name] for name in attributes], settings)
    del built.video_processor
    return built


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") + "."
