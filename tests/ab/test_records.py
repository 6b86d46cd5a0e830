"""No unit is ever in two arms: under ramps, restarts, fallbacks, and two processes on one database."""

from __future__ import annotations

import multiprocessing
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.event import listen

from ab.trial import PLAN, Clock, Trial, plan_with, trial
from postgres_server import postgres_url
from sapwood.ab.analysis import analyse, as_dict
from sapwood.ab.assign import unit_of
from sapwood.ab.outcomes import split_units
from sapwood.ab.plan import Arm, Override, Step
from sapwood.ab.records import EXPOSURES, UNITS, begin, reopen
from sapwood.errors import ConfigError, DataError, StorageError
from sapwood.store import Store

RAMP = tuple(Step(after=f"{hours}h", to=to) for hours, to in ((0, 0.02), (1, 0.2), (2, 0.6), (3, 1.0)))


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, folder: Path) -> str:
    return str(folder / "ab.db") if request.param == "sqlite" else postgres_url()


def arms_of_units(store: Store) -> dict[int, set[int]]:
    """unit → arms that ever answered it"""
    found = defaultdict(set)
    with store.reading() as connection:
        for unit, served in connection.execute(select(EXPOSURES.c.unit, EXPOSURES.c.served)):
            found[unit].add(served)
    return found


def test_ramps_and_restarts_move_nobody(folder: Path) -> None:
    plan = plan_with(arms=(*PLAN.arms[:1], Arm(name="a", share=0.3), Arm(name="b", share=0.4)), ramp=RAMP)
    clock, seen = Clock(), {}
    for hour in range(4):
        running = trial(plan, folder / "ab.db", clock)  # a new process an hour
        running.asked = 10_000 * hour
        for number in range(60 * (hour + 1)):
            arm = running.ask(f"user-{number}")
            assert seen.setdefault(number, arm) == arm
        running.book.close()
        clock.now += 3600
    assert len({*seen.values()}) == 3
    running = trial(plan, folder / "ab.db", clock)
    arms, chances = split_units(running.book.read())
    assert len(arms) == 240
    assert len(set(chances)) == 4, "each unit keeps the chance that it had when it came"
    running.book.close()


def ask_in_process(place: str, seed: int, names: int) -> None:
    running = trial(PLAN, place)
    running.asked = seed * 1_000_000
    for number in range(names):
        running.ask(f"user-{(number * 7 + seed) % names}")
    running.book.close()


def test_two_processes_agree_on_every_unit(place: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ask_in_process, args=(place, seed, 100)) for seed in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    book = reopen(None, place)
    arms = arms_of_units(book._store)
    assert len(arms) == 100
    assert all(len(served) == 1 for served in arms.values())
    with book._store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(UNITS)).scalar_one() == 100
        assert connection.execute(select(func.count()).select_from(EXPOSURES)).scalar_one() == 200
    book.close()


def test_a_new_unit_met_by_many_threads_is_one_unit(place: str) -> None:
    running = trial(PLAN, place)
    exposures = iter(range(40))
    threads = [
        threading.Thread(target=lambda: running.book.expose(unit_of(PLAN, "the-one"), None, f"e{next(exposures)}")) for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(running.book.read().units) == 1
    assert running.book.read().exposures == 40
    running.book.close()


@pytest.fixture
def running(folder: Path) -> Iterator[Trial]:
    found = trial(plan_with(overrides=(Override(unit="me", arm="short"),)), folder / "ab.db")
    yield found
    found.book.close()


def test_a_fallback_holds_for_all_at_once_and_moves_nobody_for_good(running: Trial) -> None:
    names = [f"u{number}" for number in range(60)]
    before = {name: running.ask(name) for name in names}
    other = trial(running.plan, running.book.place, running.clock)
    assert other.book.switch(1, False, "it did harm")
    assert not other.book.switch(1, False, "again")
    assert {running.ask(name) for name in names} == {0}
    records = running.book.read()
    assert {unit.arm for unit in records.units} == {0, 1}, "what a unit had stays written"
    assert other.book.switch(1, True, "mended")
    assert {name: running.ask(name) for name in names} == before
    other.book.close()


def test_a_fallback_between_look_and_exposure_records_nothing(running: Trial) -> None:
    treated = next(unit for n in range(99) if running.book.look(unit := unit_of(running.plan, f"u{n}"), None).answers == 1)
    looked = running.book.look(treated, None)
    running.book.switch(1, False, "it did harm")
    assert running.book.expose(treated, None, "e", looked).answers == 0
    assert running.book.read().exposures == 0


def test_a_unit_sent_by_hand_is_never_counted(running: Trial) -> None:
    assert running.ask("me") == 1
    running.say("me", resolved=1)
    found = analyse(running.book.read())
    assert (found.units, found.chosen, found.comparisons[0].units) == (1, 1, 0)


def test_a_book_that_looks_often_reads_what_is_new_and_sees_what_a_new_one_sees(place: str) -> None:
    running = trial(plan_with(name=f"looks-{place[-6:]}"), place)
    for batch in range(3):
        running.crowd(5, (0.4, 0.6), seed=batch, prefix=f"{batch}-", seconds=(3, 4))
        running.judge(running.asked, resolved=1.0)
        often = running.book.read()
        once = reopen(running.plan.name, place, clock=running.clock)
        assert once.read() == often
        once.close()
        assert len(often.units) == 5 * (batch + 1)
        assert len(often.outcomes) == 11 * (batch + 1)
    asked: list[str] = []
    listen(running.book._store._engine, "before_cursor_execute", lambda *args: asked.append(str(args[3])))
    assert running.book.read() == often
    newest = max(unit.id for unit in often.units)
    assert any(str(newest) in parameters for parameters in asked), "rows behind the last one are asked for, and no others"
    running.book.close()


def test_outcomes_of_strangers_are_refused(running: Trial) -> None:
    with pytest.raises(DataError, match="No unit"):
        running.say("nobody", resolved=1)
    with pytest.raises(DataError, match="No answer"):
        running.judge(77, resolved=1)


def test_a_changed_plan_is_noticed(running: Trial) -> None:
    with pytest.raises(ConfigError, match=r"effect changed.*another name"):
        begin(plan_with(effect=0.1, overrides=running.plan.overrides), running.book.place)
    begin(plan_with(name="next", effect=0.1), running.book.place).close()
    with pytest.raises(ConfigError, match="several experiments"):
        reopen(None, running.book.place)
    with pytest.raises(ConfigError, match="Did you mean 'short'"):
        reopen("shrt", running.book.place)
    assert reopen("next", running.book.place).plan.effect == 0.1


def test_records_that_are_not_there_are_not_made(folder: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        reopen(None, folder / "none.db")
    assert not (folder / "none.db").exists()


def test_names_are_kept_nowhere(running: Trial) -> None:
    running.ask("mallory@example.com")
    running.say("mallory@example.com", resolved=1)
    running.book.close()
    kept = b"".join(path.read_bytes() for path in Path(running.book.place).parent.glob("ab.db*"))
    assert b"mallory" not in kept


def test_two_databases_say_the_same(folder: Path) -> None:
    found = []
    for place in (str(folder / "ab.db"), postgres_url()):
        running = trial(PLAN, place)
        running.crowd(120, (0.4, 0.6), seconds=(3, 3))
        found.append(as_dict(analyse(running.book.read())))
        running.book.close()
    assert found[0] == found[1]
