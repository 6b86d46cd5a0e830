"""One promise on two databases: writers one at a time, readers of one moment, and errors that say what to do."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, String, Table, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from postgres_server import postgres_url, start_postgres, stop_postgres
from sapwood.errors import ConfigError, StorageError
from sapwood.store import Store, open_store

TABLES = MetaData()
COUNTS = Table("counts", TABLES, Column("name", String(40), primary_key=True), Column("value", Integer, nullable=False))
NOTES = Table("notes", TABLES, Column("id", Integer, primary_key=True), Column("name", ForeignKey("counts.name"), nullable=False))


def opened(place: str) -> Store:
    return open_store(place, TABLES, kind="counting", version=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "records.db") if request.param == "sqlite" else postgres_url()


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    with opened(place) as store:
        yield store


def value(connection: Connection) -> int:
    return int(connection.execute(select(COUNTS.c.value).where(COUNTS.c.name == "a")).scalar_one())


def one_more(store: Store) -> None:
    with store.writing() as connection:  # read, then write: lost where two writers read the same
        connection.execute(update(COUNTS).values(value=value(connection) + 1))


def _change_and_raise(connection: Connection) -> None:
    connection.execute(update(COUNTS).values(value=7))
    raise StorageError("changed my mind")


def begin(store: Store) -> None:
    with store.writing() as connection:
        connection.execute(insert(COUNTS).values(name="a", value=0))


def count_in_process(place: str, times: int) -> None:
    with opened(place) as store:
        for _ in range(times):
            one_more(store)


def test_no_update_is_lost_between_threads_and_processes(place: str) -> None:
    with opened(place) as store:
        begin(store)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=count_in_process, args=(place, 40)) for _ in range(2)]
        for process in processes:
            process.start()
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(lambda _: one_more(store), range(100)))
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        with store.reading() as connection:
            assert value(connection) == 180


def test_what_raises_keeps_nothing_and_frees_the_turn(store: Store) -> None:
    begin(store)
    with pytest.raises(StorageError), store.writing() as connection:
        _change_and_raise(connection)
    one_more(store)
    with store.reading() as connection:
        assert value(connection) == 1


def test_a_reader_sees_one_moment_and_holds_up_nobody(store: Store) -> None:
    begin(store)
    with store.reading() as connection:
        assert value(connection) == 0
        writer = threading.Thread(target=one_more, args=(store,))
        writer.start()
        writer.join(20)
        assert not writer.is_alive()
        assert value(connection) == 0
    with store.reading() as connection:
        assert value(connection) == 1


def test_foreign_keys_hold(store: Store) -> None:
    with pytest.raises(IntegrityError), store.writing() as connection:  # a bug of the program passes through as it is
        connection.execute(insert(NOTES).values(name="nobody"))


def test_reading_writes_nothing(store: Store) -> None:
    with pytest.raises(StorageError, match=r"read-only|may not write"), store.reading() as connection:
        connection.execute(insert(COUNTS).values(name="a", value=0))


def test_two_that_open_an_empty_database_at_once_agree(place: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        for store in pool.map(lambda _: opened(place), range(8)):
            store.close()
    with opened(place) as store, store.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM sapwood_store")).scalar_one() == 1


def test_versions_and_kinds(place: str) -> None:
    opened(place).close()
    with pytest.raises(StorageError, match="holds records of kind 'counting', not 'review'"):
        open_store(place, TABLES, kind="review", version=1)
    with pytest.raises(StorageError, match=r"of version 1, and this Sapwood opens 3 only"):
        open_store(place, TABLES, kind="counting", version=3, upgrades={2: lambda connection: None})

    def upgrade(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE counts ADD COLUMN unit VARCHAR(40)"))

    open_store(place, TABLES, kind="counting", version=2, upgrades={1: upgrade}).close()
    with open_store(place, TABLES, kind="counting", version=2) as store, store.reading() as connection:
        connection.execute(text("SELECT unit FROM counts")).all()
    with pytest.raises(StorageError, match=r"written by a newer Sapwood.*version 2.*up to 1"):
        opened(place)


def test_an_upgrade_that_fails_changes_nothing(place: str) -> None:
    opened(place).close()

    def upgrade(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE counts ADD COLUMN unit VARCHAR(40)"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        open_store(place, TABLES, kind="counting", version=2, upgrades={1: upgrade})
    with opened(place) as store, store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(COUNTS)).scalar_one() == 0


def test_tables_of_others_are_left_alone(place: str) -> None:
    if "://" in place:
        with open_store(place, MetaData(), kind="x", version=1) as store, store.writing() as connection:
            connection.execute(text("CREATE TABLE theirs (a INTEGER)"))
            connection.execute(text("DROP TABLE sapwood_store"))
    else:
        with sqlite3.connect(place) as connection:
            connection.execute("CREATE TABLE theirs (a INTEGER)")
        connection.close()
    with pytest.raises(StorageError, match=r"not Sapwood's \(theirs\)"):
        opened(place)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("mysql://u@h/d", "not in 'mysql'"),
        ("postgressql://u@h/d", "Did you mean 'postgresql'"),
        ("postgresql+asyncpg://u@h/d", r"Write postgresql://"),
        ("postgresql://u:hidden@h:port/d", "malformed"),
        ("postgresql://u:hidden@h", "names no database"),
        (":memory:", "in memory would be lost"),
        ("sqlite://", "in memory would be lost"),
    ],
)
def test_places_that_cannot_be_meant(place: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        opened(place)
    assert "hidden" not in str(found.value)


def odd_files(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "text.db").write_text("not a database at all, but long enough to be looked at\n" * 40)
    (folder / "sub").mkdir()
    return {
        "text": (folder / "text.db", "not an SQLite database"),
        "folder": (folder / "sub", "is a folder"),
        "no folder": (folder / "none" / "x.db", "there is no folder"),
    }


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path, words in odd_files(tmp_path).values():
        with pytest.raises(StorageError, match=words):
            opened(str(path))
    with pytest.raises(StorageError, match="no such file"):
        open_store(tmp_path / "new.db", TABLES, kind="counting", version=1, create=False)
    assert not (tmp_path / "new.db").exists()


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    opened(str(tmp_path / "new.db")).close()
    assert stat.S_IMODE(os.stat(tmp_path / "new.db").st_mode) == 0o600


def test_a_writer_elsewhere_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.db"
    monkeypatch.setattr("sapwood.store.store.PATIENCE", 0.2)
    with opened(str(path)) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another process has been writing"):
            one_more(store)
        other.close()
        begin(store)


def _refused(place: str) -> str:
    with pytest.raises(StorageError) as found:
        opened(place)
    assert "hidden" not in str(found.value)
    return str(found.value)


def test_what_postgresql_refuses_is_said() -> None:
    url = postgres_url()
    server = url.rpartition("/")[0]
    assert "there is no such database" in _refused(f"{server}/nowhere")
    assert "refuses the user or password" in _refused(url.replace("postgres@", "stranger:hidden@"))
    with opened(url) as store, store.writing() as connection:
        connection.execute(text("CREATE ROLE guest LOGIN"))
    assert "the user may not do that there" in _refused(url.replace("postgres@", "guest@"))
    port = server.rpartition(":")[2]
    assert "the server does not answer" in _refused(url.replace(f":{port}/", ":1/"))


def test_a_server_that_restarts_is_found_again() -> None:
    with opened(postgres_url()) as store:
        begin(store)
        stop_postgres()
        with pytest.raises(StorageError, match=r"does not answer|stopping|broke"):
            one_more(store)
        start_postgres()
        one_more(store)
        with store.reading() as connection:
            assert value(connection) == 1
