"""Models and tokenizers as people hold them in code → a `LanguageModel` and a `Chat`; templates put onto a tokenizer.

In: a transformers model or peft's wrapper around one, or a name; a tokenizer or processor, or none. Out: what the training
functions take. A tokenizer in code is written into a folder and read from there, so that its rows are made by the very code
that makes all others. A template that a tokenizer was given in code counts as given: its control tokens are added, and train.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sapwood.attention import NAME, for_text, register
from sapwood.chat import Chat, named_template
from sapwood.chat.builtin import NAMES
from sapwood.chat.files import default_template, read_folder
from sapwood.chat.vocabulary import extended
from sapwood.errors import ConfigError, ModelError, SapwoodError, TemplateError
from sapwood.model import Dtype, LanguageModel, load_model
from sapwood.model.attending import fuse_attention
from sapwood.model.fused import fuse
from sapwood.model.gated import fuse_gates
from sapwood.model.norms import fuse_norms
from sapwood.model.on_gpu import fuse_on_gpu
from sapwood.model.processor import processor_or_reason
from sapwood.recipes import Screen
from sapwood.recipes.tune import fetch_model
from sapwood.trl.options import Options

_DTYPES: Mapping[str, Dtype] = {"bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32", "auto": "auto"}


def opened(model: Any, args: Options, quantization: Any, screen: Screen, notes: list[str]) -> tuple[LanguageModel, Path | None]:
    """The model, and the folder it was loaded from where it came by name. Raises `ConfigError` and `ModelError`."""
    if isinstance(model, str | Path):
        dtype = _dtype(args, quantization, notes)
        folder = fetch_model(str(model), screen)
        return load_model(folder, dtype, device=device_of(args)), folder
    for name, value in (("quantization_config", quantization), ("model_init_kwargs", args.model_init_kwargs)):
        if value:
            raise ConfigError(f"{name} is for a model given by name; this one is loaded already. Give it to from_pretrained instead.")
    if not isinstance(model, transformers.PreTrainedModel | peft.PeftModel):
        raise ConfigError(f"model is a {type(model).__name__}. Give a name, a folder, a model of transformers, or peft's wrapper of one.")
    return _wrapped(model, args, notes), None


def _wrapped(module: Any, args: Options, notes: list[str]) -> LanguageModel:
    """A model held in code, for computing on forests."""
    if isinstance(module, peft.PeftModel):
        if any(config.is_prompt_learning for config in module.peft_config.values()):
            raise ConfigError("This model learns a prompt (peft's prompt tuning and its kin), which Sapwood does not train. Use LoRA.")
        trained = sum(parameter.requires_grad for parameter in module.parameters())
        notes.append(f"The model brings its own adapter, which is trained as it is ({trained} tensors).")
    elif any(isinstance(layer, BaseTunerLayer) for layer in module.modules()):
        raise ConfigError(
            "This model's layers carry an adapter that an earlier trainer (or load_adapter) put there, without peft's wrapper around them. "
            "Give that trainer's `model`, which is the wrapper, or load the model again."
        )
    elif hasattr(module, "peft_config"):
        del module.peft_config  # what is left behind when an adapter is merged or unloaded
    if args.bf16 is not None and not any(hasattr(parameter, "quant_state") for parameter in module.parameters()):
        wanted = torch.bfloat16 if args.bf16 else torch.float32
        base = module.get_base_model() if isinstance(module, peft.PeftModel) else module
        if base.dtype != wanted:
            notes.append(
                f"bf16={args.bf16}: the model's weights go from {_word(base.dtype)} to {_word(wanted)}; what is trained has fp32 masters."
            )
            adapters = {name: p.detach().clone() for name, p in module.named_parameters() if "lora_" in name}
            base.to(wanted)
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    if name in adapters:
                        parameter.data = adapters[name]
    register()
    if args.use_cpu and module.device.type != "cpu":
        raise ConfigError(f"use_cpu=True, but the model is on {module.device}. Move it with model.to('cpu'), or leave use_cpu out.")
    model = LanguageModel(module.eval())
    drawn = sorted({layer.p for name, layer in module.named_modules() if isinstance(layer, nn.Dropout) and layer.p and "lora_" not in name})
    if drawn:
        notes.append(f"The model's own dropout ({', '.join(map(str, drawn))}) is off while it trains; an adapter's is not.")
    if isinstance(module, peft.PeftModel):
        fuse(module)
        fuse_norms(module)
        fuse_gates(module)
        fuse_on_gpu(module)
        fuse_attention(module)
    return model


@contextmanager
def forest_attention(model: LanguageModel) -> Iterator[None]:
    """Attention over forests inside the block; outside of it transformers' own, so that the model generates as people expect."""
    base = model.base  # also after the block, in which an adapter may have been put around it
    if not model.shares_prefixes:
        yield
        return
    base.set_attn_implementation(for_text(base.config, NAME))
    try:
        yield
    finally:
        stock = "sdpa" if getattr(base, "_supports_sdpa", False) else "eager"
        base.set_attn_implementation(for_text(base.config, stock))


