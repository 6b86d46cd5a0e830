"""The three forms of an export: merged weights, a PEFT folder, a GGUF file with its Modelfile.

In: what a run trained, with its answers to prompts of the run (`Tuned`), and a folder to make. Out: what was compared, what a person
should know, and commands that use the export. Whatever does not compute what was trained raises, and `exporting` leaves nothing.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import tyro

from sapwood.chat import Chat
from sapwood.errors import ConfigError, storage
from sapwood.export.card import RunFacts
from sapwood.export.gguf_file import OWN, check_quant, quantize, write_gguf
from sapwood.export.gguf_readers import LlamaCpp, has_llama_cpp, read_tensors
from sapwood.export.gguf_readers import check_prompts as check_prompts_of
from sapwood.export.gguf_vocabulary import vocabulary_of
from sapwood.export.merging import TYPES, SavedType, merge, save_weights, widen
from sapwood.export.modelfile import checked_template, modelfile
from sapwood.export.push import check_name
from sapwood.export.readers import check_generation, check_prompts, logprobs_of_module, read_adapter, read_model, reader_name
from sapwood.export.verify import Parity, Tolerance, Trace, compare, require
from sapwood.model import LanguageModel, load_model
from sapwood.model.new_tokens import rows_of
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import TuneConfig
from sapwood.run import write_atomic

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

    push: str | None = None
    """Send the export to a model hub as owner/name, once it was found to be right. Nothing is sent without this."""
    private: bool = True
    """Make what is pushed private."""

    def __post_init__(self) -> None:
        if self.push is not None:
            check_name(self.push)
        elif not self.private:
            raise ConfigError("private is set, but nothing is pushed. Add `--push owner/name`, or leave it out.")
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
    facts: RunFacts

    @property
    def base_name(self) -> str:
        """What others load the base by: its name on the hub, or its folder here."""
        named = self.config.model
        return named if "/" in named and not Path(named).exists() else str(self.base.resolve())


@dataclass(frozen=True)
class Written:
    """One form, written and compared."""

    parity: dict[str, Parity]
    notes: list[str]
    use: list[str]
    """Commands, or lines of Python, that use what will lie at its place."""


def write(tuned: Tuned, folder: Path, to: Path, config: ExportConfig, screen: Screen) -> Written:
    """Write one form into `folder`, which is made, read it back, compare. It will be moved to `to`.

    Raises `ExportError` for what does not compute what was trained.
    """
    forms = {"merged": _merged, "adapter": _adapter, "gguf": _gguf}
    written = forms[config.as_](tuned, folder, to, config, screen)
    doubts = [doubt for parity in written.parity.values() for doubt in parity.doubts]
    return Written(written.parity, [*written.notes, *doubts, *_habits(tuned)], written.use)


def _habits(tuned: Tuned) -> list[str]:
    """What every prompt of the run had, and a user must send too."""
    notes = []
    systems = {next((m.content for m in one.prompt.messages if m.role == "system"), None) for one in tuned.traces}
    if len(systems) == 1 and None not in systems and len(tuned.traces) > 1:
        notes.append("All prompts compared begin with one system message, as the rows did: send the same.")
    if tuned.facts.template_arguments:
        arguments = orjson.dumps(dict(tuned.facts.template_arguments)).decode()
        notes.append(
            f"Most rows were trained with the template arguments {arguments}: send the same (chat_template_kwargs in most servers)."
        )
    return notes


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(kl=1e-6, tie=1e-3),
    "bf16": Tolerance(kl=1e-3, tie=0.1),
    "fp16": Tolerance(kl=1e-5, tie=0.02),
    "adapter": Tolerance(kl=1e-6, tie=1e-3),
    "f32": Tolerance(kl=1e-4, tie=0.05),
    "f16": Tolerance(kl=1e-4, tie=0.05),
    "q8_0": Tolerance(kl=5e-3, tie=0.3),
}
"""How far each form may be from what was trained, by what it is; docs/export.md says what was measured."""
COARSE = Tolerance(kl=0.05, tie=1.0)
"""Of types of four to six bits; smaller ones need `--tolerance`."""


def _tolerance(name: str, config: ExportConfig) -> Tolerance:
    own = TOLERANCES.get(name, COARSE)
    return own if config.tolerance is None else Tolerance(kl=config.tolerance, tie=max(own.tie, 10 * config.tolerance))


def _merged(tuned: Tuned, folder: Path, to: Path, config: ExportConfig, screen: Screen) -> Written:
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
    return Written({f"merged {dtype}": parity}, [], [f"sapwood chat {to}", f"sapwood eval FILE --model {to}", f"vllm serve {to}"])


def _adapter(tuned: Tuned, folder: Path, to: Path, config: ExportConfig, screen: Screen) -> Written:
    rows = rows_of(tuned.model)
    with storage(folder, "write the adapter to"):
        shutil.copytree(tuned.trained, folder)
    file = folder / "adapter_config.json"
    described = orjson.loads(file.read_bytes())
    described["base_model_name_or_path"] = tuned.base_name
    write_atomic(file, orjson.dumps(described, option=orjson.OPT_INDENT_2))
    compared = check_prompts(folder, tuned.chat, tuned.traces)
    screen.say(f"Prompt ids of {compared} prompts are the same in transformers' tokenizer.")
    base = _plain_base(tuned)
    base_rows = len(base.get_input_embeddings().weight)
    module = read_adapter(base, folder, rows)
    parity = compare(tuned.traces, logprobs_of_module(module), _tolerance("adapter", config), reader_name("transformers", "peft"))
    screen.say(parity.sentence)
    require(parity, "The adapter, on its base in plain peft,", "Please report this with the run's config.yaml.")
    grown = f"; base.resize_token_embeddings({rows})" if rows != base_rows else ""
    kind = f"dtype={str(TYPES[tuned.dtype]).removeprefix('torch.')!r}"
    if tuned.config.dtype == "nf4":
        bits = "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True)"
        kind += f", quantization_config={bits}"
    use = [
        f"base = AutoModelForCausalLM.from_pretrained({tuned.base_name!r}, {kind}){grown}",
        f"model = PeftModel.from_pretrained(base, {str(to)!r})",
    ]
    name = "nf4" if tuned.config.dtype == "nf4" else tuned.dtype
    return Written({"adapter": parity}, [f"The base was {name} in training: in another type it is another base."], use)


def _plain_base(tuned: Tuned) -> Any:
    """The base as it was rounded in training, in fp32, with transformers' own attention."""
    if tuned.config.dtype != "nf4":
        return read_model(tuned.base, TYPES[tuned.dtype])
    base = widen(load_model(tuned.base, "nf4", device="cpu")).module
    base.set_attn_implementation("sdpa")
    return base


