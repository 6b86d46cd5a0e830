"""The door: who may come in, from where, how often, with how much; and what every answer says to browsers.

In: a raw request. Out: an `Ask` for a handler, or a refusal that is told and written down. In order: the name it was asked under, the size
of the body, the session, the role, the form's own secret (against forgery), the pace. Left out on purpose: TLS, which a proxy does better.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from urllib.parse import SplitResult, parse_qs, urlsplit

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sapwood.errors import SapwoodError
from sapwood.remote.addresses import is_loopback
from sapwood.remote.pacing import Pace
from sapwood.review.people import Role, Session, note, session_of
from sapwood.review.web.asking import Ask, RefusalError, Review

logger = logging.getLogger(__name__)

COOKIE = "sapwood_review"
LARGEST_BODY = 2 * 2**20
"""Bytes: a long corrected answer, and its reason."""
LARGEST_NUMBER = 2**62
"""From here on no database has a row of that number."""
MOST_FIELDS = 500
SLOWEST = 30.0
"""Seconds for a whole form to arrive."""
STRANGERS = 30
"""Requests without a valid session that one address may make in a minute."""
NOTED = 60
"""Refusals of one address that are written down in a minute; those beyond are refused alike."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with none at all, browsers send forms with the origin `null`
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}

Handler = Callable[[Ask], Response]


class Guard:
    """Belongs to the event loop."""

    def __init__(self, review: Review) -> None:
        self.review = review
        self._paces: defaultdict[str, Pace] = defaultdict(lambda: Pace(review.votes_a_minute))
        self._strangers: defaultdict[str, Pace] = defaultdict(lambda: Pace(STRANGERS))
        self._noted: defaultdict[str, Pace] = defaultdict(lambda: Pace(NOTED))

    async def answer(self, request: Request, handler: Handler, needed: Role | None, *, forged: bool = True) -> Response:
        """What a handler answers, or the refusal. `needed` None lets in who has no session; `forged` False asks for no form's secret."""
        address = request.client.host if request.client else ""
        session: Session | None = None
        began = time.perf_counter()
        try:
            self._check_host(request)
            if any(isinstance(value, int) and value >= LARGEST_NUMBER for value in request.path_params.values()):
                raise RefusalError(404, "There is no such page here.")
            form = await _form(request) if request.method == "POST" else {}
            cookie = request.cookies.get(COOKIE, "")
            session = await run_in_threadpool(self._session, cookie) if cookie else None
            self._check(request, session, needed, form, address, forged)
            ask = Ask(
                review=self.review,
                session=session,
                form=form,
                query=dict(request.query_params),
                path=request.path_params,
                address=address,
                part=request.headers.get("hx-request") == "true",
                now=self.review.clock(),
                cookie=cookie,
            )
            response = await run_in_threadpool(handler, ask)
        except (RefusalError, SapwoodError) as error:
            refusal = error if isinstance(error, RefusalError) else RefusalError(400, str(error))
            response = await run_in_threadpool(self._refuse, request, refusal, session, address)
        except Exception as error:
            logger.error("A request failed.", exc_info=error)
            told = RefusalError(500, "The server failed on this request. Its log says where; what you said before is kept.")
            response = await run_in_threadpool(self._refuse, request, told, session, address)
        response.headers["server-timing"] = f"app;dur={1000 * (time.perf_counter() - began):.1f}"
        return response

    def _session(self, cookie: str) -> Session | None:
        with self.review.store.reading() as connection:
            return session_of(connection, cookie, self.review.clock())

    def _check_host(self, request: Request) -> None:
        host = _parts(f"//{request.headers.get('host', '')}").hostname or ""
        hosts = self.review.hosts
        if not (host in hosts or "*" in hosts if hosts else is_loopback(host)):
            raise RefusalError(421, "This server does not answer to that name. Name it with --address.")

    def _check(
        self, request: Request, session: Session | None, needed: Role | None, form: dict[str, list[str]], address: str, forged: bool
    ) -> None:
        if session is None:
            self._count(self._strangers, address)
            if needed is not None:
                raise RefusalError(401, "This page opens by your own link. Open it again; if it has run out, ask for a new one.")
        else:
            self._count(self._paces, str(session.person.id))
            if needed is not None and not session.person.role.may(needed):
                raise RefusalError(403, f"This page is for the role {needed} alone.")
        if request.method == "POST":
            _check_origin(request)
            if forged and session is not None:
                given = request.headers.get("x-form") or form.get("form", [""])[-1]
                if not hmac.compare_digest(given.encode(), session.form.encode()):
                    raise RefusalError(403, "This form was not made by this page, or is from before you signed in. Load the page again.")

    def _count(self, paces: defaultdict[str, Pace], who: str) -> None:
        if len(paces) > 10_000:  # forgets, so that addresses cannot fill the memory
            paces.clear()
        if (wait := paces[who].wait(time.monotonic(), 0)) > 0:
            raise RefusalError(429, "That was too much in a minute. Wait a little, then go on.", wait=math.ceil(wait))

    def _refuse(self, request: Request, error: RefusalError, session: Session | None, address: str) -> Response:
        if len(self._noted) > 10_000:
            self._noted.clear()
        now, path = self.review.clock(), request.url.path
        if path.startswith("/in/"):
            path = "/in/…"  # a token may stand there
        if self._noted[address].wait(time.monotonic(), 0) == 0:
            with self.review.store.writing() as connection:
                detail = f"{error.status} {request.method} {path[:300]}: {error.message[:300]}"
                note(connection, now, "refused", detail, person=session.person.id if session else None, address=address)
        ask = Ask(self.review, session, {}, {}, {}, address, request.headers.get("hx-request") == "true", now)
        response = ask.page("refused.html", error.status, code=error.status, message=error.message)
        if error.wait:
            response.headers["retry-after"] = str(error.wait)
        if ask.part:  # htmx swaps it in where the page says what went wrong
            response.headers["hx-retarget"], response.headers["hx-reswap"] = "#said", "innerHTML"
        return response


