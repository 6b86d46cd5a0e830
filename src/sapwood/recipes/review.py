"""`sapwood review`: from a run, a file or a data set to a page where people judge, and from what they said back into the work.

In: a source and a database. Out: a batch in it, links for people, files of what was said. The application is the room `review`'s; here it
learns what runs there are. A source that is named again goes on with the batch that was made of it.
"""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

from sqlalchemy import Connection, select

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError, SapwoodError
from sapwood.evaluate.report import write_report
from sapwood.recipes.judge_labels import refreshed
from sapwood.recipes.runs import runs
from sapwood.recipes.screen import Screen
from sapwood.requirements import Requirements, read_requirements
from sapwood.review.batch import Batch, BatchConfig, all_batches, batch_of, close_batch, make_batch
from sapwood.review.exporting import Exported, corrections_file, export, people_record
from sapwood.review.people import Role, everybody, invite, note, role_named
from sapwood.review.rubric import rubric_of
from sapwood.review.sources import read_source
from sapwood.review.tables import KIND, VERSION, batches, metadata
from sapwood.review.web.asking import RunLine
from sapwood.run import open_run, read_records
from sapwood.store import Store, open_store

HOME = Path("runs")
DATABASE = "review.db"
"""File in the folder of runs where nothing else is named: one place for all batches."""
DOCTOR_SIGN = b"Sapwood <span>doctor"
"""What a page of the doctor holds near its top."""


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """People judge answers in the browser."""

    store: str | None = None
    """The database: a file, or postgresql://USER@HOST/DATABASE; `runs/review.db` where not given."""
    people: tuple[str, ...] = ()
    """Who gets a link: NAME for a rater, NAME:expert, NAME:admin. A name that is there already gets a new link, and the old one ends."""
    days: float = 30.0
    """How long links hold."""
    requirements: Path | None = None
    """A requirements.yaml: its rubric, errors and tasks are what raters see."""
    gold: Path | None = None
    """A file of pairs (or single answers) with the column `gold`: known answers that check the raters."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is every network of this machine."""
    port: int = 8400
    """0 takes any that is free."""
    address: str | None = None
    """The address under which people come, such as https://review.example.org, where a proxy stands in front; links begin with it."""
    runs: Path = HOME
    """The folder whose runs and doctor's pages are listed."""
    media: Path | None = None
    """The folder below which images that rows name may lie; the source's own where not given."""
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}; give a number from 0 to 65535.")
        if not 0 < self.days <= 366:
            raise ConfigError(f"days is {self.days}; give more than 0, and at most a year.")
        if self.address is not None and not self.address.startswith(("http://", "https://")):
            raise ConfigError(f"address is {self.address!r}; write it whole, such as https://review.example.org.")


@dataclass(frozen=True)
class Begun:
    """What a start of the application leaves."""

    batch: Batch | None
    cases: int
    links: dict[str, str]
    """Name → the path of their link."""


def open_review(config: ReviewConfig, *, create: bool = True) -> Store:
    """The review database. Raises `ConfigError` or `StorageError` where it cannot be opened."""
    place = config.store or str(config.runs / DATABASE)
    if config.store is None and create:
        config.runs.mkdir(parents=True, exist_ok=True)
    return open_store(place, metadata, kind=KIND, version=VERSION, create=create)


def begin(store: Store, source: Path | None, config: ReviewConfig, screen: Screen) -> Begun:
    """Make the batch of a source, or find it, and links for those who get one. Raises a `SapwoodError` before anything is written."""
    now = time()
    batch, count = None, 0
    requirements = read_requirements(config.requirements) if config.requirements is not None else None
    if source is not None:
        with store.reading() as connection:
            batch = batch_on(connection, source, config.batch.name)
        if batch is None:
            batch, count = _make(store, source, config, requirements, now, screen)
        else:
            screen.say(f"Batch {batch.name} was made of this before, and goes on.")
    with store.writing() as connection:
        links = _links(connection, config.people, now, config.days)
    return Begun(batch, count, links)


def batch_on(connection: Connection, source: Path, name: str | None) -> Batch | None:
    """The newest batch of a source, of that name where one is given."""
    query = select(batches).where(batches.c.source == str(source.resolve())).order_by(batches.c.id.desc())
    if name is not None:
        query = query.where(batches.c.name == name)
    row = connection.execute(query).first()
    return None if row is None else batch_of(row)


def _make(
    store: Store, source: Path, config: ReviewConfig, requirements: Requirements | None, now: float, screen: Screen
) -> tuple[Batch, int]:
    with screen.progress("reading"):
        found = read_source(source)
        known = [] if config.gold is None else [one for one in read_source(config.gold).candidates if one.gold]
    if config.gold is not None and not known:
        raise ConfigError(f"{config.gold}: no row says what is right. Write the better answer's name into the column `gold`.")
    for refused in found.refused[:5]:
        screen.say(f"Left out: {refused}", "yellow")
    if len(found.refused) > 5:
        screen.say(f"… and {len(found.refused) - 5:,} more rows.", "yellow")
    knobs = config.batch if not found.masked else _masking(config.batch, found.masked)
    name = source.resolve().name if source.is_dir() else source.stem
    candidates = [*found.candidates, *known]
    with screen.progress("writing"), store.writing() as connection:
        return make_batch(connection, candidates, knobs, rubric_of(requirements), name=name, source=str(source.resolve()), now=now)


