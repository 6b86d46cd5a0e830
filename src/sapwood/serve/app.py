"""The HTTP side: who may ask, what is read, what goes back, and that every request gets an answer or a clear error.

    /v1/chat/completions   /v1/completions   /v1/models   /metrics      with a token
    /v1/feedback                                                        with a token, while an experiment runs
    /health                                                             open

In: a `Worker` and what it serves, perhaps an experiment in front of it. Out: an ASGI application.
Left out on purpose: embeddings, files, assistants.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import httpx2
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sapwood.records import Completion
from sapwood.remote.addresses import is_loopback
from sapwood.serve.answers import Form
from sapwood.serve.asking import Asked, Served, check_model, read_chat, read_text
from sapwood.serve.experiment import ARM, SHOW_ARM, Experiment, Routed
from sapwood.serve.fields import RefusalError
from sapwood.serve.limits import Access
from sapwood.serve.metrics import Arm, Metrics
from sapwood.serve.remote_arms import RemoteArms
from sapwood.serve.sources import EngineSource, RemoteSource, Source
from sapwood.serve.traffic import Traffic, joined
from sapwood.serve.under_way import UnderWay
from sapwood.serve.worker import STOPPED, Worker

logger = logging.getLogger(__name__)

SLOWEST = 60.0
"""Seconds that a client may take for its whole request, and for taking one piece of its answer."""

T = TypeVar("T")

_LEAVING = "sapwood.leaving"
"""Key of a request's scope: what to call when it ends."""

