"""Who may come in: one link with a token for each person, a role, and a session in a cookie. Nobody has a password.

In: an open review database. Out: `Person`s. Tokens, cookies and what forms carry are random; of the first two the database holds
hashes alone, so a copy of it opens nothing. What is done and refused goes to the table `events`. Left out on purpose: accounts, mail,
and roles of one's own.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, select

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.review.tables import events, people, sessions

DAY = 86400.0
LONGEST_NAME = 80


class Role(StrEnum):
    """What somebody may do; each may do what those before it may."""

    RATER = "rater"
    EXPERT = "expert"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Whether this role includes the other."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a link."""

    id: int
    name: str
    role: Role
    paused: bool
    expires: float
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A person at a browser, and what the forms of this session carry against forgery."""

    person: Person
    form: str


def invite(connection: Connection, name: str, role: Role, now: float, *, days: float = 30) -> tuple[Person, str]:
    """A new person, or a new link for one who is there; the old link and its sessions end. Returns the token, which is kept nowhere.

    Raises `ConfigError` for a name that is empty, too long, or that of somebody with another role.
    """
    name = " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"A person needs a name of 1 to {LONGEST_NAME} letters; found {name!r}.")
    token = secrets.token_urlsafe(24)
    values = {"token": digest(token), "expires": now + days * DAY, "revoked": False}
    found = connection.execute(select(people).where(people.c.name == name)).one_or_none()
    if found is None:
        key = connection.execute(people.insert().values(name=name, role=role, made=now, paused=False, **values)).inserted_primary_key
        assert key is not None
        return Person(int(key[0]), name, role, False, now + days * DAY), token
    if found.role != role:
        raise ConfigError(f"{name} is here already, as {found.role}. Choose another name: who voted must not change its role.")
    connection.execute(people.update().where(people.c.id == found.id).values(**values))
    connection.execute(sessions.delete().where(sessions.c.person == found.id))
    return _person(found), token


def role_named(word: str) -> Role:
    """The role of that name. Raises `ConfigError` with what is meant."""
    try:
        return Role(word)
    except ValueError:
        raise ConfigError(f"There is no role {word!r}.{did_you_mean(word, list(Role))} Roles: {', '.join(Role)}.") from None


def person_of_token(connection: Connection, token: str, now: float) -> Person | str:
    """Whose token it is, or why it opens nothing: `unknown`, `expired` or `revoked`."""
    found = connection.execute(select(people).where(people.c.token == digest(token))).one_or_none()
    if found is None:
        return "unknown"
    if found.revoked:
        return "revoked"
    return _person(found) if found.expires > now else "expired"


def begin_session(connection: Connection, person: Person, now: float) -> tuple[str, str]:
    """(cookie, what forms carry) of a new session, which ends when the link does."""
    cookie, form = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    connection.execute(sessions.delete().where(sessions.c.expires <= now))
    connection.execute(sessions.insert().values(id=digest(cookie), person=person.id, form=form, expires=person.expires))
    return cookie, form


def session_of(connection: Connection, cookie: str, now: float) -> Session | None:
    """The session of a cookie; None where there is none, it has ended, or the person was shut out."""
    joined = sessions.join(people, sessions.c.person == people.c.id)
    query = select(people, sessions.c.form, sessions.c.expires.label("ends")).select_from(joined)
    found = connection.execute(query.where(sessions.c.id == digest(cookie))).one_or_none()
    if found is None or found.revoked or min(found.ends, found.expires) <= now:
        return None
    return Session(_person(found), found.form)


def end_session(connection: Connection, cookie: str) -> None:
    """Sign out."""
    connection.execute(sessions.delete().where(sessions.c.id == digest(cookie)))


def revoke(connection: Connection, person: int) -> None:
    """Shut somebody out, at once; what they said stays."""
    connection.execute(people.update().where(people.c.id == person).values(revoked=True))
    connection.execute(sessions.delete().where(sessions.c.person == person))


def set_paused(connection: Connection, person: int, paused: bool) -> None:
    """A rater rests, or goes on."""
    connection.execute(people.update().where(people.c.id == person).values(paused=paused))


def everybody(connection: Connection) -> list[Person]:
    """All who ever had a link, in order of their names."""
    return [_person(row) for row in connection.execute(select(people).order_by(people.c.name))]


def note(connection: Connection, now: float, action: str, detail: str = "", *, person: int | None = None, address: str = "") -> None:
    """Write down what was done or refused."""
    connection.execute(events.insert().values(at=now, person=person, action=action, detail=detail[:2000], address=address[:60]))


def recent_events(connection: Connection, most: int = 200, *, before: int | None = None) -> Sequence[Row[Any]]:
    """The newest events first, each with the name of who did it."""
    query = select(events, people.c.name).select_from(events.outerjoin(people, events.c.person == people.c.id))
    if before is not None:
        query = query.where(events.c.id < before)
    return connection.execute(query.order_by(events.c.id.desc()).limit(most)).all()


def digest(secret: str) -> str:
    """What the database knows of a secret. It is random and long, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _person(row: Row[Any]) -> Person:
    return Person(row.id, row.name, Role(row.role), bool(row.paused), row.expires, bool(row.revoked))
