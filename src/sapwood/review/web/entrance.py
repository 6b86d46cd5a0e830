"""Coming in by a link, the first page, and leaving."""

from __future__ import annotations

from dataclasses import replace

from fastapi.responses import Response
from sqlalchemy import func, select

from sapwood.review.batch import Batch, all_batches
from sapwood.review.desk import Progress, progress
from sapwood.review.people import Person, Role, begin_session, end_session, note, person_of_token
from sapwood.review.tables import cases, corrections, rulings
from sapwood.review.web.asking import Ask, RefusalError
from sapwood.review.web.guard import COOKIE

_WHY = {
    "unknown": "This link is not known here. It may be cut short, or a newer one was made for you.",
    "expired": "This link has run out. Ask who sent it for a new one.",
    "revoked": "This link was closed. Ask who sent it.",
}


def welcome(ask: Ask) -> Response:
    """What a link shows. It signs nobody in by itself: programs that look at links in messages would use it up.

    The way in is a form of this very page, so that the strict cookie travels with what follows.
    """
    with ask.review.store.reading() as connection:
        found = person_of_token(connection, ask.path["token"], ask.now)
    if not isinstance(found, Person):
        raise RefusalError(401, _WHY[found])
    return ask.page("welcome.html", guest=found, token=ask.path["token"])


def enter(ask: Ask) -> Response:
    """Sign in with a token; the cookie is what counts from now on."""
    with ask.review.store.writing() as connection:
        found = person_of_token(connection, ask.one("token"), ask.now)
        if isinstance(found, Person):
            cookie, _ = begin_session(connection, found, ask.now)
            note(connection, ask.now, "came in", person=found.id, address=ask.address)
    if not isinstance(found, Person):
        raise RefusalError(401, _WHY[found])
    response = ask.to("/")
    age = max(0, int(found.expires - ask.now))
    response.set_cookie(COOKIE, cookie, max_age=age, path="/", secure=ask.review.secure, httponly=True, samesite="strict")
    return response


def leave(ask: Ask) -> Response:
    """Sign out."""
    with ask.review.store.writing() as connection:
        end_session(connection, ask.cookie)
        ask.log(connection, "left")
    response = replace(ask, session=None).page("left.html")
    response.delete_cookie(COOKIE, path="/", secure=ask.review.secure, httponly=True, samesite="strict")
    return response


def home(ask: Ask) -> Response:
    """The batches; a rater with one open batch goes straight to its desk."""
    with ask.review.store.reading() as connection:
        batches = all_batches(connection)
        lines: list[tuple[Batch, Progress, int, int]] = []
        for batch in batches:
            undecided = select(func.count()).select_from(cases).where(cases.c.batch == batch.id, cases.c.split > 0)
            decided = select(rulings.c.id).where(rulings.c.case == cases.c.id).exists()
            waiting = int(connection.execute(undecided.where(~decided)).scalar_one())
            mended = select(func.count(func.distinct(corrections.c.case))).where(corrections.c.batch == batch.id)
            lines.append((batch, progress(connection, batch, ask.person.id), waiting, int(connection.execute(mended).scalar_one())))
    alone = [batch for batch in batches if batch.open]
    if ask.person.role is Role.RATER and len(alone) == 1:
        return ask.to(f"/desk/{alone[0].id}")
    return ask.page("home.html", lines=lines)
