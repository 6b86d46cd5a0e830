"""`sapwood export`: a run's model for the programs of others, each export loaded again and compared with what was trained.

In: a run directory. Out: a folder of merged weights, a PEFT folder, or a GGUF file with its Modelfile, each with a model card
and `export.json`, which holds the comparison. The folder appears whole, or not at all.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import torch
import tyro

from sapwood import __version__
from sapwood.chat import Chat
from sapwood.data.messages import Notes, read_messages
from sapwood.errors import CheckpointError, ConfigError, DataError, TemplateError, storage
from sapwood.export.merging import TYPES, SavedType, merge, save_weights, widen
from sapwood.export.readers import check_generation, check_prompts, logprobs_of_module, read_adapter, read_model, reader_name
from sapwood.export.verify import Parity, Tolerance, Trace, compare, require, trace
from sapwood.model import LanguageModel, load_adapter, load_model
from sapwood.model.load import Dtype
from sapwood.model.new_tokens import rows_of
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import TuneConfig, config_of, fetch_model, load_chat
from sapwood.records import Message, Prompt
from sapwood.run import read_records, write_atomic

SCHEMA = 1
"""Version of `export.json`."""

Form = Literal["merged", "adapter", "gguf"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is written, and how it is checked."""

    to: Path | None = None
    """The folder to make; `RUN/export/NAME` where not given. It must not exist."""
    as_: Annotated[Form, tyro.conf.arg(name="as")] = "merged"
    """merged: weights that anything loads; adapter: a PEFT folder; gguf: a file for llama.cpp and Ollama."""
    dtype: SavedType | None = None
    """Type of merged weights; that of the base model in training where not given. fp32 rounds nothing and is twice as large."""
    quant: str | None = None
    """Type of the numbers in a GGUF file: f32, f16 (where not given), bf16, q8_0; or what llama-quantize makes, such as q4_k_m."""
    prompts: int = 8
    """Held-out prompts of the run on which an export is compared with what was trained."""
    max_new_tokens: int = 32
    """Longest answer to each of them, in tokens."""
    tolerance: float | None = None
    """Largest mean divergence from what was trained, in nats a token; each form has its own where not given."""

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.tolerance is not None and not 0 < self.tolerance < 100:
            raise ConfigError(f"tolerance is {self.tolerance}; give a number of nats above 0, such as 0.01.")
        if self.quant is not None and self.as_ != "gguf":
            raise ConfigError(f"quant is {self.quant!r}, which only a GGUF file has: add `--as gguf`, or leave it out.")
        if self.dtype is not None and self.as_ != "merged":
            raise ConfigError(f"dtype is {self.dtype!r}, which only merged weights have. Leave it out, or write `--as merged`.")


