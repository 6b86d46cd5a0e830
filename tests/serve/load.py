"""Load on loopback: many clients at once, some slow, some that leave, and a server that is killed and started again.

`python tests/serve/load.py` starts `sapwood serve` on a tiny model as a process of its own, checks every answer against what the engine
says alone, and prints the figures of docs/serving.md. It is no test: a test of time or memory would fail on a busy machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil

from sapwood.chat import Chat
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.records import Message, Prompt, SamplingParams
from sapwood.remote import Remote, RemoteSampler
from tiny.folder import write_model

CLIENTS, TOKENS = 200, 24
KEY = "0123456789-load-0123456789"


def main() -> None:
    """Run all of it."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = write_model(place / "model")
        (place / "tokens").write_text(KEY)
        chat = Chat.load(folder)
        prompts = [chat.prompt([Message("user", f"{number}: the colour of the sky")]) for number in range(CLIENTS)]
        alone = Engine(load_model(folder, "fp32"), chat).generate(prompts, SamplingParams(max_new_tokens=TOKENS))
        texts = [str(answer.message.content) for answer in alone if answer.message is not None]
        process, url = start(folder, place, 0)
        try:
            asyncio.run(crowd(url, texts, psutil.Process(process.pid)))
            restart(url, folder, place, process, prompts, texts)
        finally:
            for child in psutil.Process().children():
                child.kill()


def start(folder: Path, place: Path, port: int) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers."""
    up = place / "up.json"
    up.unlink(missing_ok=True)
    flags = ["--port", str(port), "--token-file", str(place / "tokens"), "--dtype", "fp32", "--json", str(up)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-m", "sapwood", "serve", str(folder), *flags], stderr=subprocess.DEVNULL, env=environment)
    while not up.exists():
        assert process.poll() is None, "the server did not start"
        time.sleep(0.05)
    return process, json.loads(up.read_text())["url"]


async def crowd(url: str, texts: list[str], server: psutil.Process) -> None:
    """Every client asks at once: whole, streamed, streamed and read slowly, left in the middle."""
    outcomes: Counter[str] = Counter()
    first: list[float] = []
    before = server.memory_info().rss
    most = before
    limits = httpx2.Limits(max_connections=CLIENTS)
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=300, limits=limits) as client:

        async def one(number: int) -> None:
            body = {"model": "model", "messages": [{"role": "user", "content": f"{number}: the colour of the sky"}]}
            body |= {"max_tokens": TOKENS, "temperature": 0, "stream": number % 4 > 0}
            began = time.perf_counter()
            said = ""
            async with client.stream("POST", url + "/chat/completions", json=body) as response:
                if response.status_code != 200:
                    outcomes[f"status {response.status_code}"] += 1
                    return
                async for line in response.aiter_lines():
                    if number % 4 == 0:
                        said = json.loads(line)["choices"][0]["message"]["content"]
                    elif line.startswith("data: {"):
                        piece = json.loads(line[6:])["choices"][0]["delta"].get("content")
                        if piece and not said:
                            first.append(time.perf_counter() - began)
                        said += piece or ""
                        if number % 4 == 2:
                            await asyncio.sleep(0.05)
                        if number % 4 == 3 and said:
                            outcomes["left in the middle"] += 1
                            return
            outcomes["right" if said == texts[number] else "wrong"] += 1

        began = time.perf_counter()
        clients = [asyncio.create_task(one(number)) for number in range(CLIENTS)]
        while not all(task.done() for task in clients):
            most = max(most, server.memory_info().rss)
            await asyncio.sleep(0.1)
        seconds = time.perf_counter() - began
        await asyncio.gather(*clients)
        page = (await client.get(url.removesuffix("/v1") + "/metrics")).text
    left = [line for line in page.splitlines() if line.startswith(("sapwood_requests_under_way", "sapwood_sequences"))]
    show("clients at once", f"{CLIENTS}: {dict(outcomes)} in {seconds:.1f} s")
    show("first streamed token", f"median {statistics.median(first):.2f} s, last {max(first):.2f} s")
    show("memory of the server", f"{before / 2**20:.0f} MiB before, {most / 2**20:.0f} MiB at most")
    show("left behind", ", ".join(left))
    assert outcomes["wrong"] == 0
    assert sum(outcomes.values()) == CLIENTS


def restart(url: str, folder: Path, place: Path, process: subprocess.Popen[bytes], prompts: list[Prompt], texts: list[str]) -> None:
    """A server that is killed in the middle and comes back: our own client asks again, and loses nothing."""
    os.environ["LOAD_KEY"] = KEY
    port = int(url.rsplit(":", 1)[1].removesuffix("/v1"))
    sampler = RemoteSampler(Remote(url=url, model="model", key="LOAD_KEY", at_once=16, tries=12, backoff=0.5))
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.extend(sampler.generate(prompts, SamplingParams(max_new_tokens=TOKENS))))
    asking.start()
    time.sleep(0.5)
    process.kill()
    process.wait()
    killed_while_asked = asking.is_alive()
    start(folder, place, port)
    asking.join()
    right = sum(answer.message is not None and answer.message.content == text for answer, text in zip(answers, texts, strict=True))
    show("killed and started again", f"{right} of {len(texts)} answers right, killed while asked: {killed_while_asked}")
    assert right == len(texts)


def show(what: str, found: str) -> None:
    """A line of the page."""
    print(f"{what:<26} {found}", flush=True)


if __name__ == "__main__":
    main()
