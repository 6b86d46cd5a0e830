"""Fifty people vote at once, and the server is killed in the middle: is a vote lost, doubled, or slow?

    python -m bench.review_load --seconds 300 --raters 50 [--store postgresql://…] [--cases 20000] [--out results.json]

A server of its own process on loopback; raters are coroutines with a think time of `--think` seconds on the average. Half way the server
is ended by SIGKILL and started again on the same port. A vote counts as acknowledged once its answer has arrived. At the end every
acknowledged vote must stand in the database exactly once, and no case may have more votes than its overlap. Times are those that the
server gives in `Server-Timing`, from the request's headers to the whole answer. On a machine that others use, `--nice -15` lets the
server go first; what it waits for is then its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import func, select

from bench.setting import commit, machine
from sapwood.remote.addresses import listen
from sapwood.review.batch import BatchConfig, Candidate, make_batch
from sapwood.review.people import Role, invite
from sapwood.review.rubric import Rubric
from sapwood.review.tables import KIND, VERSION, metadata, seats, votes
from sapwood.review.web.asking import Review
from sapwood.review.web.running import run_review
from sapwood.store import open_store

Phase = Callable[["Told"], Awaitable[None]]
SEAT = re.compile(r'name="seat" value="(\d+)"')
FORM = re.compile(r'name="form" value="([^"]+)"')
DURATION = re.compile(r"dur=([\d.]+)")
OVERLAP = 3


@dataclass
class Told:
    """What all raters saw together."""

    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    """(person, seat)"""
    milliseconds: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    """Requests that ended in a broken connection: the kill, and nothing else."""


def fill(place: str, cases: int, raters: int) -> list[tuple[int, str]]:
    """A database with a batch; (id, token) of each rater."""
    made = (
        Candidate(
            key=f"item-{number}",
            asked=[{"role": "user", "content": f"Question {number}: what is to be done?"}],
            answers={
                "tuned": {"role": "assistant", "content": f"Do **this**, then that. {number}\n\n" + "Because it helps. " * (number % 20)},
                "plain": {"role": "assistant", "content": "It depends. " * (1 + number % 30)},
            },
        )
        for number in range(cases)
    )
    with open_store(place, metadata, kind=KIND, version=VERSION) as store, store.writing() as connection:
        make_batch(connection, made, BatchConfig(overlap=OVERLAP), Rubric(), name="load", source="load", now=time.time())
        invited = [invite(connection, f"rater {number}", Role.RATER, time.time()) for number in range(raters)]
    return [(person.id, token) for person, token in invited]


def serve(place: str, port: int, nice: int) -> None:
    """The server's process."""
    os.nice(nice)
    with open_store(place, metadata, kind=KIND, version=VERSION) as store:
        run_review(Review(store), listen("127.0.0.1", port), lambda: None)


def start(place: str, port: int, nice: int) -> multiprocessing.process.BaseProcess:
    """A server that answers."""
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(place, port, nice), daemon=True)
    process.start()
    for _ in range(600):
        try:
            httpx2.get(f"http://127.0.0.1:{port}/static/leaf.svg", timeout=5)
            return process
        except httpx2.TransportError:
            time.sleep(0.05)
    raise SystemExit("the server did not start")


async def rater(base: str, person: int, token: str, over: asyncio.Event, think: float, told: Told) -> None:
    """One person: come in, then look, think and vote until time is over; after a broken connection look again."""
    dice = random.Random(person)
    async with httpx2.AsyncClient(base_url=base, timeout=30) as client:
        await client.post("/in", data={"token": token})
        page = ""
        while not over.is_set():
            try:
                if not page:
                    page = (await client.get("/desk/1")).text
                seat, form = SEAT.search(page), FORM.search(page)
                if seat is None or form is None:
                    return
                await asyncio.sleep(dice.expovariate(1 / think) if think else 0)
                verdict = dice.choice(("a", "slightly_a", "tie", "slightly_b", "b", "both_good", "both_bad"))
                data = {"form": form[1], "seat": seat[1], "verdict": verdict, "ms": "1500"}
                answer = await client.post("/desk/1/vote", data=data, headers={"HX-Request": "true"})
            except httpx2.TransportError:
                told.broken += 1
                page = ""
                await asyncio.sleep(0.2)
                continue
            if answer.status_code == 200 and 'data-said="Kept."' in answer.text:
                told.acknowledged.append((person, int(seat[1])))
                told.milliseconds.append(float(DURATION.search(answer.headers["server-timing"])[1]))  # type: ignore[index]
                page = answer.text
            else:
                told.refused[f"{answer.status_code} {answer.text[:80]}"] += 1
                page = ""


