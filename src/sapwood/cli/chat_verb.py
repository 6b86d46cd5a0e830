"""`sapwood chat [RUN | MODEL]`: a conversation in the terminal, streamed, by the very prompts of training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from sapwood import kernels
from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.chat.overflow import Overflow
from sapwood.cli.chat_shown import InTurn, SideBySide
from sapwood.cli.options import Json, parse, take_json, take_names
from sapwood.errors import AssetError, ConfigError, SapwoodError, storage
from sapwood.generate import Engine
from sapwood.model import Dtype, LanguageModel, learn_tokens, load_adapter, load_model
from sapwood.recipes import Screen
from sapwood.recipes.beside import load_beside
from sapwood.recipes.functions import functions_of
from sapwood.recipes.talk import Talk, save_row
from sapwood.recipes.tune import config_of, fetch_model, load_chat
from sapwood.records import Message, SamplingParams
from sapwood.remote import Remote, RemoteSampler

DESCRIPTION = (
    "Talk to a run's model, to any model, or to a server's (--hosted-url, --hosted-model). /reset forgets the conversation, /save FILE "
    "[ARM] adds it to a file that `sapwood sft` reads, /quit (or Ctrl-D) ends it."
)
COMMANDS = "/reset, /save FILE [ARM], /quit"


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """The conversation."""

    system: str | None = None
    """The system message."""
    beside: tuple[str, ...] = ()
    """More arms that answer the same questions: `base` for a run's model without its adapter, NAME=FOLDER for another adapter of it."""
    tools: Path | None = None
    """A Python file: the model may call its functions, and they are called. Types and docstrings say what they take."""
    template: str | None = None
    """A chat template, where the model has none: `chatml`, `plain`, or a Jinja file. A run brings its own."""
    tools_in_system: bool = False
    """Offer tools in the system message, for templates without a place for them. A run that was trained so brings it."""
    dtype: Dtype = "auto"
    """Type of the base weights; `auto` takes a run's own."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches p."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1, what was said is less likely to be said again: small models go round in circles. 1 is off."""
    seed: int = 0
    """Seed of the answers."""
    overflow: Overflow = "refuse"
    """A conversation that outgrows the model's context: `refuse` the question, `drop oldest` turns, or `summarise` them, and say so."""

    hosted_url: str | None = None
    """A server that answers too, or alone where no model is named: vLLM, SGLang, llama.cpp, `sapwood serve`, or a paid one."""
    hosted_model: str | None = None
    """The name of the model there."""
    hosted_key: str | None = None
    """The environment variable that holds the key. The key itself is written nowhere."""
    hosted_timeout: float = 120.0
    """Seconds until the server goes on with its answer."""
    hosted_leave_out: tuple[str, ...] = ()
    """Fields of a request that the server refuses, such as `temperature`; its own defaults hold then."""

    def servers(self) -> dict[str, RemoteSampler]:
        """Who answers elsewhere, by its name. Raises `ConfigError`."""
        if self.hosted_url is None or self.hosted_model is None:
            if self.hosted_url is not self.hosted_model:
                raise ConfigError("A hosted model takes both hosted_url and hosted_model: its server, and its name there.")
            return {}
        if self.overflow != "refuse":
            raise ConfigError("overflow needs a model's own tokenizer, and a hosted model's is elsewhere. Leave it out.")
        return {
            self.hosted_model: RemoteSampler(
                Remote(
                    url=self.hosted_url,
                    model=self.hosted_model,
                    key=self.hosted_key,
                    timeout=self.hosted_timeout,
                    leave_out=self.hosted_leave_out,
                )
            )
        }

    @property
    def sampling(self) -> SamplingParams:
        """How answers are drawn. Raises `ConfigError` for settings without a meaning."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        return SamplingParams(**{name: getattr(self, name) for name in names})


def run(words: list[str]) -> None:
    """Load, then answer line by line until the end of input."""
    json, words = take_json(words)
    names, flags = take_names(words)
    if len(names) > 1:
        raise ConfigError(f"Give one run directory or model, found {len(names)}: {', '.join(names)}. More arms are named by --beside.")
    config = parse(ChatConfig(), "chat", flags, DESCRIPTION)
    params = config.sampling  # odd settings are refused before the model loads
    tools, schemas = functions_of(config.tools) if config.tools is not None else ({}, ())
    screen = Screen(quiet=json.target == "-")
    servers = config.servers()
    if servers and not names:
        for knob in ("beside", "template", "tools_in_system", "dtype"):
            if getattr(config, knob) != getattr(ChatConfig, knob):
                raise ConfigError(f"{knob} belongs to a model of this machine, and none is named. Name one, or leave it out.")
    for sampler in servers.values():
        sampler.check()
    start = (Message("system", config.system),) if config.system else ()
    talk = Talk(None, None, {}, params, servers, start, tools, schemas, overflow=config.overflow)
    if names or not servers:
        talk = _with_model(talk, _run_of(names[0]) if names else DEFAULT_MODEL, config, screen)
    screen.say(DESCRIPTION, "dim")
    _converse(talk, json, screen)
    said = {arm: [message.for_template() for message in messages] for arm, messages in talk.said.items()}
    json.write({"messages": next(iter(said.values())), **({"arms": said} if len(said) > 1 else {})})


def _with_model(talk: Talk, name: str, config: ChatConfig, screen: Screen) -> Talk:
    """The same with a model of this machine, and what stands beside it on its weights."""
    kernels.compile_beside(screen.say)
    model, chat = open_model(name, config, screen)
    if config.tools_in_system and not chat.tools_in_system:
        chat = chat.with_tools_in_system()
    arguments = trained_arguments(Path(name))
    if talk.tools:  # a template that has no place for them says so now
        chat.prompt([Message("user", "What can you do?")], talk.schemas, arguments, where=str(config.tools))
    model, arms = _arms(model, Path(name).resolve().name if Path(name).exists() else name, config.beside)
    if both := arms.keys() & talk.servers.keys():
        raise ConfigError(f"{min(both)!r} names a model here and one on the server. Give one of them another name.")
    return replace(talk, engine=Engine(model, chat), chat=chat, arms=arms, arguments=arguments)


def _arms(model: LanguageModel, called: str, beside: tuple[str, ...]) -> tuple[LanguageModel, Mapping[str, str | None]]:
    """The model with the adapters that are named, and who answers: itself first, then the others in the order given."""
    if not beside:
        return model, {called: None}
    model, known = load_beside(model, called, [word for word in beside if word != "base"])
    if "base" in beside and "base" not in known:
        raise ConfigError(f"beside names base, but {called} has no adapter: it is its own base. Name an adapter as NAME=FOLDER.")
    return model, {arm: adapter for arm, adapter in known.items() if arm != "base" or "base" in beside}


def _converse(talk: Talk, json: Json, screen: Screen) -> None:
    out = sys.stderr if json.target == "-" else sys.stdout
    together = len(talk.said) > 1 and out.isatty()
    for line in _lines():
        if line == "/quit":
            return
        if line.startswith("/") and (command := _command(line, talk, screen)) is not None:
            try:
                command()
            except SapwoodError as error:
                print(error, file=sys.stderr)
            continue
        shown = SideBySide(list(talk.said), out) if together else InTurn(list(talk.said), out)
        try:
            with shown:
                talk.ask(line, shown.heard)
        except KeyboardInterrupt:  # ends this answer, not the conversation
            print("\nThe answer was stopped; the question is forgotten.", file=sys.stderr)


def _command(line: str, talk: Talk, screen: Screen) -> Callable[[], None] | None:
    """What a line that begins with a stroke asks for; None where it is a question. Paths and fractions are, in a file of questions."""
    name, *words = line.split()
    if name == "/reset" and not words:
        return lambda: _reset(talk, screen)
    if name == "/save":
        return lambda: _save(words, talk, screen)
    if sys.stdin.isatty() and name[1:].isalpha() and not words:
        return lambda: screen.say(f"There is no command {name}. Commands: {COMMANDS}.", "yellow")
    return None


def _reset(talk: Talk, screen: Screen) -> None:
    talk.reset()
    screen.say("The conversation is forgotten.", "dim")


def _save(words: list[str], talk: Talk, screen: Screen) -> None:
    """Add the conversation to a file of rows. Raises `SapwoodError` where that cannot be."""
    if not 1 <= len(words) <= 2:
        raise ConfigError(f"/save takes a file, and the arm if there are several: /save my.jsonl [{' | '.join(talk.said)}].")
    file, arm = Path(words[0]), words[1] if len(words) > 1 else next(iter(talk.said))
    save_row(file, talk.row(arm))
    screen.say(f"Saved in {file}, as a row. Mend what should have been said, then: sapwood sft {file}", "dim")


def _run_of(name: str) -> str:
    """The run, where the folder of its result was named: it knows more than that folder."""
    folder = Path(name)
    return str(folder.parent) if folder.name in ("adapter", "model") and (folder.parent / "config.yaml").is_file() else name


def open_model(name: str, config: ChatConfig, screen: Screen) -> tuple[LanguageModel, Chat]:
    """A run's model with its adapter and template, an adapter's folder with the model it names, or a plain model."""
    run = Path(name)
    if (run / "adapter_config.json").is_file():
        return _with_its_base(run, config, screen)
    if not (run / "config.yaml").is_file():
        folder = fetch_model(name, screen)
        model, chat = load_model(folder, config.dtype), load_chat(folder, config.template)
        for note in learn_tokens(model, chat.new_tokens.values(), chat.known_tokens.values()):
            screen.say(note)
        return model, chat
    tuned = config_of(run)
    folder = fetch_model(tuned.model, screen)
    trained = run / ("model" if tuned.train.full else "adapter")
    own = None if config.template else trained
    chat = load_chat(folder, config.template or tuned.template, trained=own, tools_in_system=tuned.tools_in_system)
    dtype = tuned.dtype if config.dtype == "auto" else config.dtype
    if tuned.train.full:
        return load_model(trained, dtype), chat
    return load_adapter(load_model(folder, dtype), trained), chat


def _with_its_base(adapter: Path, config: ChatConfig, screen: Screen) -> tuple[LanguageModel, Chat]:
    """An adapter's folder by itself, such as an export. Raises `AssetError` where it does not say what it was trained on."""
    with storage(adapter, "read"):
        described = orjson.loads((adapter / "adapter_config.json").read_bytes())
    base = described.get("base_model_name_or_path")
    if not base:
        raise AssetError(
            f"{adapter}/adapter_config.json names no base model (`base_model_name_or_path`). Write it there, or chat with the run."
        )
    folder = fetch_model(base, screen)
    chat = load_chat(folder, config.template, trained=None if config.template else adapter)
    return load_adapter(load_model(folder, config.dtype), adapter), chat


def trained_arguments(run: Path) -> dict[str, Any]:
    """The template arguments that most rows of a run were trained with, such as `enable_thinking`; none for a plain model."""
    file = run / "environment.json"
    if not file.is_file():
        return {}
    with storage(file, "read"):
        arguments: dict[str, Any] = orjson.loads(file.read_bytes()).get("template_arguments", {})
    return arguments


def _lines() -> list[str] | map[str]:
    if not sys.stdin.isatty():
        return [line.rstrip("\n") for line in sys.stdin if line.strip()]
    return map(str.strip, iter(_ask, ""))


def _ask() -> str:
    try:
        line = ""
        while not line.strip():
            line = input("\n› ")
    except EOFError:
        return ""
    return line
