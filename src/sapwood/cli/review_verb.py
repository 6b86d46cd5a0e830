"""`sapwood review [RUN | FILE] | export [BATCH …] | close BATCH …`"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sapwood.cli.options import Json, parse, screen_for, take_json, take_names
from sapwood.errors import ConfigError
from sapwood.recipes.screen import Screen
from sapwood.remote.addresses import is_loopback, listen

if TYPE_CHECKING:
    from sapwood.recipes.review import ReviewConfig

DESCRIPTION = (
    "Let people judge answers in the browser, blind: a run's, pairs of a file, a served model's traffic, or a data set's. Prints a link "
    "for each person. Without a name it goes on with the batches that there are."
)
EXPORTING = (
    "Write what people said: scores, corrected rows (sft.jsonl), preference pairs, rejected items, votes. All batches, or those named."
)
CLOSING = "End the voting on batches and let the names be seen."


def run(words: list[str]) -> None:
    """Parse, and serve, export or close."""
    try:
        import nh3  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"`sapwood review` needs {error.name}, which is not installed: pip install 'sapwood[web]'") from None
    json, words = take_json(words)
    names, flags = take_names(words)
    if names[:1] == ["export"]:
        _export(names[1:], flags, json)
    elif names[:1] == ["close"]:
        _close(names[1:], flags, json)
    else:
        _serve(names, flags, json)


def _serve(names: list[str], flags: list[str], json: Json) -> None:
    from sapwood.recipes.review import ReviewConfig, begin, doctor_lines, open_review, run_lines
    from sapwood.review.web.asking import Review
    from sapwood.review.web.running import run_review

    if len(names) > 1:
        raise ConfigError(f"Give one run directory or file, found {len(names)}: {', '.join(names)}.")
    config = parse(ReviewConfig(), "review", flags, DESCRIPTION)
    screen = screen_for(json)
    source = Path(names[0]) if names else None
    listener = listen(config.host, config.port)  # before anything is written: a port that is taken is known at once
    with listener, open_review(config) as store:
        begun = begin(store, source, config, screen)
        base = (config.address or f"http://{_named(config.host)}:{listener.getsockname()[1]}").rstrip("/")
        media = source if source is None or source.is_dir() else source.parent
        review = Review(
            store=store,
            hosts=_hosts(config),
            secure=base.startswith("https://"),
            runs=lambda: run_lines(config.runs),
            doctors=lambda: doctor_lines(config.runs),
            media=config.media or media,
        )
        links = {name: base + path for name, path in begun.links.items()}

        def ready() -> None:
            _welcome(base, links, screen, store.place)
            found = {"name": begun.batch.name, "cases": begun.cases} if begun.batch is not None else None
            json.write({"url": base, "links": links, "store": store.place, "batch": found})

        run_review(review, listener, ready)
    screen.say("Stopped. Every vote that was confirmed is kept.")


def _welcome(base: str, links: dict[str, str], screen: Screen, place: str) -> None:
    screen.title("Review")
    screen.lines([f"Address      {base}", f"Database     {place}"])
    wide = max((len(name) for name in links), default=0)
    for name, link in links.items():
        screen.lines([f"{name:<{wide}}  {link}"])
    if links:
        screen.say("Each link is for one person, and is shown this once. Open one, press Enter, and judge.", "dim")
    else:
        screen.say("Everybody's link holds as before; --people NAME makes a new one.", "dim")
    if base.startswith("http://") and not is_loopback(urlsplit(base).hostname or ""):
        screen.say("Links and answers cross the network as they are: put a proxy with TLS in front, and name it with --address.", "yellow")
    screen.say("Next         sapwood review export, then sapwood sft --from-review", "dim")


def _named(host: str) -> str:
    """The host as an address has it; every network of this machine goes by the machine's name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _hosts(config: ReviewConfig) -> tuple[str, ...]:
    """Under which names it may be asked: those of --address, this machine's own, or, where it listens on a network, any."""
    if config.address is not None:
        return (urlsplit(config.address).hostname or "",)
    return () if is_loopback(config.host) else ("*",)


@dataclass(frozen=True, kw_only=True)
class ExportReviewConfig:
    """What was said, as files."""

    out: Path = Path("runs") / "review"
    """The folder to write into."""
    store: str | None = None
    """The database, where it is not `runs/review.db`."""


@dataclass(frozen=True, kw_only=True)
class CloseReviewConfig:
    """Batches to close."""

    store: str | None = None
    """The database, where it is not `runs/review.db`."""


def _export(names: list[str], flags: list[str], json: Json) -> None:
    from sapwood.recipes.review import ReviewConfig, export_review, is_study

    config = parse(ExportReviewConfig(), "review export", flags, EXPORTING)
    screen = screen_for(json)
    done, reports = export_review(ReviewConfig(store=config.store), names, config.out)
    screen.title("Written")
    screen.lines([f"{count:>7,}  {done.folder / name}.jsonl" for name, count in done.counts.items()])
    screen.lines([f"Report       {report}" for report in reports])
    if done.blind:
        screen.say("A batch is still open, so its arms bear numbers. Close it to see the names: sapwood review close BATCH", "yellow")
    for study in (report.parent for report in reports if is_study(report.parent)):
        screen.say(f"Next         sapwood study {study} --labels {done.folder / 'votes.jsonl'}  (with people's word)", "dim")
    if done.counts["sft"]:
        screen.say(f"Next         sapwood sft {done.folder / 'sft.jsonl'}", "dim")
    json.write({**done.to_dict(), "reports": [str(report) for report in reports]})


def _close(names: list[str], flags: list[str], json: Json) -> None:
    from sapwood.recipes.review import ReviewConfig, close_review

    config = parse(CloseReviewConfig(), "review close", flags, CLOSING)
    screen = screen_for(json)
    closed = close_review(ReviewConfig(store=config.store), names)
    screen.say(f"Closed: {', '.join(batch.name for batch in closed)}. Next: sapwood review export", "bold")
    json.write({"closed": [batch.name for batch in closed]})
