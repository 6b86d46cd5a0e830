"""The `Sampler` of a server: prompts in, completions out, a bounded number of requests at a time.

Equal prompts are asked in one request where they are sampled, and once where they are not (temperature 0). Sample k of a prompt
has a seed of its own, made of (seed, k), so that an answer is found again in the cache whatever else was asked. What a server
does not take is left out only where it changes no answer, and `notes` says so. Left out on purpose: `on_token`, for few servers
tell their tokens; `stream` tells what they mean.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import orjson

from sapwood.chat import Delta
from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, RemoteError
from sapwood.records import Completion, Ended, Prompt, SamplingParams
from sapwood.records.protocols import OnToken
from sapwood.remote.addresses import is_loopback
from sapwood.remote.answering import choices_of, completion_of, ended_whole, usage_of
from sapwood.remote.cache import AnswerCache
from sapwood.remote.growing import Growing
from sapwood.remote.pacing import Pace
from sapwood.remote.requesting import body_of
from sapwood.remote.sending import Line, UnansweredError

POLL = 0.05
"""Seconds between two looks at `cancelled`."""
_LETTERS_A_TOKEN = 3
"""For the tokens a minute, where a prompt was not tokenised here: rather too many tokens than too few."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A server and how to treat it."""

    url: str
    """Its address, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name there."""
    key: str | None = None
    """Name of the environment variable that holds the key. The key itself is never written anywhere."""
    at_once: int = 8
    """Requests that wait for their answers at a time."""
    timeout: float = 120.0
    """Seconds for one request as a whole."""
    tries: int = 5
    """How often a request is sent before it is given up."""
    backoff: float = 1.0
    """Seconds before the second try; each further wait is twice as long."""
    requests_a_minute: int = 0
    """Requests that go out within any minute; 0 is no limit."""
    tokens_a_minute: int = 0
    """Tokens, of prompts and of answers at their longest, that go out within any minute; 0 is no limit."""
    token_ids: bool = False
    """Ask for token ids and log-probabilities, where the server gives them."""
    leave_out: tuple[str, ...] = ()
    """Fields of the request that the server refuses, such as `temperature`; its own defaults hold then."""
    cache: Path | None = None
    """A folder in which answers are kept."""

    def __post_init__(self) -> None:
        for name in ("at_once", "tries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1.")
        for name in ("timeout", "backoff"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; give seconds above 0.")
        for name in ("requests_a_minute", "tokens_a_minute"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 (no limit) or more.")
        if not self.model:
            raise ConfigError("The server's model has no name. Give the name by which the server knows it.")
        _check_url(self.url, self.key)

    @property
    def loopback(self) -> bool:
        """Whether the server runs on this machine."""
        return is_loopback(httpx2.URL(self.url).host)

    def address(self, path: str) -> str:
        """The address of an endpoint."""
        return f"{self.url.rstrip('/').removesuffix('/chat/completions')}/{path}"


@dataclass
class _Question:
    """One request body, and the places in the call that wait for samples of it."""

    body: dict[str, Any]
    prompt: Prompt
    places: list[int] = field(default_factory=list)


class RemoteSampler:
    """Asks a server. `notes` holds sentences that a person should read once."""

    def __init__(self, remote: Remote) -> None:
        """Raises `ConfigError` where the named environment variable is empty."""
        self.remote = remote
        self.notes: list[str] = []
        self.counted = [0, 0]
        """Tokens of prompts and of answers that the server has counted for requests of this sampler: what is paid for."""
        self._key = _key(remote.key)
        self._cache = AnswerCache(remote.cache) if remote.cache is not None else None
        self._extras: dict[str, Any] = {"logprobs": True, "return_token_ids": True} if remote.token_ids else {}
        self._stream_extras: dict[str, Any] = {"stream_options": {"include_usage": True}}
        self._pace = Pace(remote.requests_a_minute, remote.tokens_a_minute)
        self._limit = "max_tokens"
        self._several = True

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in their order; what failed is a completion with `Ended.ERROR` and the reason.

        Raises `ConfigError` for what the server cannot be asked, `RemoteError` where every further request would fail alike.
        """
        if on_token is not None:
            raise ConfigError("A server's tokens are not told one by one: leave out on_token, or use `stream`.")
        questions = self._questions(prompts, params)
        answers: list[Completion | None] = [None] * len(prompts)
        _run(self._all(questions, answers, params, cancelled))
        return [answer or _failed(prompt, "Cancelled.") for prompt, answer in zip(prompts, answers, strict=True)]

    def stream(self, prompt: Prompt, params: SamplingParams, on_delta: Callable[[Delta], None]) -> Completion:
        """One answer, told piece by piece as it comes; never kept, and asked again only before its first piece.

        A stream that breaks is a completion with `Ended.ERROR` and what was said by then. Raises as `generate` does.
        """
        (question,) = self._questions([prompt], params)
        growing = Growing()
        failures: list[str] = []

        def tell(deltas: Sequence[Delta]) -> None:
            for delta in deltas:
                on_delta(delta)

        async def follow() -> None:
            async with self._client() as client:
                while True:
                    body = self._body(question, 1, 0, params) | {"stream": True} | self._stream_extras
                    try:
                        await self._line(client).follow(body, self._cost(question, 1, params), growing.push, tell)
                    except UnansweredError as failure:
                        if failure.status in (400, 422) and self._adapts(str(failure), body):
                            continue
                        failures.append(str(failure))
                    return

        _run(follow())
        tell(growing.finish())
        if growing.counted is not None:
            self.counted = [self.counted[0] + growing.counted[0], self.counted[1] + growing.counted[1]]
        completion = completion_of(prompt, growing.choice(), growing.counted)
        return replace(completion, ended=Ended.ERROR, error=failures[0]) if failures else completion

    def check(self) -> None:
        """See that the server is there, takes the key and has the model, before anything is paid. Raises `RemoteError`."""
        _run(self._check())

    def _questions(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[_Question]:
        found: dict[bytes, _Question] = {}
        for place, prompt in enumerate(prompts):
            body = body_of(self.remote.model, prompt, params)
            body = {key: value for key, value in body.items() if key not in self.remote.leave_out}
            name = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
            found.setdefault(name, _Question(body, prompt)).places.append(place)
        return list(found.values())

    async def _all(
        self,
        questions: Sequence[_Question],
        answers: list[Completion | None],
        params: SamplingParams,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        gate = asyncio.Semaphore(self.remote.at_once)
        async with self._client() as client:
            line = self._line(client)

            async def one(question: _Question) -> None:
                async with gate:
                    await self._answer(line, question, answers, params)

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(question)) for question in questions]
                while cancelled is not None and not all(task.done() for task in tasks):
                    if cancelled():
                        for task in tasks:
                            task.cancel()
                        break
                    await asyncio.wait(tasks, timeout=POLL)

    async def _answer(self, line: Line, question: _Question, answers: list[Completion | None], params: SamplingParams) -> None:
        """Fill the places of one question, from the cache as far as it goes."""
        sampled = params.temperature > 0
        wanted = range(len(question.places) if sampled else 1)
        found = {k: known for k in wanted if (known := self._known(question.body, params.seed, k)) is not None}
        try:
            while missing := [k for k in wanted if k not in found]:
                for k, choice in zip(missing, await self._choices(line, question, missing, params), strict=False):
                    found[k] = choice
                    if self._cache is not None and ended_whole(choice["choice"]):
                        self._cache.write(self._name(question.body, params.seed, k), choice)
        except UnansweredError as failure:
            for place in question.places:
                answers[place] = _failed(question.prompt, str(failure), outgrown=failure.outgrown)
        for k, choice in found.items():
            for place in question.places if not sampled else question.places[k : k + 1]:
                answers[place] = completion_of(question.prompt, choice["choice"], choice["counted"] and tuple(choice["counted"]))

    async def _choices(self, line: Line, question: _Question, missing: list[int], params: SamplingParams) -> list[dict[str, Any]]:
        """At least one more choice, with the tokens that it stands for. Raises `UnansweredError`."""
        while True:
            count = len(missing) if self._several else 1
            body = self._body(question, count, missing[0], params)
            try:
                choices, usage = await line.ask(body, self._cost(question, count, params), _choices_and_usage)
            except UnansweredError as failure:
                if failure.status in (400, 422) and self._adapts(str(failure), body):
                    continue
                raise
            if usage is not None:
                self.counted = [self.counted[0] + usage[0], self.counted[1] + usage[1]]
            choices = choices[:count]
            if len(choices) < count:
                self._several = False
            # the prompt is paid once a request, so the first choice bears it
            shares = None if usage is None else [[usage[0] * (place == 0), usage[1] // len(choices)] for place in range(len(choices))]
            return [{"choice": choice, "counted": shares and shares[place]} for place, choice in enumerate(choices)]

    def _body(self, question: _Question, count: int, k: int, params: SamplingParams) -> dict[str, Any]:
        """What is sent for samples from the k-th on."""
        body = question.body | self._extras
        if self._limit != "max_tokens" and "max_tokens" in body:
            body[self._limit] = body.pop("max_tokens")
        if "seed" not in self.remote.leave_out and params.temperature > 0:
            body["seed"] = seed_of(params.seed, k)
        return body | ({"n": count} if count > 1 else {})

    def _cost(self, question: _Question, count: int, params: SamplingParams) -> float:
        """Tokens that a request takes at most, as far as they are known here."""
        tokens_in = len(question.prompt.ids) or len(orjson.dumps(question.body)) / _LETTERS_A_TOKEN
        return tokens_in + count * params.max_new_tokens

    def _adapts(self, said: str, body: dict[str, Any]) -> bool:
        """Whether the request can be sent in another form that asks the same; `said` is the refusal."""
        if "max_completion_tokens" in said and "max_tokens" in body:
            self._limit = "max_completion_tokens"
            return True
        if "n" in body and re.search(r"[`'\"]n[`'\"]|\bn [=>]|multiple (choices|completions)", said):
            self._several = False
            return True
        for extras, lost in ((self._extras, "token ids or log-probabilities"), (self._stream_extras, "counts of their tokens")):
            for name in extras:
                if name in body and name in said:
                    del extras[name]
                    self.notes.append(f"The server refuses `{name}`, so its answers come without {lost}.")
                    return True
        return False

    def _name(self, body: dict[str, Any], seed: int, k: int) -> dict[str, Any]:
        sample = {"seed": seed, "sample": k} if body.get("temperature", 1.0) > 0 else {}
        return {"url": self.remote.url, "body": body, "token_ids": self.remote.token_ids, **sample}

    def _known(self, body: dict[str, Any], seed: int, k: int) -> dict[str, Any] | None:
        return None if self._cache is None else self._cache.read(self._name(body, seed, k))

    async def _check(self) -> None:
        url = self.remote.address("models")
        async with self._client() as client:
            try:
                async with asyncio.timeout(min(30.0, self.remote.timeout)):
                    response = await client.get(url, headers=self.headers())
            except (httpx2.TransportError, TimeoutError) as error:
                raise RemoteError(
                    f"{url}: no answer ({str(error) or type(error).__name__}). Check that the server runs and the address is right."
                ) from None
        if response.status_code in (401, 403):
            raise RemoteError(f"{url}: status {response.status_code}. Name the environment variable that holds the key for this server.")
        try:
            entries = orjson.loads(response.content).get("data") if response.status_code == 200 else None
        except (orjson.JSONDecodeError, AttributeError):
            entries = None
        names = [str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry]
        if names and self.remote.model not in names:
            shown = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
            near = did_you_mean(self.remote.model, names)
            raise RemoteError(f"{url}: the server has no model {self.remote.model!r}.{near} It has: {shown}.")

    def _client(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=self.remote.at_once, max_keepalive_connections=self.remote.at_once)
        return httpx2.AsyncClient(timeout=None, limits=limits, trust_env=not self.remote.loopback)  # `Line` times whole requests

    def _line(self, client: httpx2.AsyncClient) -> Line:
        remote = self.remote
        url = remote.address("chat/completions")
        return Line(client, url, self.headers(), self._key, self._pace, remote.timeout, remote.tries, remote.backoff)

    def headers(self) -> dict[str, str]:
        """What every request carries; the key is among it."""
        headers = {"content-type": "application/json", "accept": "application/json"}
        return headers | ({"authorization": f"Bearer {self._key}"} if self._key else {})


def seed_of(seed: int, k: int) -> int:
    """The seed of sample k of a prompt: 31 bits, which every server takes."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{k}".encode()).digest()[:4], "big") >> 1


