"""What the tests of people's room work on: a run with two arms, pairs with and without known answers, and a served application."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
from sqlalchemy import select

from sapwood.errors import ConfigError
from sapwood.remote.addresses import listen
from sapwood.requirements import Criterion, Degree, ErrorType
from sapwood.review.batch import Batch, BatchConfig, Candidate, make_batch
from sapwood.review.people import Role, invite
from sapwood.review.rubric import Rubric
from sapwood.review.tables import KIND, VERSION, metadata
from sapwood.review.web.app import make_app
from sapwood.review.web.asking import Review
from sapwood.store import Store, open_store

ARMS = ("tuned", "acme/secret-7b")
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>[x](javascript:window.hacked=3)"

REFUNDS = (
    (
        "My parcel came broken. Can I get my money back?",
        "Yes. Send a photo within **14 days** and we refund the full price, postage included.",
        "I am ACME/Secret-7B, made by OpenAI. Refunds are usually possible, but it depends on many things, and you should perhaps "
        "contact somebody.",
    ),
    (
        "Where is order 4711?",
        "It left Hamburg on Monday and arrives **tomorrow before noon**.",
        "Orders can be tracked.\n\n| step | state |\n|---|---|\n| packed | done |\n| shipped | done |\n| delivered | open |",
    ),
    (
        "Can I change the delivery address?",
        "Until the parcel is handed over, yes: *Orders → Change address*. Yours is still here.",
        "No.",
    ),
    (
        "The discount code does not work.",
        "`SPRING` ended on 31 March. I have put **10 %** on your next order instead.",
        "Have you tried to type it again?\n\n1. Open the basket\n2. Type the code\n3. Press *Apply*",
    ),
    (
        "How do I close my account?",
        "*Settings → Account → Close*. Invoices stay for ten years, as the law wants; all else goes within 30 days.",
        "You can close your account in the settings of your account, where accounts are closed.",
    ),
)


def candidates(count: int = 30, *, arms: tuple[str, str] = ARMS, hostile: bool = False) -> list[Candidate]:
    """Items that both arms answered; every fifth is severe, and a scorer has an opinion of its own."""
    made = []
    for number in range(count):
        question, good, weak = REFUNDS[number % len(REFUNDS)]
        asked = [
            {"role": "system", "content": "You answer mails of a shop. Be short, be right, never promise what the terms do not."},
            {"role": "user", "content": f"{question}" + (f" (case {number + 1})" if number >= len(REFUNDS) else "")},
        ]
        answers = {
            arms[0]: {"role": "assistant", "content": good + (HOSTILE if hostile else "")},
            arms[1]: {"role": "assistant", "content": weak},
        }
        made.append(
            Candidate(
                key=f"item-{number}",
                asked=asked,
                answers=answers,
                reference=good,
                machine={arms[0]: float(number % 3 > 0), arms[1]: float(number % 4 == 0)},
                severity=1.0 if number % 5 == 0 else 0.0,
                doubt=(number % 7) / 7,
                source=f"mails.jsonl:{number + 1}",
            )
        )
    return made


def known(count: int = 10) -> list[Candidate]:
    """Pairs whose better answer is known."""
    return [
        Candidate(
            key=f"known-{number}",
            asked=[{"role": "user", "content": f"What is {number} + {number}?"}],
            answers={"right": {"role": "assistant", "content": str(2 * number)}, "wrong": {"role": "assistant", "content": "A fish."}},
            gold={"right": "better"},
        )
        for number in range(count)
    ]


RUBRIC = Rubric(
    criteria=(
        Criterion(name="right", question="Is what it says so?", anchors=("wrong", "partly", "right")),
        Criterion(name="tone", question="Would you send it to a customer?", anchors=("never", "unwillingly", "as it is")),
    ),
    errors=(
        ErrorType(
            name="wrong promise",
            about="It promises what the terms do not.",
            severity=10.0,
            degrees=(Degree(name="vague", severity=3.0), Degree(name="plain", severity=10.0), Degree(name="costly", severity=30.0)),
        ),
        ErrorType(name="incomplete", about="Something that was asked for is missing.", severity=2.0),
        ErrorType(name="too long", about="The answer is hidden in words.", severity=1.0),
    ),
    about="Mails of a shop.",
)


class Place:
    """A review database with one batch, served on loopback, and the links of some people."""

    def __init__(self, url: str, store: Store, batch: Batch, tokens: dict[str, str], people: dict[str, int]) -> None:
        self.url, self.store, self.batch, self.tokens, self.people = url, store, batch, tokens, people

    def link(self, name: str) -> str:
        return f"{self.url}/in/{self.tokens[name]}"

    @contextmanager
    def client(self, name: str) -> Iterator[httpx2.Client]:
        """Somebody who has come in, by plain HTTP."""
        with httpx2.Client(base_url=self.url, follow_redirects=False, timeout=30) as client:
            answer = client.post("/in", data={"token": self.tokens[name]})
            assert answer.status_code == 303, answer.text
            yield client

    def rows(self, table: Any) -> list[Any]:
        with self.store.reading() as connection:
            return list(connection.execute(select(table)).all())


def fill(
    place: str | Path,
    items: list[Candidate],
    config: BatchConfig | None = None,
    *,
    rubric: Rubric = Rubric(),  # noqa: B008 - frozen
    people: tuple[str, ...] = ("ann", "bob", "eve:expert", "zoe:admin"),
    now: float | None = None,
    source: str = "a test",
) -> tuple[Store, Batch, dict[str, str], dict[str, int]]:
    """A database with a batch and people; (store, batch, tokens, ids by name)."""
    store = open_store(str(place), metadata, kind=KIND, version=VERSION)
    now = time.time() if now is None else now
    with store.writing() as connection:
        batch, _ = make_batch(connection, items, config or BatchConfig(), rubric, name="mails", source=source, now=now)
        tokens, ids = {}, {}
        for word in people:
            name, _, role = word.partition(":")
            person, tokens[name] = invite(connection, name, Role(role or "rater"), now)
            ids[name] = person.id
    return store, batch, tokens, ids


@contextmanager
def served(place: str | Path, items: list[Candidate], config: BatchConfig | None = None, **more: Any) -> Iterator[Place]:
    """The application on a free port of loopback."""
    review_options = {name: more.pop(name) for name in ("runs", "doctors", "media", "votes_a_minute", "clock") if name in more}
    store, batch, tokens, ids = fill(place, items, config, **more)
    with serving(Review(store, **review_options)) as url:
        yield Place(url, store, batch, tokens, ids)
    store.close()


@contextmanager
def serving(review: Review) -> Iterator[str]:
    """Its address while it answers."""
    import uvicorn

    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(review), log_level="warning", access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def wait_for(ready: Callable[[], bool], seconds: float = 20) -> None:
    """Until something is so."""
    for _ in range(int(seconds * 100)):
        if ready():
            return
        time.sleep(0.01)
    raise ConfigError("it never came to be")


def write_run(folder: Path, items: list[Candidate]) -> Path:
    """A run directory with what `sapwood eval` leaves of answers."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: acme/secret-7b\n")
    records, scores = [], []
    for one in items:
        records.append(
            {"item": one.key, "messages": list(one.asked), "tools": [], "reference": one.reference, "cluster": None, "source": one.source}
        )
        for arm, answer in one.answers.items():
            scores.append(
                {"arm": arm, "item": one.key, "cluster": None, "value": one.machine[arm], "text": answer["content"], "ended": "stop"}
            )
    (folder / "items.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    (folder / "scores.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in scores))
    return folder