def _masking(config: BatchConfig, words: Sequence[str]) -> BatchConfig:
    return replace(config, mask=(*config.mask, *words))


def _links(connection: Connection, words: Sequence[str], now: float, days: float) -> dict[str, str]:
    """A link for each who is named; and, the first time, for whoever starts it: one to judge by, and one to look after it all."""
    wanted: dict[str, Role] = {}
    for word in words:
        name, _, role = word.partition(":")
        wanted[name] = role_named(role) if role else Role.RATER
    if not any(person.role is Role.ADMIN for person in everybody(connection)):
        owner = _owner()
        wanted = {f"{owner} (rater)": Role.RATER, owner: Role.ADMIN} | wanted
    links = {}
    for name, role in wanted.items():
        person, token = invite(connection, name, role, now, days=days)
        note(connection, now, "invited", f"{person.name} as {person.role}, from the command line")
        links[person.name] = f"/in/{token}"
    return links


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user of a container without a name
        return "owner"


def named_batches(connection: Connection, names: Sequence[str]) -> list[Batch]:
    """The batches of these names or sources; all where none is named. Raises `ConfigError` for one that is not there."""
    known = all_batches(connection)
    if not names:
        return known
    found = []
    for name in names:
        match = next((batch for batch in known if name == batch.name or str(Path(name).resolve()) == batch.source), None)
        if match is None:
            have = [batch.name for batch in known]
            raise ConfigError(f"There is no batch {name!r}.{did_you_mean(name, have)} Batches: {', '.join(have) or 'none'}.")
        found.append(match)
    return found


def export_review(config: ReviewConfig, names: Sequence[str], out: Path) -> tuple[Exported, list[Path]]:
    """Write what people said of the named batches, or of all, and into the runs that closed batches are of; (what, reports).

    Raises a `SapwoodError`.
    """
    with open_review(config, create=False) as store, store.reading() as connection:
        chosen = named_batches(connection, names)
        done = export(connection, chosen, out)
        told = {batch.source: people_record(connection, batch) for batch in reversed(chosen) if not batch.open and _is_run(batch.source)}
    votes = read_records(done.folder / "votes.jsonl")
    sources = {batch.name: batch.source for batch in chosen}
    mine = {source: [vote for vote in votes if sources[vote["batch"]] == source] for source in told}
    return done, [_into_run(Path(source), record, mine[source]) for source, record in told.items()]


def is_study(folder: Path) -> bool:
    """Whether a run is a study: it has a report of its own kind, which it writes itself when it is named again."""
    return (folder / "plan.json").is_file()


def _is_run(source: str) -> bool:
    return (Path(source) / "config.yaml").is_file() and (Path(source) / "scores.jsonl").is_file()


def _into_run(folder: Path, record: dict[str, Any], votes: list[dict[str, Any]]) -> Path:
    """The report of a run, with what people say of it, and of the judge that spoke of it; a study's as it stands."""
    with open_run(folder) as run:
        card = refreshed(run, votes, datetime.now(UTC).date())
        run.write_json("people", record | {"judge_card": None if card is None else str(card)})
        return folder / "report.html" if is_study(folder) else write_report(folder)


def close_review(config: ReviewConfig, names: Sequence[str]) -> list[Batch]:
    """Close batches by name. Raises a `SapwoodError`."""
    if not names:
        raise ConfigError("Name the batch to close: sapwood review close NAME")
    with open_review(config, create=False) as store, store.writing() as connection:
        chosen = named_batches(connection, names)
        for batch in chosen:
            if batch.open:
                close_batch(connection, batch, time())
                note(connection, time(), "closed", f"{batch.name}, from the command line")
        return named_batches(connection, names)


def corrected_rows(places: Sequence[str]) -> tuple[str, ...]:
    """Files of the rows that experts corrected, one a database, each named by the hash of what it holds.

    Raises `ConfigError` where a database holds no correction.
    """
    files = []
    for place in places:
        folder = Path(place).parent if "://" not in place else HOME
        folder.mkdir(parents=True, exist_ok=True)
        with open_review(ReviewConfig(store=place), create=False) as store, store.reading() as connection:
            file = corrections_file(connection, all_batches(connection), folder)
        if file is None:
            raise ConfigError(f"{store.place} holds no corrected answer yet. Experts correct them in the browser: sapwood review")
        files.append(str(file))
    return tuple(files)


def run_lines(folder: Path) -> list[RunLine]:
    """The runs as the application lists them; a folder that cannot be read lists none."""
    try:
        found = runs(folder)
    except SapwoodError:
        return []
    lines = []
    for run in found.runs:
        page = run.path / "report.html"
        words = " · ".join(filter(None, (run.kind, run.verdict, run.begun.strftime("%Y-%m-%d %H:%M") if run.begun else "")))
        lines.append(RunLine(run.path.name, words, run.state, page if page.is_file() else None, run.path))
    return lines


def doctor_lines(folder: Path) -> list[RunLine]:
    """Pages that `sapwood doctor --page` has left in the folder."""
    pages = []
    for page in sorted(folder.glob("*.html")) if folder.is_dir() else ():
        with page.open("rb") as file:
            if DOCTOR_SIGN in file.read(200_000):
                pages.append(RunLine(page.stem, page.name, "", page, folder))
    return pages
