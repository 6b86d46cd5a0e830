"""Where records lie: a path or a URL → what SQLAlchemy opens. Nothing is opened here.

In: what a person wrote. Out: a `URL` with a driver that Sapwood knows, or a `ConfigError`. A password is never shown.
"""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, StorageError

DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
"""What may stand before `://`, and the driver that serves it."""


def read_place(place: str | PathLike[str]) -> URL:
    """The database that a path or a URL names. Raises `ConfigError` for a URL that is malformed, or of another database."""
    text = fspath(place)
    scheme, found, rest = text.partition("://")
    if not found:
        return _file(text)
    if scheme.split("+")[0] not in DRIVERS:
        near = did_you_mean(scheme, list(DRIVERS))
        raise ConfigError(f"Records lie in SQLite or PostgreSQL, not in {scheme!r}.{near} Give a file, or postgresql://USER@HOST/DATABASE.")
    driver = DRIVERS[scheme.split("+")[0]]
    if scheme not in (*DRIVERS, driver):
        raise ConfigError(f"Sapwood speaks to {scheme.split('+')[0]} by one driver of its own. Write {scheme.split('+')[0]}://… instead.")
    try:
        url = make_url(f"{driver}://{rest}")
    except (ArgumentError, ValueError):  # what it says may hold the password
        raise ConfigError("The database's URL is malformed. Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE.") from None
    if url.drivername == DRIVERS["sqlite"]:
        if url.query or url.host:
            raise ConfigError(f"{place}: write sqlite:///FILE, without a host or options; an absolute path has four slashes.")
        return _file(url.database or "")
    if not url.database:
        raise ConfigError(f"{shown(url)} names no database. Write postgresql://USER@HOST/DATABASE.")
    return url


def _file(text: str) -> URL:
    if text in ("", ":memory:"):
        raise ConfigError("Records that lie in memory would be lost. Name a file, or postgresql://USER@HOST/DATABASE.")
    return URL.create(DRIVERS["sqlite"], database=text)


def shown(url: URL) -> str:
    """How a message names it: the file, or the URL with its password covered."""
    if is_file(url):
        return str(url.database)
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


def is_file(url: URL) -> bool:
    """Whether it is SQLite's."""
    return url.drivername == DRIVERS["sqlite"]


def prepare_file(url: URL, create: bool) -> None:
    """See that SQLite has a file, readable by nobody else if it is new. Raises `StorageError` where there can be none."""
    path = Path(str(url.database))
    if path.is_dir():
        raise StorageError(f"{path} is a folder. Name a file in it, such as {path / 'records.db'}.")
    if not path.exists() and not create:
        raise StorageError(f"{path}: no such file. Check the path; it is made by the command that writes the records.")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: there is no folder {path.parent}. Make it, or name another file.")
    try:
        path.touch(0o600)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}). Change its permissions, or name another file.") from None
