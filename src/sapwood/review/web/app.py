"""The application: which address leads to which handler, and who may go there.

In: a `Review`. Out: an ASGI application. Everything that changes something is a POST with a form's secret; nothing else changes anything.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.types import ASGIApp

from sapwood.review.people import Role
from sapwood.review.web import admin, entrance, expert, rater
from sapwood.review.web.asking import Ask, RefusalError, Review, static_files
from sapwood.review.web.guard import Guard, Handler, guarded

R, E, A = Role.RATER, Role.EXPERT, Role.ADMIN

ROUTES: tuple[tuple[str, str, Role | None, Handler], ...] = (
    ("GET", "/", R, entrance.home),
    ("GET", "/in/{token}", None, entrance.welcome),
    ("POST", "/out", R, entrance.leave),
    ("GET", "/desk/{batch:int}", R, rater.show),
    ("POST", "/desk/{batch:int}/vote", R, rater.vote),
    ("POST", "/desk/{batch:int}/undo", R, rater.undo_last),
    ("POST", "/desk/{batch:int}/skip", R, rater.skip_this),
    ("POST", "/desk/{batch:int}/again", R, rater.again),
    ("POST", "/desk/{batch:int}/draft", R, rater.keep_draft),
    ("POST", "/desk/{batch:int}/pause", R, rater.pause),
    ("POST", "/desk/{batch:int}/resume", R, rater.resume),
    ("GET", "/desk/{batch:int}/difference", R, rater.difference),
    ("GET", "/media/{case:int}/{part}/{message:int}/{number:int}", R, rater.medium),
    ("GET", "/queue/{batch:int}", E, expert.queue_page),
    ("GET", "/case/{case:int}", E, expert.case_page),
    ("POST", "/case/{case:int}/correct", E, expert.correct),
    ("POST", "/case/{case:int}/preview", E, expert.preview),
    ("POST", "/case/{case:int}/decide", E, expert.decide),
    ("GET", "/guidelines/{batch:int}", R, expert.guidelines_page),
    ("POST", "/guidelines/{batch:int}", E, expert.write),
    ("GET", "/batch/{batch:int}", E, admin.batch_page),
    ("POST", "/batch/{batch:int}/close", A, admin.close),
    ("GET", "/people", A, admin.people_page),
    ("POST", "/people", A, admin.invite_one),
    ("POST", "/people/{id:int}/revoke", A, admin.revoke_one),
    ("GET", "/runs", A, admin.runs_page),
    ("GET", "/runs/{name}", A, admin.report),
    ("GET", "/doctor/{name}", A, admin.doctor),
    ("GET", "/log", A, admin.log_page),
)


def make_app(review: Review) -> ASGIApp:
    """The application."""
    guard = Guard(review)
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    def add(method: str, path: str, needed: Role | None, handler: Handler, *, forged: bool = True) -> None:
        async def answer(request: Request) -> Response:
            return await guard.answer(request, handler, needed, forged=forged)

        app.add_route(path, answer, methods=[method])

    for method, path, needed, handler in ROUTES:
        add(method, path, needed, handler)
    add("POST", "/in", None, entrance.enter, forged=False)  # who comes in has no session yet that a form could carry

    async def static(request: Request) -> Response:
        found = static_files().get(request.path_params["name"])
        if found is None:
            return await elsewhere(request, Exception())
        return Response(found[0], media_type=found[1], headers={"cache-control": "max-age=300"})

    async def elsewhere(request: Request, error: Exception) -> Response:
        def refuse(ask: Ask) -> Response:
            raise RefusalError(404, "There is no such page here.")

        return await guard.answer(request, refuse, None, forged=False)

    app.add_route("/static/{name}", static, methods=["GET"])
    for status in (404, 405):
        app.add_exception_handler(status, elsewhere)
    return guarded(app)
