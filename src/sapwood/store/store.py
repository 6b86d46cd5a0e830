"""The store itself: opened, checked, and then two ways to a connection.

In: a place and tables. Out: `Store`. How the two databases come to promise the same:

    writing   SQLite BEGIN IMMEDIATE           PostgreSQL an advisory lock of the transaction, taken first
    reading   SQLite one snapshot of the WAL   PostgreSQL REPEATABLE READ, READ ONLY

One writer at a time: no serialization failure can happen, so nothing has to be tried again and a body runs exactly once. A commit takes
milliseconds; who needs thousands of them a second puts many rows into one. A connection that died while it was idle is replaced unseen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import Any

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, create_engine, event, inspect, select, text

from sapwood.errors import ConfigError, StorageError
from sapwood.store.place import is_file, prepare_file, read_place, shown
from sapwood.store.refusals import refusals

PATIENCE = 30
"""Seconds that a writer waits for another, and anybody for a connection."""
CONNECTIONS = 32
"""Connections of one process at most."""

_MARK = Table("sapwood_store", MetaData(), Column("kind", String(40), primary_key=True), Column("version", Integer, nullable=False))
"""One row: what the database holds, and the version of its tables."""
_LOCK = 0x5A9_0D
"""The advisory lock of all writers; it belongs to one database of PostgreSQL."""

Upgrade = Callable[[Connection], None]
"""Changes the tables of one version into those of the next, in the transaction that it is given."""


class Store:
    """An open database. All methods may be called from any thread; a connection belongs to the thread that got it."""

    def __init__(self, engine: Engine, place: str) -> None:
        self._engine, self.place = engine, place
        """`place` is how messages name it, without a password."""
        self._turn, self._mine = threading.Lock(), threading.local()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction of the only writer: kept whole when the body ends, and not at all when it raises.

        Raises `StorageError` where the database refuses or another writes for longer than `PATIENCE`. Not to be nested.
        """
        assert not getattr(self._mine, "writes", False), "a thread that writes would wait for itself"
        if not self._turn.acquire(timeout=PATIENCE):  # in turn within a process: SQLite's own waiting is not fair
            raise StorageError(f"{self.place}: too many writers wait, and no turn came within {PATIENCE} s. Try again.")
        self._mine.writes = True
        try:
            with refusals(self.place), self._engine.connect().execution_options(sapwood_writes=True) as connection, connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                yield connection
        finally:
            self._mine.writes = False
            self._turn.release()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One moment of the database. Writers are not held up; nothing can be written. Raises `StorageError` where the database refuses."""
        options: dict[str, Any] = {}
        if self._engine.dialect.name == "postgresql":
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with refusals(self.place), self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Give all connections back. Whoever still holds one ends first."""
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_store(
    place: str | PathLike[str],
    tables: MetaData,
    *,
    kind: str,
    version: int,
    upgrades: Mapping[int, Upgrade] | None = None,
    create: bool = True,
) -> Store:
    """Open a database of this `kind`, and make its tables where it is empty. `upgrades[v]` leads from version v to v + 1.

    Raises `ConfigError` for a place that cannot be meant, `StorageError` for one that cannot be opened, that holds something else (another
    kind, tables of nobody we know, a later version), or that does not exist and is not to be created.
    """
    url = read_place(place)
    if is_file(url):
        prepare_file(url, create)
    store = Store(_engine(url), shown(url))
    try:
        with store.writing() as connection:
            _check(connection, store.place, tables, kind, version, upgrades or {}, create)
    except BaseException:
        store.close()
        raise
    return store


def _engine(url: Any) -> Engine:
    if is_file(url):
        engine = create_engine(url, pool_size=8, max_overflow=CONNECTIONS - 8, pool_timeout=PATIENCE, connect_args={"timeout": PATIENCE})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(
            url, pool_size=8, max_overflow=CONNECTIONS - 8, pool_timeout=PATIENCE, pool_pre_ping=True, connect_args={"connect_timeout": 10}
        )
    except ImportError as error:
        raise ConfigError(f"PostgreSQL needs {error.name}, which is not installed: pip install 'sapwood[web]'") from None


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, and nowhere else
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):  # FULL: what was answered for survives a power cut
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("sapwood_writes", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _check(
    connection: Connection, place: str, tables: MetaData, kind: str, version: int, upgrades: Mapping[int, Upgrade], create: bool
) -> None:
    """See that the database is ours, of this kind and version; make or upgrade its tables. Runs inside the writer's turn."""
    present = set(inspect(connection).get_table_names())
    if _MARK.name not in present:
        if present:
            names = ", ".join(sorted(present)[:4])
            raise StorageError(f"{place} holds tables that are not Sapwood's ({names}). Name another file or database.")
        if not create:
            raise StorageError(f"{place} is empty: nothing has been recorded there. Check the path or URL.")
        _MARK.metadata.create_all(connection)
        tables.create_all(connection)
        connection.execute(_MARK.insert().values(kind=kind, version=version))
        return
    found = connection.execute(select(_MARK.c.kind, _MARK.c.version)).one()
    if found.kind != kind:
        raise StorageError(f"{place} holds records of kind {found.kind!r}, not {kind!r}. Name another file or database for these.")
    if found.version > version:
        raise StorageError(
            f"{place} was written by a newer Sapwood: its tables are of version {found.version}, and this one opens up to {version}. "
            "Update Sapwood to open it; nothing in it was changed."
        )
    for step in range(found.version, version):
        if step not in upgrades:
            raise StorageError(
                f"{place} is of version {found.version}, and this Sapwood opens {version} only. Open it with the Sapwood that wrote it, "
                "or begin a new one; nothing in it was changed."
            )
        upgrades[step](connection)
    if found.version != version:
        connection.execute(_MARK.update().values(version=version))
