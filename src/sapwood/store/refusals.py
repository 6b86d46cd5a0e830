"""What a database says when it refuses → what a person can do about it.

In: exceptions of SQLAlchemy and its two drivers. Out: `StorageError`. A refusal that means a bug (a constraint, wrong SQL) passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from sapwood.errors import StorageError

_SQLITE = {
    "SQLITE_BUSY": "another process has been writing to it for too long; end that one, or try again",
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_READONLY": "this user may not write there; change the permissions of the file and its folder",
    "SQLITE_CANTOPEN": "it cannot be opened; look at the permissions of the file and its folder",
    "SQLITE_IOERR": "the disk failed; WAL needs a local disk, so a folder of a network does not do",
    "SQLITE_NOTADB": "it is not an SQLite database; name another file",
    "SQLITE_CORRUPT": "it is damaged; put a copy back (`sqlite3 FILE .recover` saves what can be read)",
}
"""Beginnings of SQLite's names of errors."""

_POSTGRES = {
    "28": "it refuses the user or password; give them in the URL, or as PGUSER and PGPASSWORD",
    "3D000": "there is no such database; make it with `createdb NAME`",
    "42501": "the user may not do that there; GRANT it, or let the user own the database",
    "55P03": "another process has been writing to it for too long; end that one, or try again",
    "53300": "it takes no more connections; raise its max_connections, or end other clients",
    "53100": "its disk is full; free some space on the server",
    "25006": "it is read-only (a standby?); give the address of the primary",
    "57P": "it is stopping or restarting; try again when it is back",
    "08": "the connection broke; see that the server runs, and try again",
}
"""Beginnings of PostgreSQL's codes (appendix A of its manual)."""


@contextmanager
def refusals(place: str) -> Iterator[None]:
    """Turn a database's refusals into `StorageError`, with `place` in their words. What was begun and not ended is not kept."""
    try:
        yield
    except NoConnectionError as error:
        raise StorageError(f"{place}: too much is read and written at once, and no connection became free. Try again.") from error
    except DBAPIError as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise StorageError(f"{place}: {cause}. What was begun last was not kept; everything before it was.") from error


def _cause(error: DBAPIError) -> str | None:
    original = error.orig
    said = str(original).strip().splitlines()
    if (name := getattr(original, "sqlite_errorname", None)) is not None:
        return next((f"{cause} ({name})" for beginning, cause in _SQLITE.items() if name.startswith(beginning)), None)
    code = getattr(original, "sqlstate", None) or ""
    known = next((f"{cause} (code {code})" for beginning, cause in _POSTGRES.items() if code.startswith(beginning)), None)
    if known is not None or code:
        return known
    if type(original).__name__ not in ("OperationalError", "InterfaceError", "ConnectionTimeout"):
        return None
    # refused before there was a session: libpq says why in words alone
    words = " ".join(said)
    wrong_person = any(word in words for word in ("password", "authentication", "role"))
    if wrong_person:
        return f"{_POSTGRES['28']} ({said[-1] if said else 'no reason given'})"
    if "database" in words and "does not exist" in words:
        return _POSTGRES["3D000"]
    return f"the server does not answer ({said[-1] if said else 'no reason given'}); see that it runs, and check host and port"
