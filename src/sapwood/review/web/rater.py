"""The desk: a case, the keys to judge it, and what brings the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from sqlalchemy import Connection, Row, select

from sapwood.requirements import ErrorType
from sapwood.review.batch import Batch
from sapwood.review.desk import (
    LONGEST_TEXT,
    Ballot,
    Progress,
    Shown,
    bring_back,
    cast,
    is_verdict,
    next_case,
    progress,
    release,
    save_draft,
    skip,
    undo,
)
from sapwood.review.experts import guideline_versions
from sapwood.review.people import Role, set_paused
from sapwood.review.tables import cases, seats
from sapwood.review.verdicts import choices_of
from sapwood.review.web.asking import Ask, RefusalError
from sapwood.review.web.cases import difference as marked
from sapwood.review.web.cases import medium_of, view_of

_SAID = {
    "kept": "Kept.",
    "done": "That vote was there already; it counts once.",
    "lost": "You had this case for too long, and it went to somebody else. Your vote on it was not counted.",
    "closed": "The batch has been closed. Your vote was not counted.",
}


def show(ask: Ask) -> Response:
    """The case at hand, or a new one."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        shown = None if ask.person.paused else next_case(connection, batch, ask.person.id, ask.now)
        desk = _gathered(ask, connection, batch, shown)
    return desk.page(ask)


def vote(ask: Ask) -> Response:
    """Keep a vote and show the next case, in one step: what is answered for is on the disk."""
    verdict = ask.one("verdict")
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        if not is_verdict(batch, verdict):
            raise RefusalError(400, "Choose one of the verdicts on the page.")
        seat = ask.number("seat")
        said = cast(connection, batch, ask.person.id, seat, _ballot(ask, batch, verdict), ask.now)
        desk = _gathered(ask, connection, batch, next_case(connection, batch, ask.person.id, ask.now), _SAID[said])
    return desk.page(ask)


def undo_last(ask: Ask) -> Response:
    """Take the last vote back."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        shown = undo(connection, batch, ask.person.id, ask.now)
        if shown is None:
            said = "There is no vote of yours to take back." if batch.open else _SAID["closed"]
            shown = next_case(connection, batch, ask.person.id, ask.now)
        else:
            said = "Taken back. Judge it again."
            ask.log(connection, "undid", f"case {shown.case.id}")
        desk = _gathered(ask, connection, batch, shown, said)
    return desk.page(ask)


def skip_this(ask: Ask) -> Response:
    """Lay the case aside."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        said = "Skipped." if skip(connection, batch, ask.person.id, ask.number("seat"), ask.now) else ""
        desk = _gathered(ask, connection, batch, next_case(connection, batch, ask.person.id, ask.now), said)
    return desk.page(ask)


def again(ask: Ask) -> Response:
    """Offer what was skipped once more."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        bring_back(connection, batch, ask.person.id)
        desk = _gathered(ask, connection, batch, next_case(connection, batch, ask.person.id, ask.now))
    return desk.page(ask)


def keep_draft(ask: Ask) -> Response:
    """Keep what is half said."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        ballot = _ballot(ask, batch, "")
        draft = {"criteria": ballot.criteria, "errors": list(ballot.errors), "comment": ballot.comment}
        kept = save_draft(connection, ask.person.id, ask.number("seat"), draft, ask.now, batch.hold)
    return Response(status_code=204 if kept else 409)


def pause(ask: Ask) -> Response:
    """Rest: the case goes back, so that nobody waits for it."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        release(connection, batch, ask.person.id)
        set_paused(connection, ask.person.id, True)
    return ask.to(f"/desk/{batch.id}")


def resume(ask: Ask) -> Response:
    """Go on."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        set_paused(connection, ask.person.id, False)
    return ask.to(f"/desk/{batch.id}")


