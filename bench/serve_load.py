"""Two hundred clients at once, and a server that is killed in the middle: is an answer lost or crossed, and is memory bounded?

    python -m bench.serve_load [--model smollm2-135m-instruct] [--clients 200] [--rounds 2] --out bench/results/serve-load.json

`sapwood serve` runs as a process of its own on loopback, in fp32, so that its answers can be compared with the engine's own, letter for
letter. Three trials, one after the other (the kinds of clients, and how they may end: `bench.serve_clients`):

    crowd     all clients at once, the whole of it `--rounds` times: what stays behind in memory would show in the second round
    restart   all clients ask through `sapwood.remote`; the server is killed once some have their answers, and started again
    stop      some stream; the server is told to stop (SIGTERM) in the middle, and then asked once more

Out: JSON. It ends with status 1 if an answer was lost, crossed or wrong, a refusal was unclear, or something stayed behind.
`python -m bench.serve_page` writes the committed figures into docs/serving.md. Times are no part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import httpx2
import psutil

from bench.serve_clients import KEY, KINDS, Crowd, Expected, expected_of, pieces, refused
from bench.setting import commit, machine
from sapwood.assets import DEFAULT_MODEL
from sapwood.chat import Chat
from sapwood.errors import SapwoodError
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model, load_chat
from sapwood.records import Ended, Message, Prompt, SamplingParams
from sapwood.remote import Remote, RemoteSampler
from sapwood.serve.limits import ServeLimits

LOOK = 0.05
"""Seconds between two looks at memory or at a server that is starting."""
BAD = ("lost", "crossed", "wrong", "refused unclearly")
THINGS = ("a lamp", "a bridge", "bread", "a river", "an oak", "glass", "a clock", "salt", "wool", "a kite", "rain", "iron", "a map", "ice")
WAYS = (
    *("How is {} made?", "Who needs {}?", "What is {} good for?", "Tell a story about {}.", "What harms {}?", "Describe {} to a child."),
    *("Where is {} found?", "When did people first know {}?", "Why do some dislike {}?", "Name three facts about {}.", "Sell me {}."),
    *("Write a line of verse on {}.", "What would the world be without {}?", "How is {} cared for?", "Compare {} with gold."),
)


@dataclass
class Server:
    """`sapwood serve` as a process."""

    folder: Path
    place: Path
    """A folder for its token and for what it says."""
    process: subprocess.Popen[bytes] = field(init=False)
    url: str = field(init=False)

    def start(self, port: int = 0) -> None:
        """Start it, and wait until it answers."""
        up = self.place / "up.json"
        up.unlink(missing_ok=True)
        (self.place / "tokens").write_text(KEY)
        flags = ["--port", str(port), "--token-file", str(self.place / "tokens"), "--name", "model", "--dtype", "fp32", "--json", str(up)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (self.place / "told").open("ab") as told:
            words = [sys.executable, "-m", "sapwood", "serve", str(self.folder), *flags]
            self.process = subprocess.Popen(words, stdout=told, stderr=told, env=environment)
        while not up.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"The server did not start:\n{(self.place / 'told').read_text()[-2000:]}")
            time.sleep(LOOK)
        self.url = json.loads(up.read_text())["url"]

    def again(self) -> None:
        """Start it at the address that it had."""
        self.start(int(self.url.rsplit(":", 1)[1].removesuffix("/v1")))

    def metric(self, name: str) -> int:
        """A number of its /metrics, summed over labels."""
        page = httpx2.get(self.url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {KEY}"}, trust_env=False).text
        return sum(int(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """Its resident memory: before, and the most that was seen until the block ends; in MiB."""
        process, over = psutil.Process(self.process.pid), threading.Event()
        found = {"memory_before_mib": process.memory_info().rss >> 20, "memory_most_mib": 0}

        def look() -> None:
            while not over.wait(LOOK):
                found["memory_most_mib"] = max(found["memory_most_mib"], process.memory_info().rss >> 20)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()


def questions(count: int) -> list[str]:
    """So many, no two alike."""
    different = [way.format(thing) for way, thing in product(WAYS, THINGS)]
    return [different[number % len(different)] + (f" ({number})" if number >= len(different) else "") for number in range(count)]


def alone(folder: Path, asked: list[str], tokens: int) -> tuple[Chat, list[Prompt], list[Expected]]:
    """What the engine answers without a server."""
    chat = load_chat(folder, None)
    prompts = [chat.prompt([Message("user", text)]) for text in asked]
    found = Engine(load_model(folder, "fp32", device="cpu"), chat).generate(prompts, SamplingParams(max_new_tokens=tokens, top_logprobs=2))
    return chat, prompts, [expected_of(completion, chat.decode) for completion in found]


def crowded(server: Server, crowd: Crowd, rounds: int) -> dict[str, Any]:
    """Everybody at once, several times: each kind of client takes another place each time."""
    found = []
    for number in range(rounds):
        with server.watched() as memory:
            outcomes = asyncio.run(crowd.round(number))
        found.append({**memory, "outcomes": by_kind(outcomes)})
    names = ("sapwood_requests_under_way", "sapwood_sequences_running", "sapwood_sequences_waiting")
    until = time.monotonic() + 60  # those that left are let go with the next step
    while (left := {name.removeprefix("sapwood_"): server.metric(name) for name in names}) and any(left.values()):
        if time.monotonic() > until:
            break
        time.sleep(LOOK)
    return {"rounds": found, "left_behind": left}


def by_kind(outcomes: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Kind of client → how it ended → how often."""
    found: dict[str, dict[str, int]] = {}
    for (kind, end), count in sorted(outcomes.items(), key=lambda one: (KINDS.index(one[0][0]), one[0][1])):
        found.setdefault(kind, {})[end] = count
    return found


