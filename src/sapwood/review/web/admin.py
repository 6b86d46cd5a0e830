"""What stands over the batches: results, people and their links, runs and their reports, the log."""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response
from sqlalchemy import Connection, select

from sapwood.review.batch import Batch, all_batches, close_batch
from sapwood.review.desk import progress
from sapwood.review.people import everybody, invite, recent_events, revoke, role_named
from sapwood.review.raters import raters_of
from sapwood.review.results import cast_votes, results_of
from sapwood.review.tables import cases
from sapwood.review.web.asking import Ask, RefusalError, RunLine

SANDBOX = {
    "content-security-policy": "sandbox allow-scripts; default-src 'none'; img-src data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
}
"""For pages that Sapwood wrote to stand alone: they run apart from the application, without its cookies, and may load nothing."""


def batch_page(ask: Ask, said: str = "") -> Response:
    """What the votes say so far."""
    with ask.review.store.reading() as connection:
        batch = ask.batch(connection)
        told = told_of(connection, batch)
        names = {person.id: person.name for person in everybody(connection)}
        done = progress(connection, batch, ask.person.id)
    return ask.page("batch.html", batch=batch, names=names, progress=done, said=said, **told)


def told_of(connection: Connection, batch: Batch) -> dict[str, Any]:
    """Results and raters of a batch."""
    cast, known = cast_votes(connection, batch), cast_votes(connection, batch, known=True)
    answers = select(cases.c.id, cases.c.gold).where(cases.c.batch == batch.id, cases.c.gold.is_not(None))
    right = {row.id: row.gold for row in connection.execute(answers)}
    return {"results": results_of(batch, cast), "raters": raters_of(cast, known, right)}


def close(ask: Ask) -> Response:
    """End the voting and show who is who."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        if ask.one("sure") != "yes":
            raise RefusalError(400, "Say that you are sure: there is no way back to being blind.")
        if batch.open:
            close_batch(connection, batch, ask.now)
            ask.log(connection, "closed", batch.name)
    return ask.to(f"/batch/{batch.id}")


def people_page(ask: Ask, link: str = "", invited: str = "", said: str = "") -> Response:
    """Everybody with a link."""
    with ask.review.store.reading() as connection:
        people = everybody(connection)
    return ask.page("people.html", people=people, link=link, invited=invited, said=said, now=ask.now)


def invite_one(ask: Ask) -> Response:
    """A link for a person, shown once."""
    with ask.review.store.writing() as connection:
        person, token = invite(connection, ask.one("name"), role_named(ask.one("role")), ask.now)
        ask.log(connection, "invited", f"{person.name} as {person.role}")
    return people_page(ask, f"/in/{token}", person.name)


def revoke_one(ask: Ask) -> Response:
    """Shut somebody out."""
    with ask.review.store.writing() as connection:
        person = next((one for one in everybody(connection) if one.id == ask.path["id"]), None)
        if person is None:
            raise RefusalError(404, "There is nobody of that number here.")
        if person.id == ask.person.id:
            raise RefusalError(400, "You would shut yourself out. Another admin can do that.")
        revoke(connection, person.id)
        ask.log(connection, "shut out", person.name)
    return people_page(ask, said=f"{person.name} is shut out; what was said stays.")


def runs_page(ask: Ask) -> Response:
    """The runs and the doctor's pages; those that would tell who is who wait until the batch is closed."""
    with ask.review.store.reading() as connection:
        hidden = {batch.source for batch in all_batches(connection) if batch.open}
    runs = [(run, str(run.folder.resolve()) in hidden) for run in ask.review.runs()]
    return ask.page("runs.html", runs=runs, doctors=ask.review.doctors())


def report(ask: Ask) -> Response:
    """A run's report, as it lies in its folder."""
    run = _named(ask.review.runs(), ask.path["name"])
    with ask.review.store.reading() as connection:
        if str(run.folder.resolve()) in {batch.source for batch in all_batches(connection) if batch.open}:
            raise RefusalError(403, "This report would tell who is who. It opens when the batch on it is closed.")
    return _standing_alone(run)


def doctor(ask: Ask) -> Response:
    """The doctor's view of a data set."""
    return _standing_alone(_named(ask.review.doctors(), ask.path["name"]))


def _named(lines: list[RunLine], name: str) -> RunLine:
    """The one of that name among those that were listed: an address never becomes a path."""
    found = next((line for line in lines if line.name == name and line.report is not None), None)
    if found is None:
        raise RefusalError(404, "There is no such report here.")
    return found


def _standing_alone(line: RunLine) -> Response:
    assert line.report is not None, "the list was searched for one with a report"
    return Response(line.report.read_bytes(), media_type="text/html; charset=utf-8", headers=SANDBOX)


def log_page(ask: Ask) -> Response:
    """What was done and refused."""
    before = ask.query.get("before", "")
    with ask.review.store.reading() as connection:
        rows = recent_events(connection, 100, before=int(before) if before.isdecimal() and len(before) < 18 else None)
    return ask.page("log.html", rows=rows)
