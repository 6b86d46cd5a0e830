"""Records that many people or processes write at once: one SQLite file, or a PostgreSQL database by its URL.

In: a path or URL, the tables of a room (SQLAlchemy Core), what kind of records they are and the tables' version. Out: a `Store`:

    with open_store("votes.db", tables, kind="review", version=1) as store:
        with store.writing() as connection:      # one writer at a time, the same on both kinds of database
            connection.execute(votes.insert(), …)
        with store.reading() as connection:      # one moment of the database, however long it is read
            connection.execute(select(votes)).all()

Both kinds give the same promises, so a room is written once: what `writing` did is kept whole or not at all, and what it read
before it wrote is still true when it writes. Left out on purpose: an ORM, and several rooms in one database. Needs the extra `web`.
"""

from sapwood.store.store import Store, Upgrade, open_store

__all__ = ["Store", "Upgrade", "open_store"]