_SAID = ("content", "reasoning_content", "tool_calls", "text")
"""What of a chunk is a first word."""

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Front:
    """What all requests share. Belongs to the event loop."""

    def __init__(
        self, worker: Worker, served: Served, access: Access, experiment: Experiment | None = None, traffic: Traffic | None = None
    ) -> None:
        self.worker, self.access, self.experiment, self.traffic = worker, access, experiment, traffic
        self.served = experiment.public if experiment else served
        self.remote_arms = RemoteArms(experiment.plan) if experiment else None
        self.metrics = Metrics()
        self.metrics.arms = {arm.name: Arm() for arm in experiment.plan.arms} if experiment else {}
        self.under_way = 0
        self.stopping = False
        self._reading = asyncio.Lock()

    async def answer(self, request: Request, of_chat: bool) -> Response:
        """One request from its body to its answer. Raises `RefusalError`."""
        self.admit(request)
        leaving = request.scope[_LEAVING]
        self.under_way += 1
        leaving.append(self._one_less)
        began = time.monotonic()
        body = await self._body(request)
        async with self._reading:  # rendering and tokenising, one at a time, beside the loop and not in it
            asked, routed = await run_in_threadpool(self._understood, request, body, of_chat)
        if asked is not None and asked.unfinished is not None:
            asked = await self._with_summary(request, asked, asked.unfinished, leaving)
        source: Source
        if asked is not None:
            form = Form(body["model"], self.served.chat, of_chat, routed.id if routed else secrets.token_hex(12))
            work = UnderWay(asked, self.worker)
            leaving.append(work.leave)
            work.begin()
            source = EngineSource(work, form)
        else:
            assert routed is not None, "what the engine is not asked, a remote arm is"
            assert self.remote_arms is not None
            source = RemoteSource(self.remote_arms, routed, of_chat)
        headers = {ARM: routed.arm.name} if routed and request.headers.get(SHOW_ARM) else {}
        if asked.stream if asked is not None else bool(body.get("stream")):
            headers |= {"cache-control": "no-store"}
            return StreamingResponse(self._events(source, routed, began, body), media_type="text/event-stream", headers=headers)
        answer = await self._whole(request, source, routed, began)
        await self._keep(body, answer, routed)
        response = _json(answer)
        response.headers.update(headers)
        return response

    async def _with_summary(
        self, request: Request, asked: Asked, finish: Callable[[Completion], Asked], leaving: list[Callable[[], None]]
    ) -> Asked:
        """The request with a summary of what it outgrew, which is written now."""
        work = UnderWay(asked, self.worker)
        leaving.append(work.leave)
        work.begin()
        [summary] = await _unless_gone(request, work.whole())
        async with self._reading:
            return await run_in_threadpool(finish, summary)

    async def feedback(self, request: Request) -> Response:
        """What came of an answer. Raises `RefusalError`."""
        assert self.experiment is not None, "the path is there with an experiment alone"
        self.admit(request)
        body = await self._body(request)
        return _json(await run_in_threadpool(self.experiment.feedback, request.headers, body))

    def models(self, request: Request, name: str | None) -> Response:
        """The model of that name, or all. Raises `RefusalError`."""
        self.admit(request)
        common = {"object": "model", "created": 0, "owned_by": "sapwood", "max_model_len": self.served.chat.context_length}
        if name is None:
            return _json({"object": "list", "data": [{"id": one, **common} for one in self.served.models]})
        check_model(name, self.served)
        return _json({"id": name, **common})

    def _understood(self, request: Request, body: Any, of_chat: bool) -> tuple[Asked | None, Routed | None]:
        """What the engine is asked, None where a remote arm answers; and the arm, None without an experiment."""
        if self.experiment is None:
            return (read_chat if of_chat else read_text)(body, self.served), None
        routed = self.experiment.route(request.headers, body, of_chat)
        return routed.asked, routed

    def _one_less(self) -> None:
        self.under_way -= 1

    def admit(self, request: Request) -> None:
        """Who asks, and whether there is room. Raises `RefusalError`."""
        pace = self.access.pace_of(request.headers.get("authorization"))
        if pace is None:
            raise RefusalError("The token is missing or wrong: send `Authorization: Bearer TOKEN`.", status=401, code="invalid_api_key")
        if self.access.open and not is_loopback(_host(request)):  # a page whose name was turned to this machine asks under that name
            raise RefusalError("Without tokens this server answers to the names of this machine alone.", status=403)
        if self.stopping:
            raise RefusalError(STOPPED, status=503, wait=5)
        if request.method == "POST":
            if (wait := self.access.wait(pace)) > 0:
                limit = self.served.limits.requests_a_minute
                raise RefusalError(f"More than {limit} requests a minute.", status=429, code="rate_limit_exceeded", wait=wait)
            if self.under_way >= self.served.limits.max_requests:
                raise RefusalError(f"{self.under_way} requests are under way, as many as this server takes.", status=503, wait=1)

    async def _body(self, request: Request) -> Any:
        limit = self.served.limits.max_body
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusalError("Send JSON, and say so: `Content-Type: application/json`.", status=415)
        data = bytearray()
        try:
            async with asyncio.timeout(SLOWEST):
                async for piece in request.stream():
                    data += piece
                    if len(data) > limit:
                        raise RefusalError(f"The request is larger than {limit:,} bytes.", status=413)
        except TimeoutError:
            raise RefusalError(f"The request did not arrive whole within {SLOWEST:g} s.", status=408) from None
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise RefusalError(f"The body is not JSON: {error}.") from None

    async def _whole(self, request: Request, source: Source, routed: Routed | None, began: float) -> dict[str, Any]:
        try:
            answer = await _unless_gone(request, source.whole())
        except _GoneError:
            raise
        except Exception as error:
            await self._measure(source, routed, began, error)
            raise
        await self._measure(source, routed, began)
        return answer

    async def _events(self, source: Source, routed: Routed | None, began: float, body: Any) -> AsyncIterator[bytes]:
        first, kept = True, list[dict[str, Any]]()
        try:
            async for chunk in source.chunks():
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
                if self.traffic is not None:
                    kept.append(chunk)
                choices = chunk.get("choices")
                said = choices and any(choices[0].get("delta", choices[0]).get(key) for key in _SAID)
                if first and said:
                    first = False
                    self.metrics.first.add(time.monotonic() - began)
            await self._measure(source, routed, began)
            await self._keep(body, joined(kept), routed)
            yield b"data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001  whatever it is, a stream that breaks says so
            self.metrics.cut += 1
            await self._measure(source, routed, began, error)
            told = error if isinstance(error, RefusalError) else _bug(error)
            yield b"data: " + orjson.dumps(_error(told)) + b"\n\n"

    async def _keep(self, body: Any, answer: dict[str, Any], routed: Routed | None) -> None:
        """Keep a whole answer with what was asked, where that was wished."""
        if self.traffic is not None:
            await run_in_threadpool(self.traffic.keep, body, answer, routed.arm.name if routed else None)

    async def _measure(self, source: Source, routed: Routed | None, began: float, error: Exception | None = None) -> None:
        """Count an answer, for `/metrics` and for the experiment; of one that failed only that it did, unless the request was at fault."""
        seconds, (read, written) = time.monotonic() - began, source.tokens
        if error is None:
            self.metrics.whole.add(seconds)
            self.metrics.prompt_tokens += read
            self.metrics.completion_tokens += written
        elif isinstance(error, RefusalError) and error.status < 500:
            return
        if routed is not None and self.experiment is not None:
            failed = error is not None
            arm = self.metrics.arms[routed.arm.name]
            arm.failed += failed
            arm.completion_tokens += written
            if not failed:
                arm.whole.add(seconds)
            await run_in_threadpool(self.experiment.measure, routed, failed=failed, seconds=seconds, answer_tokens=written)