async def crowd(base: str, people: list[tuple[int, str]], phase: Phase, think: float, told: Told, kill: Callable[[], None]) -> float:
    """All of them at once, a phase before the server dies and one after it has come again; the seconds that it answered."""
    over = asyncio.Event()
    began = time.monotonic()
    asked = [asyncio.ensure_future(rater(base, person, token, over, think, told)) for person, token in people]
    await phase(told)
    before = time.monotonic() - began
    await asyncio.to_thread(kill)
    began = time.monotonic()
    await phase(told)
    over.set()
    await asyncio.gather(*asked)
    return before + time.monotonic() - began


def lasting(seconds: float) -> Phase:
    """A phase of so many seconds."""

    async def phase(told: Told) -> None:
        await asyncio.sleep(seconds)

    return phase


def until_votes(count: int) -> Phase:
    """A phase of so many votes, two minutes at most."""

    async def phase(told: Told) -> None:
        wanted, began = len(told.acknowledged) + count, time.monotonic()
        while len(told.acknowledged) < wanted and time.monotonic() - began < 120:
            await asyncio.sleep(0.05)

    return phase


def checked(place: str, told: Told) -> dict[str, int]:
    """What the database holds against what was acknowledged."""
    with open_store(place, metadata, kind=KIND, version=VERSION) as store, store.reading() as connection:
        held = Counter((row.person, row.seat) for row in connection.execute(select(votes.c.person, votes.c.seat)))
        most = connection.execute(select(func.count()).select_from(seats).where(seats.c.vote.is_not(None)).group_by(seats.c.case)).scalars()
        beyond = sum(count > OVERLAP for count in most)
    acknowledged = Counter(told.acknowledged)
    return {
        "votes in the database": held.total(),
        "acknowledged": acknowledged.total(),
        "lost": sum((acknowledged - held).values()),
        "doubled": sum(count - 1 for count in held.values()),
        "beyond the overlap": beyond,
    }


def measure(place: str, phase: Phase, *, raters: int, think: float, cases: int, nice: int = 0) -> dict[str, Any]:
    """The whole of it."""
    people, told = fill(place, cases, raters), Told()
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    running = [start(place, port, nice)]

    def again() -> None:
        running[-1].kill()
        running[-1].join()
        running.append(start(place, port, nice))

    try:
        seconds = asyncio.run(crowd(f"http://127.0.0.1:{port}", people, phase, think, told, again))
    finally:
        running[-1].terminate()
        running[-1].join(20)
    times = sorted(told.milliseconds)
    share = {f"p{part}": times[min(len(times) - 1, int(len(times) * part / 100))] for part in (50, 95, 99)} if times else {}
    return {
        "raters": raters,
        "seconds": round(seconds),
        "cases": cases,
        "votes a second": round(len(times) / seconds, 1),
        "server ms": share,
        "nice": nice,
        "broken connections": told.broken,
        "refused": dict(told.refused),
        **checked(place, told),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--think", type=float, default=3)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--nice", type=int, default=0, help="below 0, so that the server goes first on a machine that others use")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = chosen.store or str(Path(folder) / "review.db")
        found = measure(place, lasting(chosen.seconds / 2), raters=chosen.raters, think=chosen.think, cases=chosen.cases, nice=chosen.nice)
    found = {"database": "PostgreSQL" if "://" in place else "SQLite", **found, "commit": commit(), "machine": machine()}
    print(json.dumps(found, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
