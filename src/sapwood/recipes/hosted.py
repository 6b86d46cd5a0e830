"""A hosted model as one more arm: asked over HTTP what every arm is asked, each answer kept in the run directory.

In: the server as a person names it, and the arms. Out: scores of the arm `hosted model`. It is sent the messages and tools
themselves, for its template is its own. A run that was stopped asks only what is missing; what was answered is never paid twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from sapwood.errors import CheckpointError, ConfigError, storage
from sapwood.evaluate import ArmScore, scores_from
from sapwood.evaluate.experiment import Affords, bare_prompt
from sapwood.evaluate.hosted import HOSTED
from sapwood.evaluate.spending import Purse, announcement
from sapwood.recipes.arms import Arms
from sapwood.recipes.calling import ToolsConfig
from sapwood.remote import Remote, RemoteSampler
from sapwood.run import Run


@dataclass(frozen=True, kw_only=True)
class HostedConfig:
    """A server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, or a paid one."""

    hosted_url: str | None = None
    """Its address, such as `http://127.0.0.1:8000/v1`; it is asked every item."""
    hosted_model: str | None = None
    """The name of the model there."""
    hosted_key: str | None = None
    """The environment variable that holds the key. The key itself is written nowhere."""
    hosted_at_once: int = 8
    """Requests at a time."""
    hosted_timeout: float = 120.0
    """Seconds for one answer."""
    hosted_requests: int = 0
    """Requests a minute that you may send; 0 is no limit."""
    hosted_tokens: int = 0
    """Tokens a minute that you may use; 0 is no limit."""
    hosted_leave_out: tuple[str, ...] = ()
    """Fields of a request that the server refuses, such as `temperature`; its own defaults hold then."""
    hosted_answers: Path | None = None
    """A folder that keeps the answers for several runs; else each run keeps its own."""

    def remote(self, run: Path) -> Remote | None:
        """The server, with the folder of answers; None where none is named. Raises `ConfigError`."""
        if self.hosted_url is None or self.hosted_model is None:
            if self.hosted_url is not self.hosted_model:
                raise ConfigError("A hosted model takes both hosted_url and hosted_model: its server, and its name there.")
            return None
        return Remote(
            url=self.hosted_url,
            model=self.hosted_model,
            key=self.hosted_key,
            at_once=self.hosted_at_once,
            timeout=self.hosted_timeout,
            requests_a_minute=self.hosted_requests,
            tokens_a_minute=self.hosted_tokens,
            leave_out=self.hosted_leave_out,
            cache=self.hosted_answers or run / "answers",
        )

    def __post_init__(self) -> None:
        self.remote(Path())  # odd values are refused before any work is done


def ask_within(remote: Remote, arms: Arms, purse: Purse, calling: ToolsConfig | None = None) -> tuple[list[ArmScore], str]:
    """The hosted model's scores, as far as the purse goes, and a sentence where it did not go all the way. What is sent is said before."""
    for line in announcement(remote.url, remote.model, arms.items, arms.samples, purse):
        arms.screen.say(line, "bold")
    purse.pay(scores_from(record for record in arms.run.read("scores") if record["arm"] == HOSTED))
    scores = ask_hosted(remote, replace(arms, paid=purse.pay), arms.run, purse.affords if purse.limit is not None else None, calling)
    if purse.prices.hosted_in is not None:
        arms.screen.say(f"{HOSTED}: {purse.spent:.4g} spent so far.")
    note = f"The hosted model was {purse.stopped}." if purse.stopped else ""
    if note:
        arms.screen.say(note, "yellow")
    return scores, note


def ask_hosted(remote: Remote, arms: Arms, run: Run, affords: Affords | None = None, calling: ToolsConfig | None = None) -> list[ArmScore]:
    """The hosted model's scores; calls of its tools are played out where there are some.

    Raises `RemoteError` for a server that does not answer, `CheckpointError` if another model was asked.
    """
    _claim(remote, run)
    answered = {record["item"] for record in run.read("scores") if record["arm"] == HOSTED}
    sampler = RemoteSampler(remote)
    if any(item.id not in answered for item in arms.items):
        sampler.check()
    asking = sampler if calling is None else calling.around(sampler, bare_prompt)
    scores = arms.hosted(asking, affords, 64 if affords is None else remote.at_once)
    for note in sampler.notes:
        arms.screen.say(note)
    if sum(sampler.counted):
        arms.screen.say(f"{remote.model} read {sampler.counted[0]:,} tokens and wrote {sampler.counted[1]:,}, by the server's own count.")
    return scores


def _claim(remote: Remote, run: Run) -> None:
    """One run holds the answers of one hosted model."""
    now = {"url": remote.url, "model": remote.model}
    file = run.path / "hosted.json"
    if not file.is_file():
        run.write_json("hosted", now)
        return
    with storage(file, "read"):
        before = orjson.loads(file.read_bytes())
    if any(before.get(key) != value for key, value in now.items()):
        raise CheckpointError(
            f"{run.path} holds answers of the hosted model {before.get('model')!r} at {before.get('url')}, and {remote.model!r} at "
            f"{remote.url} is asked now. Name that one again, or choose another folder with --out."
        )