def restarted(server: Server, prompts: list[Prompt], expected: list[Expected], tokens: int) -> dict[str, Any]:
    """Kill it once a tenth has been answered, start it again; how our own client's questions end."""
    os.environ["LOAD_KEY"] = KEY
    remote = Remote(url=server.url, model="model", key="LOAD_KEY", at_once=len(prompts), timeout=600, tries=20, backoff=0.5)
    answers_of = 'sapwood_requests_total{path="/v1/chat/completions",status="200"}'
    before, ended, failures = server.metric(answers_of), Counter[str](), list[SapwoodError]()

    def ask() -> None:
        others = {one.text: place for place, one in enumerate(expected)}
        try:
            answers = RemoteSampler(remote).generate(prompts, SamplingParams(max_new_tokens=tokens))
        except SapwoodError as error:
            failures.append(error)
            return
        for answer, own in zip(answers, expected, strict=True):
            ended["failed" if answer.ended is Ended.ERROR else own.judge(answer.text, others)] += 1

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive() and server.metric(answers_of) - before < len(prompts) / 10:
        time.sleep(LOOK)
    killed_under_way = asking.is_alive()
    server.process.kill()
    server.process.wait()
    server.again()
    asking.join()
    ended["failed"] += len(prompts) if failures else 0
    return {"killed_while_asked": killed_under_way, "outcomes": dict(ended)}


def stopped(server: Server, crowd: Crowd, count: int) -> dict[str, Any]:
    """Tell it to stop while some stream, and ask once more."""
    outcomes, late = asyncio.run(_stopped(server, crowd, count))
    return {"outcomes": dict(outcomes), "asked_afterwards": late, "status": server.process.wait(120)}


async def _stopped(server: Server, crowd: Crowd, count: int) -> tuple[Counter[str], str]:
    begun, told = asyncio.Semaphore(0), asyncio.Event()
    others = {one.text: place for place, one in enumerate(crowd.expected)}
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=None) as client:

        async def one(number: int) -> str:
            found = ""
            try:
                async with client.stream("POST", server.url + "/chat/completions", json=crowd.body(number, stream=True)) as response:
                    async for piece in pieces(response):
                        if piece is None:
                            return crowd.expected[number].judge(found, others)
                        if not found and piece:
                            begun.release()
                            await told.wait()
                        found += piece
            except httpx2.TransportError:
                pass
            return "lost"

        streams = [asyncio.ensure_future(one(number)) for number in range(count)]
        for _ in range(count):
            await begun.acquire()
        server.process.terminate()
        await asyncio.sleep(4 * LOOK)
        try:
            late = refused(await client.post(server.url + "/chat/completions", json=crowd.body(0, stream=False)), (503,))
        except httpx2.TransportError:
            late = "no connection"
        told.set()
        return Counter(await asyncio.gather(*streams)), late


def measure(folder: Path, *, clients: int, tokens: int, rounds: int, place: Path) -> dict[str, Any]:
    """All three trials."""
    asked = questions(clients)
    chat, prompts, expected = alone(folder, asked, tokens)
    server = Server(folder, place)
    server.start()
    try:
        crowd = Crowd(server.url, "model", asked, expected, tokens, chat.context_length or 8192, ServeLimits().max_body)
        found = {
            "clients": clients,
            "tokens": tokens,
            "different_answers": len({one.text for one in expected}),
            "crowd": crowded(server, crowd, rounds),
            "restart": restarted(server, prompts, expected, tokens),
            "stop": stopped(server, crowd, max(1, clients // 12)),
        }
    finally:
        server.process.kill()
        server.process.wait()
    return {**found, "totals": totals(found)}


def totals(found: dict[str, Any]) -> dict[str, int]:
    """How often each end was met, over all trials."""
    kinds = [kind for one in found["crowd"]["rounds"] for kind in one["outcomes"].values()]
    return dict(sum((Counter(one) for one in [*kinds, found["restart"]["outcomes"], found["stop"]["outcomes"]]), Counter()))


def failed(found: dict[str, Any]) -> bool:
    """Whether something went wrong that must not."""
    return (
        any(found["totals"].get(name) for name in (*BAD, "failed"))
        or any(found["crowd"]["left_behind"].values())
        or bool(found["stop"]["status"])
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a name, or a folder")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer, at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = fetch_model(chosen.model, Screen())
        found = measure(folder, clients=chosen.clients, tokens=chosen.tokens, rounds=chosen.rounds, place=Path(place))
    found = {"model": folder.name, **found, "commit": commit(), "machine": machine()}
    print(json.dumps(found, indent=2))
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(failed(found))


if __name__ == "__main__":
    main()