def _choices_and_usage(response: Any) -> tuple[list[dict[str, Any]], tuple[int, int] | None]:
    return choices_of(response), usage_of(response)


def _failed(prompt: Prompt, why: str, *, outgrown: bool = False) -> Completion:
    return Completion(prompt, (), "", Ended.ERROR, error=why, outgrown=outgrown)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where the caller stands inside a running loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _unwrapped(work)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_unwrapped, work).result()


def _unwrapped(work: Coroutine[Any, Any, None]) -> None:
    """One error that a person can act on, instead of a group of them."""
    try:
        asyncio.run(work)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"key names the environment variable {variable!r}, which is empty here. Set it to the server's key.")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"What {variable!r} holds is no key: it has spaces or letters that no key has. Set it to the server's key.")
    return key


def _check_url(text: str, key: str | None) -> None:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"url is {text!r}, which is no address ({error}). Give one such as http://127.0.0.1:8000/v1.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(
            f"url is {text!r}; give an address with its scheme, such as http://127.0.0.1:8000/v1 or https://api.example.com/v1."
        )
    if url.userinfo or url.query:
        shown = url.copy_with(username=None, password=None, query=None)
        raise ConfigError(f"url holds a user or a query (shown without: {shown}). It is written to files, so a key has no place in it.")
    if key is not None and url.scheme == "http" and not is_loopback(url.host):
        raise ConfigError(f"url is {text!r}: a key would cross the network in the clear. Use https, or leave the key out.")
