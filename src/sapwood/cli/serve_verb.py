"""`sapwood serve [RUN | MODEL]`: an OpenAI-compatible server, on loopback unless told otherwise."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from sapwood.ab.plan import Plan, load_plan, records_of
from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.cli.chat_verb import ChatConfig, open_model, trained_arguments
from sapwood.cli.options import Json, parse, screen_for, take_json, take_names
from sapwood.errors import ConfigError, storage
from sapwood.generate import Engine
from sapwood.model import Dtype
from sapwood.model.routes import BASE
from sapwood.recipes import Screen
from sapwood.recipes.beside import load_beside
from sapwood.remote.addresses import is_loopback, listen
from sapwood.serve.limits import Access, ServeLimits
from sapwood.serve.worker import Worker

if TYPE_CHECKING:
    from sapwood.serve.asking import Served
    from sapwood.serve.experiment import Experiment

DESCRIPTION = (
    "Serve a run's model or any model to clients of OpenAI's API. Prints its address and a token; Ctrl-C or SIGTERM ends it, and "
    "who is being answered is answered."
)
SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The server."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is every network of this machine."""
    port: int = 8000
    """0 takes any that is free."""
    name: str | None = None
    """The model's name for clients; the run's or model's own where not given."""
    adapters: tuple[str, ...] = ()
    """More adapters of the same base model, each NAME=FOLDER; a request names the one that is to answer."""
    token_file: Path | None = None
    """A file of tokens that give access, one a line. Where not given, a token is made and shown once."""
    unlocked: bool = False
    """Ask nobody for a token. On loopback only: whoever uses this machine may ask then."""
    template: str | None = None
    """A chat template, where the model has none: `chatml`, `plain`, or a Jinja file. A run brings its own."""
    tools_in_system: bool = False
    """Offer tools in the system message, for templates without a place for them. A run that was trained so brings it."""
    dtype: Dtype = "auto"
    """Type of the base weights; `auto` takes a run's own."""
    slots: int = 32
    """Answers that are written at a time; others wait."""
    memory: float | None = None
    """GiB that the keys and values of prompts and answers may take; a quarter of what is free where not given."""
    experiment: Path | None = None
    """A plan (YAML) of an A/B test: requests are split between its arms; see docs/ab-tests.md."""
    records: str | None = None
    """Where the test is recorded: a file, or postgresql://USER@HOST/DATABASE; beside the plan, as PLAN.db, where not given."""
    check_every: float = 60.0
    """Seconds between two looks at the records, after which an arm that does harm is switched off."""
    keep_traffic: Path | None = None
    """A file to which every question and its answer is added, for `sapwood review` and `sapwood items build`. Nothing is kept otherwise."""
    grace: float = 30.0
    """Seconds that answers under way may still take when the server is told to stop."""
    limits: ServeLimits = field(default_factory=ServeLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}; give a number from 0 to 65535.")
        if self.slots < 1:
            raise ConfigError(f"slots is {self.slots}; give at least 1.")
        if self.memory is not None and not 0 < self.memory < float("inf"):
            raise ConfigError(f"memory is {self.memory}; give GiB above 0, or leave it out for a quarter of what is free.")
        if not 0 <= self.grace < float("inf"):
            raise ConfigError(f"grace is {self.grace}; give seconds, 0 or more.")
        if self.records is not None and self.experiment is None:
            raise ConfigError("records says where an experiment is recorded, and there is none. Give --experiment PLAN.yaml as well.")
        if not 0 < self.check_every < float("inf"):
            raise ConfigError(f"check_every is {self.check_every}; give seconds above 0.")
        if self.unlocked and self.token_file is not None:
            raise ConfigError("unlocked asks for no token, and token_file names some. Give one of them.")
        if self.unlocked and not is_loopback(self.host):
            raise ConfigError(f"unlocked opens the server to everybody who reaches {self.host}. Leave it out, or listen on 127.0.0.1.")


def run(words: list[str]) -> None:
    """Load, listen, answer until told to stop."""
    json, words = take_json(words)
    names, flags = take_names(words)
    if len(names) > 1:
        raise ConfigError(f"Give one run directory or model, found {len(names)}: {', '.join(names)}.")
    config = parse(ServeConfig(), "serve", flags, DESCRIPTION)
    serve(names[0] if names else DEFAULT_MODEL, config, json)