def _gguf(tuned: Tuned, folder: Path, to: Path, config: ExportConfig, screen: Screen) -> Written:
    quant = check_quant(config.quant or "f16")
    files, chat = tuned.chat.saved_files(), tuned.chat
    file = folder / f"{tuned.facts.name}-{quant}.gguf"
    with storage(folder, "make the folder"):
        folder.mkdir()
    vocabulary = vocabulary_of(chat, files, rows_of(tuned.model))
    with screen.progress("merging and writing"):
        merged = merge(tuned.model)
        own = quant if quant in OWN else "f32"
        whole = file if own == quant else folder / "whole.gguf"
        write_gguf(merged, whole, vocabulary, own, {"name": tuned.facts.name, "base_model": tuned.config.model})
        if own != quant:
            quantize(whole, file, quant)
            whole.unlink()
    parity, notes = _compared(tuned, file, merged.base.config, vocabulary.add_bos, _tolerance(quant, config), screen)
    require(parity, f"The GGUF file in {quant}", "Choose a type that rounds less, such as `--quant f16`, or accept more with --tolerance.")
    arguments = tuned.facts.template_arguments
    template, said = checked_template(chat, [one.prompt for one in tuned.traces], arguments, adds_bos=vocabulary.add_bos)
    with storage(folder, "write the Modelfile"):
        (folder / "Modelfile").write_text(modelfile(chat, file.name, template, _sampling(files)), encoding="utf-8")
    if template is not None:
        screen.say("The Modelfile's template renders the run's prompts, and conversations of all shapes, as the model's own does.")
    use = [f"ollama create {tuned.facts.name} -f {to / 'Modelfile'}", f"llama-server -m {to / file.name} --jinja"]
    return Written({f"gguf {quant}": parity}, [*vocabulary.notes, *notes, *said], use if template is not None else use[::-1])


def _compared(tuned: Tuned, file: Path, model: Any, adds_bos: bool, tolerance: Tolerance, screen: Screen) -> tuple[Parity, list[str]]:
    """By llama.cpp where it is there, else by gguf and transformers."""
    chat, traces, notes = tuned.chat, tuned.traces, []
    if has_llama_cpp():
        llama = LlamaCpp(file, max(len(one.ids) for one in traces) + 8)
        compared = check_prompts_of(llama, chat, traces, adds_bos=adds_bos)
        screen.say(f"Prompt ids of {compared} prompts are the same in llama.cpp.")
        parity = compare(traces, llama.logprobs, tolerance, llama.name)
        for stop in sorted(chat.stop_ids):
            if not llama.stops_at(stop):
                notes.append(f"llama.cpp does not stop at {chat.tokens.token_of(stop)!r} by itself: give it as a stop string.")
        llama.close()
    else:
        parity = compare(traces, read_tensors(file, model), tolerance, reader_name("gguf", "transformers"))
        notes.append(
            "llama.cpp itself was not tried: its Python bindings are not installed. What is in the file was computed with; to try "
            "llama.cpp's tokenizer and arithmetic too, `pip install llama-cpp-python` and export again."
        )
    screen.say(parity.sentence)
    return parity, notes


def _sampling(files: dict[str, bytes]) -> dict[str, float]:
    """Ollama's parameters: those of generation_config.json where it samples, else greedy, which is what runs are measured with."""
    generation = orjson.loads(files["generation_config.json"])
    if not generation.get("do_sample"):
        return {"temperature": 0.0}
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"}
    return {theirs: float(generation[ours]) for ours, theirs in names.items() if generation.get(ours) is not None}