def make_app(front: Front) -> ASGIApp:
    """The application."""

    async def guarded(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        try:
            response = await answer()
        except RefusalError as error:
            response = _refusal(error)
        except _GoneError:
            front.metrics.cut += 1
            response = Response(status_code=499)  # nobody reads it
        except Exception as error:  # noqa: BLE001  a bug of ours is told like any other error, and does not end the connection
            response = _refusal(_bug(error))
        front.metrics.requests[request.url.path, response.status_code] += 1
        return response

    async def chat(request: Request) -> Response:
        return await guarded(request, lambda: front.answer(request, of_chat=True))

    async def text(request: Request) -> Response:
        return await guarded(request, lambda: front.answer(request, of_chat=False))

    async def feedback(request: Request) -> Response:
        return await guarded(request, lambda: front.feedback(request))

    async def models(request: Request, name: str | None = None) -> Response:
        async def answer() -> Response:
            return front.models(request, name)

        return await guarded(request, answer)

    async def metrics(request: Request) -> Response:
        async def answer() -> Response:
            front.admit(request)
            page = front.metrics.page(front.worker.load, front.under_way)
            return PlainTextResponse(page, media_type="text/plain; version=0.0.4")

        return await guarded(request, answer)

    async def health() -> Response:
        return _json({"status": "stopping" if front.stopping else "ok"}, 503 if front.stopping else 200)

    async def elsewhere(request: Request, error: Exception) -> Response:
        here = ", ".join(f"{path} ({method})" for path, method in places)
        return _refusal(RefusalError(f"There is no {request.method} {request.url.path} here. There are {here}.", status=404))

    posts = {"/v1/chat/completions": chat, "/v1/completions": text} | ({"/v1/feedback": feedback} if front.experiment is not None else {})
    gets: dict[str, Callable[..., Any]] = {"/v1/models": models, "/metrics": metrics, "/health": health}
    places = [*((path, "POST") for path in posts), *((path, "GET") for path in gets)]
    app = FastAPI(openapi_url=None, exception_handlers={404: elsewhere, 405: elsewhere})
    for path, answers in posts.items():
        app.add_api_route(path, answers, methods=["POST"])
    for path, told in gets.items():
        app.add_api_route(path, told)
    app.add_api_route("/v1/models/{name:path}", models)
    return _watched(app)


def _watched(app: ASGIApp) -> ASGIApp:
    """What a request holds is given back however it ends, and a client that takes nothing for too long is left."""

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        async def timed(message: Message) -> None:
            async with asyncio.timeout(SLOWEST):
                await send(message)

        leaving: list[Callable[[], None]] = []
        scope[_LEAVING] = leaving  # not in a generator's `finally`: one that never began has none
        try:
            await app(scope, receive, timed)
        finally:
            for leave in leaving:
                leave()

    return inner


class _GoneError(Exception):
    """The client has left."""


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives, unless the client leaves first. Raises `_GoneError`."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise _GoneError
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


def _host(request: Request) -> str:
    """The name under which the server was asked; empty where it is none."""
    try:
        return httpx2.URL(f"http://{request.headers.get('host', '')}").host
    except httpx2.InvalidURL:
        return ""


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _bug(error: Exception) -> RefusalError:
    """What is told of it; where it happened is for the log alone."""
    logger.error("A request failed.", exc_info=error)
    return RefusalError(f"The server failed on this request: {type(error).__name__}. Its log says where.", status=500)


def _error(error: RefusalError) -> dict[str, Any]:
    kind = _KINDS.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def _refusal(error: RefusalError) -> Response:
    response = _json(_error(error), error.status)
    if error.wait:
        response.headers["retry-after"] = str(math.ceil(error.wait))
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response
