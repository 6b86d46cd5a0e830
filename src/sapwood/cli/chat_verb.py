"""`sapwood chat [RUN | MODEL]`: a conversation in the terminal, streamed, by the very prompts of training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import orjson

from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat, Delta
from sapwood.chat.overflow import Overflow, fitted_prompt
from sapwood.cli.options import parse, take_json, take_names
from sapwood.errors import AssetError, ConfigError, DataError, storage
from sapwood.generate import Engine
from sapwood.model import Dtype, LanguageModel, learn_tokens, load_adapter, load_model
from sapwood.recipes import Screen
from sapwood.recipes.tune import config_of, fetch_model, load_chat
from sapwood.records import Ended, Message, Prompt, SamplingParams

DESCRIPTION = "Talk to a run's model or to any model. /reset forgets the conversation, /quit (or Ctrl-D) ends it."


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """The conversation."""

    system: str | None = None
    """The system message."""
    template: str | None = None
    """A chat template, where the model has none: `chatml`, `plain`, or a Jinja file. A run brings its own."""
    dtype: Dtype = "auto"
    """Type of the base weights; `auto` takes a run's own."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches p."""
    seed: int = 0
    """Seed of the answers."""
    overflow: Overflow = "refuse"
    """A conversation that outgrows the model's context: `refuse` the question, or `drop oldest` turns, and say so."""


def run(words: list[str]) -> None:
    """Load, then answer line by line until the end of input."""
    json, words = take_json(words)
    names, flags = take_names(words)
    if len(names) > 1:
        raise ConfigError(f"Give one run directory or model, found {len(names)}: {', '.join(names)}.")
    config = parse(ChatConfig(), "chat", flags, DESCRIPTION)
    screen = Screen(quiet=json.target == "-")
    name = _run_of(names[0]) if names else DEFAULT_MODEL
    model, chat = open_model(name, config, screen)
    screen.say(DESCRIPTION, "dim")
    engine = Engine(model, chat)
    arguments = trained_arguments(Path(name))
    history: list[Message] = [Message("system", config.system)] if config.system else []
    start = list(history)
    for line in _lines():
        if line == "/quit":
            break
        if line == "/reset":
            history = list(start)
            screen.say("The conversation is forgotten.", "dim")
            continue
        if sys.stdin.isatty() and line.startswith("/") and line[1:].isalpha():
            screen.say(f"There is no command {line}. /reset forgets the conversation, /quit ends it.", "yellow")
            continue
        history.append(Message("user", line))
        try:
            fitted = fitted_prompt(chat, history, (), arguments, overflow=config.overflow, room=_room(chat, config))
        except DataError as error:
            print(error, file=sys.stderr)
            history.pop()
            continue
        if fitted.dropped:
            screen.say(f"The conversation outgrows the model's context: its oldest {fitted.dropped} messages are no longer sent.", "dim")
        answer = _answer(engine, chat, fitted.prompt, config, sys.stderr if json.target == "-" else sys.stdout)
        if answer is None:
            history.pop()
            continue
        history.append(answer)
    json.write({"messages": [message.for_template() for message in history]})


def _room(chat: Chat, config: ChatConfig) -> int:
    """Tokens of answer that a prompt must leave: what may be asked for, up to a quarter of the context."""
    if config.overflow == "refuse" or chat.context_length is None:
        return 1
    return min(config.max_new_tokens, chat.context_length // 4)


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


def _answer(engine: Engine, chat: Chat, prompt: Prompt, config: ChatConfig, out: TextIO) -> Message | None:
    """Stream one answer, and give it as a message for the history; None if the prompt could not be answered."""
    stream = chat.parse_stream(prompt)
    shown = ""

    def show(deltas: Sequence[Delta]) -> None:
        nonlocal shown
        for delta in deltas:
            kind = "content" if delta.content else "reasoning" if delta.reasoning else f"call {delta.index}"
            lead = ("\n\n" if shown else "") + ("(thinks) " if kind == "reasoning" else "")
            out.write((lead if kind != shown else "") + delta.reasoning + delta.content + delta.name + delta.arguments)
            shown = kind
        out.flush()

    def on_token(_: int, token: int) -> None:
        show(stream.push(token))

    params = SamplingParams(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed)
    try:
        (completion,) = engine.generate([prompt], params, on_token=on_token)
    except KeyboardInterrupt:  # ends this answer, not the conversation
        out.write("\n")
        print("The answer was stopped; the question is forgotten.", file=sys.stderr)
        return None
    show(stream.finish()[0])
    out.write("\n")
    if completion.ended is Ended.ERROR:
        print(completion.error, file=sys.stderr)
        return None
    return completion.message or Message("assistant", completion.text)