async def _form(request: Request) -> dict[str, list[str]]:
    """The fields of a form. Raises `RefusalError` for a body that is none, too large, or too slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise RefusalError(415, "Only forms are taken here.")
    data = bytearray()
    try:
        async with asyncio.timeout(SLOWEST):
            async for piece in request.stream():
                data += piece
                if len(data) > LARGEST_BODY:
                    raise RefusalError(413, f"The form is larger than {LARGEST_BODY:,} bytes.")
    except TimeoutError:
        raise RefusalError(408, f"The form did not arrive whole within {SLOWEST:g} s.") from None
    try:
        fields = parse_qs(data.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise RefusalError(400, "The form cannot be read. Load the page again.") from None
    # a database of PostgreSQL takes no letter 0, and nobody types one
    return {name: [value.replace("\0", "\ufffd") for value in values] for name, values in fields.items()}


def _check_origin(request: Request) -> None:
    """Whatever says where a form comes from must say: from here. Raises `RefusalError`."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        raise RefusalError(403, "A form of another site was refused.")
    if origin is not None and _parts(origin).netloc != request.headers.get("host"):
        raise RefusalError(403, "A form of another site was refused.")


def _parts(address: str) -> SplitResult:
    """An address in its parts, empty ones where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def guarded(app: ASGIApp) -> ASGIApp:
    """Every answer with the headers that browsers need to keep a page to itself; a client that takes nothing for too long is left."""

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                held = {name.lower() for name, _ in message["headers"]}
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in held]
                if b"cache-control" not in held:
                    own.append((b"cache-control", b"no-store"))
                message["headers"] = [*message["headers"], *own]
            async with asyncio.timeout(SLOWEST):
                await send(message)

        await app(scope, receive, headed)

    return inner


Answering = Callable[[Request], Awaitable[Response]]
