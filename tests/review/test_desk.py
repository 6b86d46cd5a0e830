"""The desk: no case beyond its overlap, none twice by one rater, whatever is done in whatever order, on both kinds of database."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from review_runs import ARMS, candidates, fill, known
from sqlalchemy import select

from postgres_server import postgres_url
from sapwood.errors import ConfigError, DataError
from sapwood.review.batch import Batch, BatchConfig, close_batch
from sapwood.review.desk import Ballot, bring_back, cast, next_case, progress, release, save_draft, skip, undo
from sapwood.review.tables import batches, cases, seats, votes
from sapwood.store import Store

PEOPLE = ("ann", "bob", "cyd", "dan")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "review.db") if request.param == "sqlite" else postgres_url()


def _holds(store: Store, batch: Batch) -> None:
    """What must be so at every moment."""
    with store.reading() as connection:
        rows = connection.execute(select(seats)).all()
        standing = connection.execute(select(votes).where(votes.c.withdrawn.is_(None))).all()
        gold = set(connection.execute(select(cases.c.id).where(cases.c.gold.is_not(None))).scalars())
        given = connection.execute(select(batches.c.given)).scalar_one()
    assert max(Counter(row.case for row in standing if row.case not in gold).values(), default=0) <= batch.overlap
    assert max(Counter((row.case, row.person) for row in standing).values(), default=0) <= 1
    assert {row.vote for row in rows if row.vote} == {row.id for row in standing}
    assert given == sum(row.case not in gold for row in standing)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_raters_do_breaks_the_overlap(place: str, seed: int) -> None:
    dice, now = random.Random(seed), 1000.0
    store, batch, _, ids = fill(place, [*candidates(8), *known(3)], BatchConfig(overlap=2, hold=60, gold_every=3), people=PEOPLE, now=now)
    held: dict[str, int] = {}
    for _ in range(160):
        name, now = dice.choice(PEOPLE), now + dice.choice((1, 1, 5, 90))  # sometimes a hold runs out
        with store.writing() as connection:
            what = dice.random()
            if what < 0.65:
                shown = next_case(connection, batch, ids[name], now)
                if shown is not None and dice.random() < 0.8:
                    seat = held.get(name, shown.seat) if dice.random() < 0.3 else shown.seat  # sometimes an old page is sent
                    cast(
                        connection,
                        batch,
                        ids[name],
                        seat,
                        Ballot(dice.choice(("a", "b", "tie", "cannot_judge"))),
                        now + dice.choice((1, 100)),
                    )
                if shown is not None:
                    held[name] = shown.seat
            elif what < 0.8:
                undo(connection, batch, ids[name], now)
            elif what < 0.9:
                skip(connection, batch, ids[name], held.get(name, 0), now)
            elif what < 0.95:
                bring_back(connection, batch, ids[name])
            else:
                release(connection, batch, ids[name])
        if _ % 20 == 0:
            _holds(store, batch)
    _holds(store, batch)
    store.close()


def test_all_cases_are_judged_and_then_nothing_is_left(place: str) -> None:
    store, batch, _, ids = fill(place, candidates(6), BatchConfig(overlap=3), people=PEOPLE, now=0.0)
    order: dict[str, list[int]] = {name: [] for name in PEOPLE}
    with store.writing() as connection:
        for turn in range(6):
            for name in PEOPLE:
                if (shown := next_case(connection, batch, ids[name], turn)) is not None:
                    order[name].append(shown.case.id)
                    assert cast(connection, batch, ids[name], shown.seat, Ballot("tie"), turn + 0.5) == "kept"
        assert all(next_case(connection, batch, ids[name], 99) is None for name in PEOPLE)
        assert progress(connection, batch, ids["ann"]).share == 1.0
    assert sum(map(len, order.values())) == 18
    assert len({tuple(given) for given in order.values()}) > 1, "everybody got the same order"
    _holds(store, batch)
    store.close()


def test_a_hold_that_ran_out_goes_to_another_and_the_late_vote_is_refused(tmp_path: Path) -> None:
    store, batch, _, ids = fill(tmp_path / "r.db", candidates(1), BatchConfig(overlap=1, hold=60), now=0.0)
    with store.writing() as connection:
        mine = next_case(connection, batch, ids["ann"], 0)
        assert mine is not None
        assert next_case(connection, batch, ids["bob"], 59) is None
        theirs = next_case(connection, batch, ids["bob"], 61)
        assert theirs is not None
        assert theirs.seat == mine.seat
        assert cast(connection, batch, ids["ann"], mine.seat, Ballot("a"), 62) == "lost"
        assert cast(connection, batch, ids["bob"], theirs.seat, Ballot("b"), 63) == "kept"
        assert cast(connection, batch, ids["bob"], theirs.seat, Ballot("b"), 63) == "done", "a form that is sent twice counts once"
    store.close()


def test_an_own_hold_that_ran_out_is_still_ones_own_where_nobody_took_it(tmp_path: Path) -> None:
    store, batch, _, ids = fill(tmp_path / "r.db", candidates(1), BatchConfig(overlap=1, hold=60), now=0.0)
    with store.writing() as connection:
        mine = next_case(connection, batch, ids["ann"], 0)
        assert mine is not None
        assert cast(connection, batch, ids["ann"], mine.seat, Ballot("a", ms=10**9), 500) == "kept"
        assert connection.execute(select(votes.c.ms)).scalar_one() == 500_000, "a browser cannot claim more time than has passed"
    store.close()


def test_undo_shows_what_was_said_and_the_next_vote_names_it(tmp_path: Path) -> None:
    store, batch, _, ids = fill(tmp_path / "r.db", candidates(3), now=0.0)
    with store.writing() as connection:
        first = next_case(connection, batch, ids["ann"], 0)
        assert first is not None
        cast(connection, batch, ids["ann"], first.seat, Ballot("a", comment="why"), 1)
        second = next_case(connection, batch, ids["ann"], 2)
        assert second is not None
        back = undo(connection, batch, ids["ann"], 3)
        assert back is not None
        assert (back.case.id, back.left, back.draft["verdict"], back.draft["comment"]) == (first.case.id, first.left, "a", "why")
        cast(connection, batch, ids["ann"], back.seat, Ballot("b"), 4)
        rows = connection.execute(select(votes).order_by(votes.c.id)).all()
        assert [(row.verdict, row.withdrawn is None, row.supersedes) for row in rows] == [("a", False, None), ("b", True, rows[0].id)]
    store.close()


def test_sides_fall_like_a_fair_coin_and_stay(tmp_path: Path) -> None:
    store, batch, _, _ = fill(tmp_path / "r.db", candidates(2), now=0.0)
    sides = [batch.left_for(case, person) for case in range(300) for person in (1, 2)]
    assert 240 < sides.count("a") < 360
    same = sum(batch.left_for(case, 1) == batch.left_for(case, 2) for case in range(300))
    assert 110 < same < 190, "two raters' sides are independent"
    assert [batch.left_for(case, person) for case in range(300) for person in (1, 2)] == sides
    store.close()


def test_skipped_cases_wait_until_they_are_asked_for(tmp_path: Path) -> None:
    store, batch, _, ids = fill(tmp_path / "r.db", candidates(2), now=0.0)
    with store.writing() as connection:
        first = next_case(connection, batch, ids["ann"], 0)
        assert first is not None
        assert skip(connection, batch, ids["ann"], first.seat, 1)
        assert not skip(connection, batch, ids["bob"], first.seat, 1), "nobody lays another's case aside"
        second = next_case(connection, batch, ids["ann"], 2)
        assert second is not None
        assert second.case.id != first.case.id
        cast(connection, batch, ids["ann"], second.seat, Ballot("a"), 3)
        assert next_case(connection, batch, ids["ann"], 4) is None
        bring_back(connection, batch, ids["ann"])
        again = next_case(connection, batch, ids["ann"], 5)
        assert again is not None
        assert again.case.id == first.case.id
    store.close()


def test_a_draft_waits_on_any_device_and_only_for_its_owner(tmp_path: Path) -> None:
    store, batch, _, ids = fill(tmp_path / "r.db", candidates(2), now=0.0)
    with store.writing() as connection:
        shown = next_case(connection, batch, ids["ann"], 0)
        assert shown is not None
        assert save_draft(connection, ids["ann"], shown.seat, {"comment": "half"}, 1, 60)
        assert not save_draft(connection, ids["bob"], shown.seat, {"comment": "not mine"}, 1, 60)
        again = next_case(connection, batch, ids["ann"], 2)
        assert again is not None
        assert again.draft == {"comment": "half"}
    store.close()


def test_a_closed_batch_takes_nothing(tmp_path: Path) -> None:
    from dataclasses import replace

    store, batch, _, ids = fill(tmp_path / "r.db", candidates(2), now=0.0)
    with store.writing() as connection:
        shown = next_case(connection, batch, ids["ann"], 0)
        assert shown is not None
        close_batch(connection, batch, 1)
        closed = replace(batch, open=False)
        assert cast(connection, closed, ids["ann"], shown.seat, Ballot("a"), 2) == "closed"
        assert next_case(connection, closed, ids["ann"], 3) is None
        assert undo(connection, closed, ids["ann"], 3) is None
    store.close()


def test_what_cannot_be_judged_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no arm 'other'.*tuned"):
        fill(tmp_path / "a.db", candidates(2), BatchConfig(arms=("other",)))
    with pytest.raises(ConfigError, match="overlap is 0"):
        BatchConfig(overlap=0)
    with pytest.raises(DataError, match="nothing to judge"):
        fill(tmp_path / "b.db", [])


@pytest.mark.parametrize(
    ("knobs", "cases_made", "kind"),
    [
        ({}, 8, "pair"),
        ({"most": 3}, 3, "pair"),
        ({"single": True}, 8, "single"),
        ({"single": True, "arms": ("tuned", "acme/secret-7b")}, 16, "single"),
    ],
)
def test_each_knob_of_a_batch_does_something(tmp_path: Path, knobs: dict, cases_made: int, kind: str) -> None:
    store, batch, _, _ = fill(tmp_path / "r.db", candidates(8), BatchConfig(**knobs))
    with store.reading() as connection:
        assert len(connection.execute(select(cases.c.id)).all()) == cases_made
    assert batch.kind == kind
    store.close()


def test_words_of_ones_own_are_covered(tmp_path: Path) -> None:
    store, batch, _, _ = fill(tmp_path / "r.db", candidates(1), BatchConfig(mask=("Bluebird",), gold_every=0, hold=99, overlap=5))
    assert batch.mask("I am bluebird by acme/secret-7b. I was tuned.") == "I am ⟦name 1⟧ by ⟦name 2⟧. I was tuned."
    assert (batch.gold_every, batch.hold, batch.overlap) == (0, 99, 5)
    store.close()


def test_the_letters_of_a_page_say_nothing_of_who_is_who(tmp_path: Path) -> None:
    """Pages carry `a` and `b`: were one of them always the tuned answer, a reader of the source would know it."""
    store, _, _, _ = fill(tmp_path / "r.db", candidates(60), BatchConfig(overlap=1), now=0.0)
    with store.reading() as connection:
        first = Counter(connection.execute(select(cases.c.arm_a)).scalars())
    assert set(first) == set(ARMS)
    assert min(first.values()) >= 15, "60 fair coins fall so unevenly once in 20,000 times"
    store.close()