def difference(ask: Ask) -> Response:
    """What differs between the two answers at hand."""
    with ask.review.store.reading() as connection:
        batch = ask.batch(connection)
        mine = (seats.c.person == ask.person.id, seats.c.batch == batch.id, seats.c.vote.is_(None))
        seat = connection.execute(select(seats).where(*mine).order_by(seats.c.id)).first()
        if seat is None:
            raise RefusalError(404, "You have no case at hand.")
        case = connection.execute(select(cases).where(cases.c.id == seat.case)).one()
    view = view_of(case, batch, seat.left)
    if len(view.answers) < 2:
        raise RefusalError(404, "There is one answer alone.")
    return ask.page("difference.html", marked=marked(view.answers[0].turn.plain, view.answers[1].turn.plain), before="left", after="right")


def medium(ask: Ask) -> Response:
    """An image of a case: for experts, and for raters who hold or held the case."""
    with ask.review.store.reading() as connection:
        case = connection.execute(select(cases).where(cases.c.id == ask.path["case"])).one_or_none()
        mine = select(seats.c.id).where(seats.c.case == ask.path["case"], seats.c.person == ask.person.id)
        seen = ask.person.role.may(Role.EXPERT) or connection.execute(mine).first() is not None
    found = (
        medium_of(case, ask.path["part"], ask.path["message"], ask.path["number"], ask.review.media) if case is not None and seen else None
    )
    if found is None:
        raise RefusalError(404, "There is no such image here.")
    return Response(found[0], media_type=found[1], headers={"content-security-policy": "default-src 'none'; sandbox"})


@dataclass(frozen=True)
class _Desk:
    """What a desk shows, read in the transaction and drawn after it: nobody waits for another's page."""

    batch: Batch
    shown: Shown | None
    progress: Progress
    guideline: Row[Any]
    said: str

    def page(self, ask: Ask) -> Response:
        """The desk."""
        shown = self.shown
        return ask.page(
            "desk.html",
            batch=self.batch,
            shown=shown,
            view=view_of(shown.case, self.batch, shown.left) if shown is not None else None,
            choices=choices_of(self.batch.kind),
            progress=self.progress,
            guideline=self.guideline,
            draft={"verdict": "", "criteria": {}, "errors": [], "comment": "", **(shown.draft if shown is not None else {})},
            said=self.said,
        )


def _gathered(ask: Ask, connection: Connection, batch: Batch, shown: Shown | None, said: str = "") -> _Desk:
    done = progress(connection, batch, ask.person.id)
    return _Desk(batch, shown, done, guideline_versions(connection, batch)[0], said)


def _ballot(ask: Ask, batch: Batch, verdict: str) -> Ballot:
    """What the form says, unknown criteria, steps and errors left out: nobody's page offers them."""
    criteria: dict[str, dict[str, int]] = {}
    for number, criterion in enumerate(batch.rubric.criteria):
        for side in "ab":
            step = ask.one(f"criterion-{number}-{side}")
            if step.isdecimal() and int(step) < len(criterion.anchors):
                criteria.setdefault(criterion.name, {})[side] = int(step)
    errors: list[dict[str, Any]] = []
    for number, error in enumerate(batch.rubric.errors):
        for side in "ab":
            if (said := ask.one(f"error-{number}-{side}")) and (found := _error(error, said)) is not None:
                errors.append({"answer": side, **found})
    ms = ask.one("ms")
    return Ballot(
        verdict, criteria, tuple(errors), ask.one("comment").strip()[:LONGEST_TEXT], int(ms) if ms.isdecimal() and len(ms) < 12 else 0
    )


def _error(error: ErrorType, said: str) -> dict[str, str] | None:
    """An error as it was marked: alone, or with the degree of that number; None for a number of none."""
    if not error.degrees:
        return {"type": error.name}
    place = int(said) if said.isdecimal() and len(said) < 4 else 0
    return {"type": error.name, "degree": error.degrees[place - 1].name} if 0 < place <= len(error.degrees) else None
