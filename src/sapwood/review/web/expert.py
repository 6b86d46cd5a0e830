"""Experts' pages: queues, one case with correction and decision, guidelines and their versions."""

from __future__ import annotations

import itertools
from typing import Any, get_args

from fastapi.responses import Response
from sqlalchemy import Connection, Row, select

from sapwood.config import did_you_mean
from sapwood.errors import DataError
from sapwood.review.batch import Batch, batch_by_id, text_of
from sapwood.review.experts import (
    QUEUES,
    Queue,
    after,
    correct_answer,
    correction_of,
    guideline_versions,
    left_for_experts,
    queue,
    rule,
    ruling_of,
    votes_on,
    write_guideline,
)
from sapwood.review.tables import cases
from sapwood.review.verdicts import choices_of, from_machine, swapped
from sapwood.review.web.asking import Ask, RefusalError
from sapwood.review.web.cases import NOTHING_COVERED, difference, excerpt, view_of


def queue_page(ask: Ask) -> Response:
    """The cases of a queue, some at a time."""
    which = _queue(ask)
    start = ask.query.get("start", "0")
    with ask.review.store.reading() as connection:
        batch = ask.batch(connection)
        page = queue(connection, batch, which, start=int(start) if start.isdecimal() and len(start) < 10 else 0)
        counts = {name: queue(connection, batch, name, most=0).total for name in QUEUES}
    rows = [(row, excerpt(row.asked, batch)) for row in page.rows]
    return ask.page("queue.html", batch=batch, which=which, queues=QUEUES, counts=counts, page=page, rows=rows)


def case_page(ask: Ask, said: str = "") -> Response:
    """One case."""
    which = _queue(ask)
    with ask.review.store.reading() as connection:
        batch, case = _case(ask, connection)
        left = left_for_experts(batch, case.id)
        view = view_of(case, batch, left)
        mask = batch.mask if batch.open else NOTHING_COVERED
        mended: dict[str, Any] = {}
        for answer in view.answers:
            arm = case.arm_a if answer.side == "a" else case.arm_b
            row = correction_of(connection, case.id, arm)
            text = mask(row.after) if row is not None else mask(text_of(case.answers[arm]))
            marked = difference(mask(row.before), text) if row is not None else None
            mended[answer.side] = {"row": row, "text": text, "marked": marked}
        votes = [(row, _in_sides(row.verdict, row.left, left)) for row in votes_on(connection, case.id)]
        ruling = ruling_of(connection, case.id)
        machine = from_machine(case.machine, case.arm_a, case.arm_b)
        return ask.page(
            "case.html",
            batch=batch,
            case=case,
            view=view,
            which=which,
            queues=QUEUES,
            mended=mended,
            votes=votes,
            ruling=ruling,
            ruled=swapped(ruling.verdict, left) if ruling is not None else "",
            machine=None if machine is None else machine if left == "a" or case.arm_b is None else 1 - machine,
            choices=choices_of(batch.kind),
            guideline=guideline_versions(connection, batch)[0],
            following=after(connection, batch, which, case.id),
            said=said,
        )


def correct(ask: Ask) -> Response:
    """Keep a corrected answer."""
    side = _side(ask)
    with ask.review.store.writing() as connection:
        batch, case = _case(ask, connection)
        if side == "b" and case.arm_b is None:
            raise RefusalError(400, "This case has one answer alone.")
        shown = int(ask.one("shown")) if ask.one("shown").isdecimal() and len(ask.one("shown")) < 16 else 0
        last = correction_of(connection, case.id, case.arm_a if side == "a" else case.arm_b)
        if changed := correct_answer(connection, batch, case, side, ask.one("text"), ask.one("reason"), ask.person.id, ask.now, shown):
            ask.log(connection, "corrected", f"case {case.id}")
    said = "The correction is kept." if changed else "Nothing differs from what stands, so nothing was kept."
    if changed and last is not None and last.id != shown:
        said += f" It stands in place of one that {last.name} made after you had opened this page: speak with them."
    return case_page(ask, said)


def preview(ask: Ask) -> Response:
    """What the correction in the form changes."""
    side = _side(ask)
    with ask.review.store.reading() as connection:
        batch, case = _case(ask, connection)
    arm = case.arm_a if side == "a" else case.arm_b
    if arm is None:
        raise RefusalError(400, "This case has one answer alone.")
    mask = batch.mask if batch.open else NOTHING_COVERED
    before = mask(text_of(case.answers[arm]))
    return ask.page(
        "difference.html", marked=difference(before, ask.one("text").replace("\r\n", "\n")), before="the answer", after="the correction"
    )


def decide(ask: Ask) -> Response:
    """Keep a decision; then the next case of the queue."""
    with ask.review.store.writing() as connection:
        batch, case = _case(ask, connection)
        verdict = swapped(ask.one("verdict"), left_for_experts(batch, case.id)) if ask.one("verdict") else ""
        try:
            rule(connection, batch, case.id, verdict, ask.one("reason"), ask.person.id, ask.now)
        except DataError as error:
            raise RefusalError(400, str(error)) from None
        ask.log(connection, "decided", f"case {case.id}: {verdict}")
    return case_page(ask, "The decision is kept.")


def guidelines_page(ask: Ask, said: str = "") -> Response:
    """The guidelines and their versions; experts may write a new one."""
    with ask.review.store.reading() as connection:
        batch = ask.batch(connection)
        versions = guideline_versions(connection, batch)
    older = [(row, difference(before.text, row.text)) for row, before in itertools.pairwise(versions)]
    return ask.page("guidelines.html", batch=batch, newest=versions[0], older=older, first=versions[-1], said=said)


def write(ask: Ask) -> Response:
    """Keep a new version."""
    with ask.review.store.writing() as connection:
        batch = ask.batch(connection)
        version = write_guideline(connection, batch, ask.one("text"), ask.person.id, ask.now)
        ask.log(connection, "wrote guidelines", f"{batch.name}, version {version}")
    return guidelines_page(ask, f"Version {version} stands; raters read it from now on.")


def _case(ask: Ask, connection: Connection) -> tuple[Batch, Row[Any]]:
    case = connection.execute(select(cases).where(cases.c.id == ask.path["case"])).one_or_none()
    batch = batch_by_id(connection, case.batch) if case is not None else None
    if case is None or batch is None:
        raise RefusalError(404, "There is no such case here.")
    return batch, case


def _queue(ask: Ask) -> Queue:
    word = ask.query.get("queue", "disagreement")
    for name in get_args(Queue):
        if name == word:
            found: Queue = name
            return found
    raise RefusalError(404, f"There is no queue {word[:40]!r}.{did_you_mean(word[:40], list(QUEUES))} Queues: {', '.join(QUEUES)}.")


def _side(ask: Ask) -> str:
    if ask.one("side") not in ("a", "b"):
        raise RefusalError(400, "The form does not say which answer it is of. Load the page again.")
    return ask.one("side")


def _in_sides(verdict: str, left: str, here: str) -> str:
    """A rater's verdict as it reads with the sides of this page."""
    return swapped(swapped(verdict, left), here)