def serve(name: str, config: ServeConfig, json: Json) -> None:
    """Serve until a signal comes. Raises a `SapwoodError` before anything listens."""
    try:
        from sapwood.serve.app import Front
        from sapwood.serve.asking import Served
        from sapwood.serve.running import run_server
        from sapwood.serve.traffic import Traffic
    except ImportError as error:
        raise ConfigError(f"A server needs {error.name}, which is not installed: pip install 'sapwood[web]'") from None
    tokens, screen = _tokens(config), screen_for(json)
    plan = load_plan(config.experiment) if config.experiment is not None else None
    with ExitStack() as held:
        listener = held.enter_context(listen(config.host, config.port))  # before the model loads: a port that is taken is known at once
        traffic = held.enter_context(closing(Traffic(config.keep_traffic))) if config.keep_traffic is not None else None
        engine, chat, models = _engine(name, config, screen)
        served = Served(models, chat, config.limits, trained_arguments(Path(name)))
        worker = held.enter_context(closing(Worker(engine)))
        experiment = held.enter_context(_experiment(plan, config, served, screen))
        names = list(experiment.public.models if experiment else models)

        def ready() -> None:
            url = f"http://{config.host}:{listener.getsockname()[1]}/v1"
            _welcome(url, names, tokens, config, screen)
            json.write({"url": url, "models": names, **({"records": experiment.book.place} if experiment else {})})

        access = Access(tokens, config.limits.requests_a_minute)
        run_server(lambda: Front(worker, served, access, experiment, traffic), listener, grace=config.grace, ready=ready)
    screen.say("Stopped.")


def _engine(name: str, config: ServeConfig, screen: Screen) -> tuple[Engine, Chat, dict[str, str | None]]:
    """The engine, its chat, and who answers to which name."""
    model, chat = open_model(name, ChatConfig(template=config.template, dtype=config.dtype), screen)
    if config.tools_in_system and not chat.tools_in_system:
        chat = chat.with_tools_in_system()
    for note in (*chat.notes, *chat.warnings):
        screen.say(note)
    called = config.name or (Path(name).resolve().name if Path(name).exists() else name)
    model, models = load_beside(model, called, config.adapters)
    engine = Engine(model, chat, slots=config.slots, memory=None if config.memory is None else int(config.memory * 2**30))
    if BASE in models.values():
        try:
            engine.routes.check(BASE)
        except ConfigError as error:
            if config.adapters:
                raise
            screen.say(f"The base model is not served beside it. {error}")
            models = {called: None}
    return engine, chat, models


@contextmanager
def _experiment(plan: Plan | None, config: ServeConfig, served: Served, screen: Screen) -> Iterator[Experiment | None]:
    """The experiment that stands in front of the models, watched until the server ends."""
    if plan is None or config.experiment is None:
        yield None
        return
    from sapwood.ab.records import begin
    from sapwood.serve.experiment import Experiment, Watch

    with closing(begin(plan, config.records or records_of(config.experiment))) as book:
        experiment = Experiment(book, served)
        screen.title(f"Experiment {plan.name}")
        for arm, chance in zip(plan.arms, plan.chances(plan.step_at(time.time() - book.started)), strict=True):
            screen.lines([f"{arm.name:<12} {100 * chance:.3g} % of new units now"])
        screen.say(f"Records: {book.place}. What they say: sapwood ab report {config.experiment}", "dim")
        with closing(Watch(experiment, config.check_every)):
            yield experiment


def _welcome(url: str, names: Sequence[str], tokens: tuple[str, ...], config: ServeConfig, screen: Screen) -> None:
    screen.title("Serving")
    screen.lines([f"Address      {url}", f"Models       {', '.join(names)}"])
    if config.unlocked:
        screen.lines(["Token        none is asked for; an openai client wants one all the same, any word will do"])
    elif config.token_file is None:
        screen.lines([f"Token        {tokens[0]}"])
        screen.say("The token is shown this once; --token-file FILE keeps one of your own.", "dim")
    else:
        screen.lines([f"Token        one of the {len(tokens)} in {config.token_file}"])
    screen.lines([f"Try it       {_example(url, names[0], tokens, config)}"])
    if not is_loopback(config.host):
        screen.say("Tokens and texts cross the network as they are: put a proxy with TLS in front.", "yellow")


def _example(url: str, name: str, tokens: tuple[str, ...], config: ServeConfig) -> str:
    """A command for a shell that asks the server something. Tokens of a file stay there."""
    key = f"$(head -n 1 {shlex.quote(str(config.token_file))})" if config.token_file is not None else "".join(tokens)
    header = f'-H "Authorization: Bearer {key}" ' if tokens else ""
    body = orjson.dumps({"model": name, "messages": [{"role": "user", "content": "Where does sapwood grow?"}]}).decode()
    return f'curl {url}/chat/completions {header}-H "Content-Type: application/json" -d {shlex.quote(body)}'


def _tokens(config: ServeConfig) -> tuple[str, ...]:
    """The tokens that give access. Raises `ConfigError` for a file without, or with one that is easily guessed."""
    if config.unlocked:
        return ()
    if config.token_file is None:
        return (secrets.token_urlsafe(32),)
    try:
        with storage(config.token_file, "read"):
            tokens = tuple(config.token_file.read_text(encoding="utf-8").split())
    except FileNotFoundError:
        raise ConfigError(f"{config.token_file}: no such file. Write one token a line into it, or leave --token-file out.") from None
    short = next((number for number, token in enumerate(tokens, 1) if len(token) < SHORTEST_TOKEN), None)
    if not tokens or short is not None:
        found = f"token {short} is shorter than {SHORTEST_TOKEN} letters" if short is not None else "it holds no token"
        raise ConfigError(f"{config.token_file}: {found}. Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'")
    return tokens
