"""`sapwood export`: a run's model for the programs of others, each export loaded again and compared with what was trained.

In: a run directory. Out: a folder of merged weights, a PEFT folder, or a GGUF file with its Modelfile, each with a model card
and `export.json`, which holds the comparison. The folder appears whole, or not at all.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch

from sapwood import __version__
from sapwood.chat import Chat
from sapwood.config import to_dict
from sapwood.data.messages import Notes, read_messages
from sapwood.errors import AssetError, CheckpointError, ConfigError, DataError, TemplateError, storage
from sapwood.export.card import facts_of_run, licence_of, write_card
from sapwood.export.gguf_file import check_quant
from sapwood.export.merging import SavedType, widen
from sapwood.export.push import push
from sapwood.export.verify import Parity, trace
from sapwood.model import load_adapter, load_model
from sapwood.model.load import Dtype
from sapwood.recipes.export_forms import ExportConfig, Form, Tuned, Written, write
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import TuneConfig, config_of, fetch_model, flat, load_chat
from sapwood.records import Message, Prompt
from sapwood.run import read_json, read_records, write_atomic

SCHEMA = 1
"""Version of `export.json`."""


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


def export(run: Path, config: ExportConfig, *, screen: Screen | None = None) -> ExportResult:
    """Export what a run trained. Raises a `SapwoodError`; nothing is then left that looks whole."""
    began, screen = time.perf_counter(), screen or Screen(quiet=True)
    tuned_config = config_of(run)
    if config.as_ == "adapter" and tuned_config.train.full:
        raise ConfigError(f"{run} trained all weights, so there is no adapter. Export it with `--as merged` or `--as gguf`.")
    to = config.to or run / "export" / _name(config)
    if to.exists():
        raise ConfigError(f"{to} exists, and an export never writes over anything. Delete it, or name another folder with --to.")
    if config.as_ == "gguf":
        check_quant(config.quant or "f16")  # before anything is loaded
    tuned = open_run(run, tuned_config, config, screen)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    with storage(to, "write the export"):
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            screen.title({"merged": "Merged weights", "adapter": "Adapter", "gguf": "GGUF"}[config.as_])
            written = write(tuned, temporary, to, config, screen)
            _describe(tuned, config, written, temporary, to)
            os.replace(temporary, to)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if config.push is not None:
        with screen.progress(f"sending to {config.push}"):
            address = push(to, config.push, private=config.private)
        screen.say(f"Sent to {config.push}: {address}")
    return ExportResult(to, config.as_, written.parity, tuple(written.notes), tuple(written.use), time.perf_counter() - began)


def _name(config: ExportConfig) -> str:
    return "-".join(filter(None, (config.as_, config.dtype, config.quant)))


def open_run(run: Path, tuned: TuneConfig, config: ExportConfig, screen: Screen) -> Tuned:
    """Load what a run trained, in fp32, and let it answer. Raises `CheckpointError` where the run has not finished."""
    trained = run / ("model" if tuned.train.full else "adapter")
    if not trained.is_dir():
        raise CheckpointError(f"{run} holds no {trained.name}/: it has not finished. Go on with `sapwood sft {run}`, then export it.")
    try:
        base = fetch_model(tuned.model, screen)
    except AssetError as error:
        raise CheckpointError(f"{run} was trained on {tuned.model}, which is not found any more: {error}") from error
    chat = load_chat(base, tuned.template, trained=trained, tools_in_system=tuned.tools_in_system)
    dtype = _dtype_of(run, tuned)
    screen.title("What was trained")
    as_trained: Dtype = "nf4" if tuned.dtype == "nf4" else "fp32" if dtype == "fp16" else dtype
    load = partial(load_model, device="cpu")  # what is compared was computed in fp32 on the processor, wherever it was trained
    model = load(trained, "fp32") if tuned.train.full else widen(load_adapter(widen(load(base, as_trained)), trained))
    prompts, notes = prompts_of(run, chat, config)
    for note in notes:
        screen.say(note)
    with screen.progress("its answers"):
        traces = trace(model, chat, prompts, max_new_tokens=config.max_new_tokens)
    screen.say(f"{len(traces)} prompts answered, {sum(len(one.answer_N) for one in traces)} tokens to compare on.")
    facts = facts_of_run(run, tuned.model, tuned.data, _settings(tuned), dtype)
    return Tuned(run, tuned, base, trained, dtype, chat, model, traces, facts)


def _settings(tuned: TuneConfig) -> dict[str, Any]:
    """Training settings for the card, by dotted key; an adapter's only where there is one."""
    found = flat(to_dict(tuned.train))
    return {key: value for key, value in found.items() if not (tuned.train.full and key.startswith("lora."))}


def _dtype_of(run: Path, tuned: TuneConfig) -> SavedType:
    """The type that the base was rounded to: what the run noted down, since `auto` means another on another machine."""
    noted = read_json(run / "environment.json").get("model", {}).get("dtype")
    names: dict[Any, SavedType] = {str(torch.bfloat16): "bf16", str(torch.float16): "fp16", str(torch.float32): "fp32"}
    return names.get(noted, "bf16" if tuned.dtype == "bf16" else "fp32")


def prompts_of(run: Path, chat: Chat, config: ExportConfig) -> tuple[list[Prompt], list[str]]:
    """Prompts of held-out items, spread evenly, or of everyday questions where nothing is held out; and sentences about them."""
    records = read_records(run / "items.jsonl")
    if any("messages" not in record or "source" not in record for record in records):
        raise DataError(f"{run / 'items.jsonl'}: a record without a question. Delete the file to have everyday questions asked instead.")
    records = [record for record in records if not _has_media(record)]
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


def _describe(tuned: Tuned, config: ExportConfig, written: Written, folder: Path, to: Path) -> None:
    """The card, the licence and `export.json` beside what was written."""
    here = [line.replace(str(to), ".").replace(str(tuned.base.resolve()), tuned.config.model) for line in written.use]  # made public, maybe
    card = write_card(tuned.facts, config.as_, licence_of(tuned.base), written.parity, written.notes, here)
    write_atomic(folder / "README.md", card.encode())
    for file in (*tuned.base.glob("LICENSE*"), *tuned.base.glob("NOTICE*")):
        shutil.copyfile(file, folder / file.name)
    content = {
        "schema": SCHEMA,
        "sapwood": __version__,
        "run": tuned.facts.name,
        "form": config.as_,
        "base_model": tuned.config.model,
        "base_dtype_in_training": tuned.dtype,
        "parity": {name: one.to_dict() for name, one in written.parity.items()},
        "notes": written.notes,
    }
    write_atomic(folder / "export.json", orjson.dumps(content, option=orjson.OPT_INDENT_2, default=str))
