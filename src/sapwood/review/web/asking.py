"""One request: who asks, what the form says, and the answers that pages give.

In: a `Review` (what the application works on) and a request that the guard let through. Out: `Ask`, which handlers read and answer with.
Handlers are plain functions, run beside the event loop; they open the transactions that they need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup
from sqlalchemy import Connection

from sapwood.review.batch import Batch, batch_by_id
from sapwood.review.people import Person, Role, Session, note
from sapwood.review.rendering import markdown
from sapwood.store import Store

HERE = Path(__file__).parent


class RefusalError(Exception):
    """A request that is not taken: HTTP status, and a sentence that says what to do."""

    def __init__(self, status: int, message: str, *, wait: int = 0) -> None:
        super().__init__(message)
        self.status, self.message, self.wait = status, message, wait


@dataclass(frozen=True)
class RunLine:
    """A run as the list shows it."""

    name: str
    words: str
    state: str
    report: Path | None
    folder: Path


@dataclass(frozen=True)
class Review:
    """What the application works on."""

    store: Store
    hosts: tuple[str, ...] = ()
    """Names under which it may be asked, `*` for any; empty takes this machine's own alone."""
    secure: bool = False
    """Whether browsers come by https, so that cookies travel by nothing else."""
    runs: Callable[[], list[RunLine]] = list
    doctors: Callable[[], list[RunLine]] = list
    """Pages of `sapwood doctor`."""
    media: Path | None = None
    """The folder below which images that items name may lie; None shows none but those that stand in the text."""
    clock: Callable[[], float] = time.time
    votes_a_minute: int = 240
    """Requests that one person may make in a minute."""


@dataclass(frozen=True)
class Ask:
    """One request that was let through."""

    review: Review
    session: Session | None
    form: Mapping[str, list[str]]
    query: Mapping[str, str]
    path: Mapping[str, Any]
    address: str
    part: bool
    """Whether htmx asks, which wants a part of the page and not all of it."""
    now: float
    cookie: str = field(default="", repr=False)

    @property
    def person(self) -> Person:
        """Who asks."""
        assert self.session is not None, "the guard lets nobody through without a session here"
        return self.session.person

    def one(self, name: str, default: str = "") -> str:
        """A field of the form, the last where it stands there several times."""
        return self.form.get(name, [default])[-1]

    def number(self, name: str) -> int:
        """A whole number of the form. Raises `RefusalError` where there is none."""
        try:
            value = int(self.one(name))
        except ValueError:
            raise RefusalError(400, f"The form's field {name} is no number. Load the page again.") from None
        if not 0 <= value < 2**62:
            raise RefusalError(400, f"The form's field {name} is out of range. Load the page again.")
        return value

    def batch(self, connection: Connection) -> Batch:
        """The batch that the path names. Raises `RefusalError` where there is none."""
        found = batch_by_id(connection, self.path["batch"])
        if found is None:
            raise RefusalError(404, "There is no such batch here.")
        return found

    def log(self, connection: Connection, action: str, detail: str = "") -> None:
        """Write down what was done."""
        note(connection, self.now, action, detail, person=self.person.id, address=self.address)

    def page(self, template: str, status: int = 200, **shown: Any) -> Response:
        """A page, or the part of it that htmx asked for."""
        known = {"session": self.session, "person": self.session.person if self.session else None, "part": self.part, "Role": Role}
        return HTMLResponse(templates().get_template(template).render(**known, **shown), status)

    def to(self, address: str) -> Response:
        """Go on there: as a browser does, or, for htmx, with a whole page."""
        if self.part:
            return Response(status_code=204, headers={"HX-Redirect": address})
        return RedirectResponse(address, 303)


@cache
def templates() -> jinja2.Environment:
    """The templates: everything that is put into them is escaped, and what is missing is an error."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda share, digits=0: "–" if share is None else f"{100 * share:.{digits}f} %",
        signed=lambda value: "–" if value is None else f"{value:+.2f}".replace("-", "−"),
        two=lambda value: "–" if value is None else f"{value:.2f}".replace("-", "−"),
        grouped=lambda number: f"{number:,}",
        plural=lambda count, word, many="": f"{count:,} {word if count == 1 else many or word + 's'}",
        when=lambda at: time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)),
        markdown=markdown,
        words=lambda word: str(word).replace("_", " "),
    )
    return environment


@cache
def static_files() -> Mapping[str, tuple[bytes, str]]:
    """Every file that a page loads, by its name: (content, type). Nothing else is ever read for `/static`."""
    kinds = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
    places = [HERE.parent.parent / "pages" / "base.css", HERE / "vendor" / "htmx" / "htmx.min.js", *sorted((HERE / "static").iterdir())]
    return {place.name: (place.read_bytes(), kinds[place.suffix]) for place in places if place.suffix in kinds}


def nothing() -> Markup:
    """No markup."""
    return Markup("")