def _dtype(args: Options, quantization: Any, notes: list[str]) -> Dtype:
    """The type in which a model by name is loaded."""
    options = dict(args.model_init_kwargs or {})
    asked = options.pop("dtype", options.pop("torch_dtype", None))
    for name, value in options.items():
        if name in ("attn_implementation", "use_cache", "device_map", "low_cpu_mem_usage", "local_files_only", "use_safetensors"):
            notes.append(f"model_init_kwargs: {name}={value!r} is Sapwood's to choose.")
        elif value not in (None, False):
            raise ConfigError(
                f"model_init_kwargs holds {name}={value!r}, which cannot be honoured. Load the model yourself, and give it here."
            )
    if quantization is not None:
        if not getattr(quantization, "load_in_4bit", False) or getattr(quantization, "bnb_4bit_quant_type", "nf4") != "nf4":
            raise ConfigError(
                "quantization_config: 4 bits as NF4 are what Sapwood trains adapters on (load_in_4bit, bnb_4bit_quant_type='nf4')."
            )
        return "nf4"  # type: ignore[return-value,unused-ignore]
    if asked is not None:
        word = str(asked).removeprefix("torch.")
        if word not in _DTYPES:
            raise ConfigError(f"model_init_kwargs: dtype is {word}; allowed are {', '.join(_DTYPES)}.")
        return _DTYPES[word]
    return "auto" if args.bf16 is None else "bf16" if args.bf16 else "fp32"


def device_of(args: Options) -> str:
    """Where a model given by name is loaded."""
    return "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def chat_of(
    model: LanguageModel, folder: Path | None, processing: Any, args: Options, place: Path, *, texts: bool, longest: int | None = None
) -> tuple[Chat, Mapping[str, bytes]]:
    """The chat that makes the rows, and the files to lie beside the result by which others chat alike.

    `place` takes the files of a tokenizer held in code; `texts`: no row is a conversation, so a base model needs no template;
    `longest`: most tokens of a row.

    Raises `ConfigError` where nothing says how to tokenise, `TemplateError` where nothing says how conversations are written.
    """
    given: str | None = None
    if processing is None and folder is None:
        name = str(getattr(model.base.config, "_name_or_path", "") or "")
        if not (Path(name) / "tokenizer.json").is_file():
            raise ConfigError(
                f"processing_class is missing, and the model's own folder ({name or 'none'}) is not here. Give the tokenizer: "
                "processing_class=tokenizer."
            )
        folder = Path(name)
    elif processing is not None:
        folder = Path(processing) if isinstance(processing, str | Path) else written(processing, place, model)
        if not isinstance(processing, str | Path):
            given = _template_given(processing)
    assert folder is not None
    if args.chat_template_path is not None:
        given = _template_at(args.chat_template_path, folder)
    if given is None and texts and default_template(folder) is None:
        stand_in = _loaded(folder, named_template("plain", folder), longest)
        return stand_in, {name: (folder / name).read_bytes() for name in _TOKENIZER if (folder / name).is_file()}
    try:
        chat = _loaded(folder, given, longest)
    except TemplateError as error:
        text = str(error).replace(
            "give it a template with `--template chatml` (or `--template FILE`)",
            f"give it a template with {args.name}(chat_template_path='chatml'), or a Jinja file there",
        )
        raise TemplateError(text) from None
    return chat, chat.saved_files()


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def _loaded(folder: Path, template: str | None, longest: int | None) -> Chat:
    """As `Chat.load`, for rows of at most `longest` tokens."""
    today = datetime.now()
    if template is None:
        Chat.load(folder, today=today)  # says what is missing in its own words
    content, added = read_folder(folder), None
    if template is not None:
        added = extended(replace(content, templates={"default": template}, template_origin="the template given"), template)
        content = added.folder
    if longest is not None:
        content = replace(content, context_length=min(longest, content.context_length or longest))
    return Chat(content, today, added).with_media(processor_or_reason(folder))