@dataclass(frozen=True)
class ExportResult:
    """A finished export."""

    path: Path
    form: Form
    parity: dict[str, Parity]
    """Each comparison, by what was compared."""
    notes: tuple[str, ...]
    """Sentences that a person should read once."""
    next: tuple[str, ...]
    """Commands that use it."""
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The result for machines."""
        return {
            "path": str(self.path),
            "form": self.form,
            "parity": {name: parity.to_dict() for name, parity in self.parity.items()},
            "notes": list(self.notes),
            "next": list(self.next),
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        return "\n".join([str(self.path), *(parity.sentence for parity in self.parity.values())])


@dataclass(frozen=True)
class Tuned:
    """What a run trained, ready to be exported."""

    run: Path
    config: TuneConfig
    base: Path
    """Folder of the base model."""
    trained: Path
    """Folder of the adapter, or of the whole model."""
    dtype: SavedType
    """Type that the base was rounded to in training."""
    chat: Chat
    model: LanguageModel
    """In fp32, on the base as it was rounded."""
    traces: list[Trace]


def export(run: Path, config: ExportConfig, *, screen: Screen | None = None) -> ExportResult:
    """Export what a run trained. Raises a `SapwoodError`; nothing is then left that looks whole."""
    began, screen = time.perf_counter(), screen or Screen(quiet=True)
    tuned_config = config_of(run)
    if config.as_ == "adapter" and tuned_config.train.full:
        raise ConfigError(f"{run} trained all weights, so there is no adapter. Export it with `--as merged` or `--as gguf`.")
    to = config.to or run / "export" / _name(config)
    if to.exists():
        raise ConfigError(f"{to} exists, and an export never writes over anything. Delete it, or name another folder with --to.")
    tuned = open_run(run, tuned_config, config, screen)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    with storage(to, "write the export"):
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            parity, notes, follow = _write(tuned, temporary, to, config, screen)
            content = _record(tuned, config, parity, notes)
            write_atomic(temporary / "export.json", orjson.dumps(content, option=orjson.OPT_INDENT_2, default=str))
            os.replace(temporary, to)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return ExportResult(to, config.as_, parity, tuple(notes), tuple(follow), time.perf_counter() - began)


def _name(config: ExportConfig) -> str:
    return "-".join(filter(None, (config.as_, config.dtype, config.quant)))


def open_run(run: Path, tuned: TuneConfig, config: ExportConfig, screen: Screen) -> Tuned:
    """Load what a run trained, in fp32, and let it answer. Raises `CheckpointError` where the run has not finished."""
    trained = run / ("model" if tuned.train.full else "adapter")
    if not trained.is_dir():
        raise CheckpointError(f"{run} holds no {trained.name}/: it has not finished. Go on with `sapwood sft {run}`, then export it.")
    base = fetch_model(tuned.model, screen)
    chat = load_chat(base, tuned.template, trained=trained, tools_in_system=tuned.tools_in_system)
    dtype = _dtype_of(run, tuned)
    screen.title("What was trained")
    as_trained: Dtype = "fp32" if dtype == "fp16" else dtype
    model = load_model(trained, "fp32") if tuned.train.full else widen(load_adapter(widen(load_model(base, as_trained)), trained))
    prompts, notes = prompts_of(run, chat, config)
    for note in notes:
        screen.say(note)
    with screen.progress("its answers"):
        traces = trace(model, chat, prompts, max_new_tokens=config.max_new_tokens)
    screen.say(f"{len(traces)} prompts answered, {sum(len(one.answer_N) for one in traces)} tokens to compare on.")
    return Tuned(run, tuned, base, trained, dtype, chat, model, traces)


def _dtype_of(run: Path, tuned: TuneConfig) -> SavedType:
    """The type that the base was rounded to: what the run noted down, since `auto` means another on another machine."""
    file = run / "environment.json"
    noted = orjson.loads(file.read_bytes()).get("model", {}).get("dtype") if file.is_file() else None
    names: dict[Any, SavedType] = {str(torch.bfloat16): "bf16", str(torch.float16): "fp16", str(torch.float32): "fp32"}
    return names.get(noted, "bf16" if tuned.dtype == "bf16" else "fp32")


def prompts_of(run: Path, chat: Chat, config: ExportConfig) -> tuple[list[Prompt], list[str]]:
    """Prompts of held-out items, spread evenly, or of everyday questions where nothing is held out; and sentences about them."""
    records = [record for record in read_records(run / "items.jsonl") if not _has_media(record)]
    chosen = (
        [records[number * len(records) // config.prompts] for number in range(config.prompts)] if len(records) > config.prompts else records
    )
    prompts = []
    for record in chosen:
        messages = read_messages(record["messages"], Notes())
        prompts.append(chat.prompt(messages, record.get("tools", ()), record.get("template_arguments"), where=str(record["source"])))
    room = chat.context_length
    short = [prompt for prompt in prompts if room is None or len(prompt.ids) + config.max_new_tokens <= room]
    if short:
        return short, []
    return _everyday(chat, config), ["The run held no prompt of text out, so everyday questions are asked instead."]


def _has_media(record: dict[str, Any]) -> bool:
    parts = [part for message in record["messages"] if isinstance(message["content"], list) for part in message["content"]]
    return any(part.get("type") != "text" for part in parts)


_QUESTIONS = (
    "Where does sapwood grow?",
    "What is 17 plus 25?",
    "Name three colours of the rainbow.",
    "Translate to French: good morning.",
    "Write one sentence about the sea.",
    "What is the capital of Japan?",
    "How many legs does a spider have?",
    "Say hello to Ada.",
)


def _everyday(chat: Chat, config: ExportConfig) -> list[Prompt]:
    prompts = []
    for question in _QUESTIONS[: config.prompts]:
        try:
            prompts.append(chat.prompt([Message("user", question)]))
        except (TemplateError, DataError):
            continue
    if not prompts:
        raise TemplateError("The template refuses a plain question, so there is no prompt to compare the export on.")
    return prompts


_Written = tuple[dict[str, Parity], list[str], list[str]]


def _write(tuned: Tuned, folder: Path, to: Path, config: ExportConfig, screen: Screen) -> _Written:
    """Write one form into `folder`, read it back, compare. Comparisons, notes, and commands that use what will lie at `to`."""
    screen.title({"merged": "Merged weights", "adapter": "Adapter", "gguf": "GGUF"}[config.as_])
    if config.as_ == "merged":
        return _merged(tuned, folder, to, config, screen)
    assert config.as_ == "adapter"
    return _adapter(tuned, folder, to, config, screen)


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(kl=1e-6, tie=1e-3),
    "bf16": Tolerance(kl=1e-3, tie=0.1),
    "fp16": Tolerance(kl=1e-5, tie=0.02),
    "adapter": Tolerance(kl=1e-6, tie=1e-3),
}


def _tolerance(name: str, config: ExportConfig) -> Tolerance:
    own = TOLERANCES[name]
    return own if config.tolerance is None else Tolerance(kl=config.tolerance, tie=max(own.tie, 10 * config.tolerance))


def _merged(tuned: Tuned, folder: Path, to: Path, config: ExportConfig, screen: Screen) -> _Written:
    dtype = config.dtype or tuned.dtype
    with screen.progress("merging"):
        save_weights(merge(tuned.model), folder, dtype, tuned.chat.saved_files())
    compared = check_prompts(folder, tuned.chat, tuned.traces)
    screen.say(f"Prompt ids of {compared} prompts are the same in transformers' tokenizer.")
    module = read_model(folder)
    parity = compare(tuned.traces, logprobs_of_module(module), _tolerance(dtype, config), reader_name("transformers"))
    screen.say(parity.sentence)
    require(parity, f"The merged model in {dtype}", "Save it with `--dtype fp32`, which rounds nothing, or accept more with --tolerance.")
    check_generation(module, tuned.chat, tuned.traces, folder)
    return {f"merged {dtype}": parity}, [], [f"sapwood chat {to}", f"sapwood eval FILE --model {to}", f"vllm serve {to}"]


def _adapter(tuned: Tuned, folder: Path, to: Path, config: ExportConfig, screen: Screen) -> _Written:
    rows = rows_of(tuned.model)
    with storage(folder, "write the adapter to"):
        shutil.copytree(tuned.trained, folder)
    file = folder / "adapter_config.json"
    described = orjson.loads(file.read_bytes())
    described["base_model_name_or_path"] = (
        tuned.config.model if "/" in tuned.config.model and not tuned.base.samefile(tuned.config.model) else str(tuned.base)
    )
    write_atomic(file, orjson.dumps(described, option=orjson.OPT_INDENT_2))
    compared = check_prompts(folder, tuned.chat, tuned.traces)
    screen.say(f"Prompt ids of {compared} prompts are the same in transformers' tokenizer.")
    base = read_model(tuned.base, TYPES[tuned.dtype])
    module = read_adapter(base, folder, rows)
    parity = compare(tuned.traces, logprobs_of_module(module), _tolerance("adapter", config), reader_name("transformers", "peft"))
    screen.say(parity.sentence)
    require(parity, "The adapter, on its base in plain peft,", "Please report this with the run's config.yaml.")
    return {"adapter": parity}, [], [f"vllm serve {tuned.config.model} --enable-lora --lora-modules tuned={to}"]


def _record(tuned: Tuned, config: ExportConfig, parity: dict[str, Parity], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "sapwood": __version__,
        "run": tuned.run.name,
        "form": config.as_,
        "base_model": tuned.config.model,
        "base_dtype_in_training": tuned.dtype,
        "parity": {name: one.to_dict() for name, one in parity.items()},
        "notes": list(notes),
    }