def written(processing: Any, place: Path, model: LanguageModel | None = None) -> Path:
    """The folder with a tokenizer's or processor's files, and what the model's config says beside them."""
    if not hasattr(processing, "save_pretrained"):
        raise ConfigError(f"processing_class is a {type(processing).__name__}. Give a tokenizer or a processor of transformers.")
    place.mkdir(parents=True, exist_ok=True)
    processing.save_pretrained(str(place))
    if not (place / "tokenizer.json").is_file():
        raise ConfigError(
            f"processing_class is a {type(processing).__name__}, which saves no tokenizer.json. Load the fast one: "
            "AutoTokenizer.from_pretrained(…)."
        )
    if model is not None:
        model.base.config.save_pretrained(str(place))
        if getattr(model.base, "generation_config", None) is not None:
            model.base.generation_config.save_pretrained(str(place))
    return place


def _template_given(processing: Any) -> str | None:
    """The template of a tokenizer in code, where it is not that of the files it was loaded from; None where it is, or there are none."""
    text = getattr(processing, "chat_template", None)
    inner = getattr(processing, "tokenizer", processing)
    text = text or getattr(inner, "chat_template", None)
    name = str(getattr(inner, "name_or_path", "") or "")
    folder = Path(name)
    if not folder.is_dir():
        cached = try_to_load_from_cache(name, "tokenizer_config.json") if name.count("/") == 1 else None
        folder = Path(cached).parent if isinstance(cached, str) else folder
    if not isinstance(text, str) or not (folder / "tokenizer_config.json").is_file():
        return None
    return None if default_template(folder) == text else text


def _template_at(path: str, folder: Path) -> str:
    """The template of `chat_template_path`: a file, a name, or that of another model's folder."""
    if (Path(path) / "tokenizer_config.json").is_file():
        text = default_template(Path(path))
        if text is None:
            raise ConfigError(f"chat_template_path is {path}, whose tokenizer has no chat template. Name another model, or a Jinja file.")
        return text
    if path in NAMES or Path(path).is_file():
        return named_template(path, folder)
    return _template_of(path)


def _template_of(name: str) -> str:
    try:
        text = transformers.AutoTokenizer.from_pretrained(name).chat_template
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name!r}: no tokenizer could be loaded ({' '.join(str(error).split())[:200]}). Name a Jinja file instead."
        ) from None
    if not isinstance(text, str):
        raise ConfigError(f"{name!r}: its tokenizer has no chat template. Name another model, or `chatml`.")
    return text


def setup_chat_format(model: Any, tokenizer: Any, format: str = "chatml", resize_to_multiple_of: int | None = None) -> tuple[Any, Any]:  # noqa: A002
    """Give a base model's tokenizer a chat template, as TRL did until 0.25. Returns (model, tokenizer), the model as it was.

    Tokens of the template that the tokenizer lacks are added, and their embeddings grow, when training begins; so
    `resize_to_multiple_of` has nothing to do. Raises `ConfigError` for a tokenizer that has a template.
    """
    if format not in NAMES:
        raise ConfigError(f"setup_chat_format: format is {format!r}; allowed are {', '.join(NAMES)}.")
    if getattr(tokenizer, "chat_template", None):
        raise ConfigError("setup_chat_format: this tokenizer has a chat template already. Use it as it is, or set it to None first.")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.chat_template = named_template(format, written(tokenizer, Path(folder)))
    Screen().say(f"setup_chat_format has left TRL (0.26). The tokenizer has the template {format!r} now; the model changes when it trains.")
    return model, tokenizer


def clone_chat_template(
    model: Any, tokenizer: Any, source_tokenizer_path: str, resize_to_multiple_of: int | None = 64
) -> tuple[Any, Any, list[int]]:
    """Give a tokenizer the chat template of another. Returns (model, tokenizer, ids that training will add), the model as it was."""
    text = default_template(Path(source_tokenizer_path)) if Path(source_tokenizer_path).is_dir() else _template_of(source_tokenizer_path)
    if text is None:
        raise ConfigError(f"{source_tokenizer_path}: its tokenizer has no chat template. Name another model.")
    with tempfile.TemporaryDirectory() as folder:
        wrapped = _ConfigOf(model) if hasattr(model, "config") else None
        found = read_folder(written(tokenizer, Path(folder), wrapped))  # type: ignore[arg-type]
    tokenizer.chat_template = text
    try:
        return model, tokenizer, sorted(extended(found, text).new.values())
    except SapwoodError as error:
        raise ModelError(str(error)) from None


class _ConfigOf:
    """What `written` reads of a model."""

    def __init__(self, model: Any) -> None:
        self.base = model
