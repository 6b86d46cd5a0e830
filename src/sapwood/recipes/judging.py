"""`sapwood eval RUN --judge-model …`: a model compares the saved answers of two arms, pair by pair; with labels, people's word corrects it.

In: a run's `items.jsonl` and `scores.jsonl`, a judge (a server, or a model of this machine), and, where there are some, people's
verdicts on a random part of the items (see `judge_labels`). Out: `judged.jsonl`, one record a pair, kept as it is made; a card of
calibration; win rates, raw, at equal length, and corrected. With instructions as the data this is the chat benchmark.

What leaves the machine, and where to, is said before anything is sent. A rate of a judge that nobody calibrated is called that.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, cast

from sapwood.errors import ConfigError, DataError
from sapwood.evaluate import ArmScore, scores_from
from sapwood.evaluate.judge_card import FEWEST, Card, calibrate, corrected_win_rate
from sapwood.evaluate.judges import Judge, Pairing, PairVerdict, Winner, judge_pairs
from sapwood.generate import Engine
from sapwood.model import load_model
from sapwood.recipes.judge_labels import CARD, RECORDS, Winners, read_winners, verdict_from
from sapwood.recipes.playing import prompt_of
from sapwood.recipes.screen import Screen
from sapwood.recipes.tune import fetch_model, load_chat
from sapwood.records import Sampler
from sapwood.remote import Remote, RemoteSampler
from sapwood.run import Run, open_run, read_json, read_records, run_named
from sapwood.stats import length_controlled, mean_interval
from sapwood.stats.length_control import FEWEST as FEWEST_PAIRS

_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge of two arms' saved answers."""

    run: Path
    """The run directory."""
    judge_url: str = ""
    """The judge's server, in OpenAI's protocol, such as http://127.0.0.1:8000/v1; without one the judge runs in this process."""
    judge_model: str = ""
    """The judge's name there; without a server a name, a local folder, or a hub id."""
    judge_key: str | None = None
    """The environment variable that holds the key. The key itself is written nowhere."""
    arms: tuple[str, ...] = ()
    """The two arms, the one to beat first; where not given those of the run's verdict, or its first and last if it has none."""
    criteria: tuple[str, ...] = ()
    """What makes an answer better, in sentences for the judge."""
    structured: bool = True
    """Hold the judge's answers to a JSON schema; switch it off for a server that cannot."""
    pairs: int = 0
    """How many pairs to judge, drawn at random but alike each time; 0 is all."""
    labels: Path | None = None
    """People's verdicts on a random part of the items, JSON Lines of {"item", "winner"} or `votes.jsonl` of `sapwood review export`: they
    calibrate and correct the judge."""

    def __post_init__(self) -> None:
        if self.pairs < 0:
            raise ConfigError(f"pairs is {self.pairs}; give a number of pairs, or 0 for all.")


@dataclass(frozen=True)
class JudgeResult:
    """What the judge said, and how far that may be believed."""

    path: Path
    arms: tuple[str, str]
    lines: tuple[str, ...]
    found: dict[str, Any]


def config_for(names: Sequence[str]) -> JudgeConfig:
    """The config that flags are laid over. Raises `ConfigError` where no run is named."""
    run = run_named(names)
    if run is None:
        raise ConfigError("A judge compares the answers of a finished run: sapwood eval runs/my-1 --judge-model NAME")
    return JudgeConfig(run=run)


def judge_run(
    config: JudgeConfig, *, sampler: Sampler | None = None, today: date | None = None, screen: Screen | None = None
) -> JudgeResult:
    """Judge what is missing, then count. Raises a `SapwoodError` before anything is sent for what cannot be judged."""
    screen = screen or Screen(quiet=True)
    arms, pairs, clusters, items = _pairs(config)
    labels = read_winners(config.labels, arms, items) if config.labels is not None else Winners({}, 0)
    asked = {pair.id for pair in pairs}
    people = {item: winner for item, winner in labels.by_item.items() if item in asked}
    if labels.passed_over:
        screen.say(f"{labels.passed_over} votes say nothing of {arms[0]} and {arms[1]}, and are passed over.")
    judge = _judge(config, sampler, screen)
    with open_run(config.run) as run:
        verdicts = _judged(judge, arms, pairs, run, config, screen)
        card = None
        if sum(verdict.winner is not None for verdict in verdicts if verdict.id in people) >= FEWEST:
            card = calibrate(judge, verdicts, people, today=today or date.today(), clusters=clusters)
            card.save(run.path / CARD)
    lines, found = _counted(arms, verdicts, people, card, clusters)
    return JudgeResult(config.run, arms, tuple(lines), found)


def _judge(config: JudgeConfig, sampler: Sampler | None, screen: Screen) -> Judge:
    """A server's, or that of a model which is loaded here and asked in its own template."""
    judge = partial(Judge, model=config.judge_model, criteria=config.criteria, structured=config.structured)
    if sampler is not None:
        return judge(sampler)
    if not config.judge_model:
        raise ConfigError(
            "A judge takes --judge-model: a name, a folder or a hub id of a model for this machine, or with --judge-url its name there."
        )
    if config.judge_url:
        remote = RemoteSampler(Remote(url=config.judge_url, model=config.judge_model, key=config.judge_key))
        remote.check()
        return judge(remote)
    folder = fetch_model(config.judge_model, screen)
    chat = load_chat(folder, None)
    return judge(Engine(load_model(folder), chat), prompt=partial(prompt_of, chat))


def _pairs(config: JudgeConfig) -> tuple[tuple[str, str], list[Pairing], dict[str, str], set[str]]:
    """(the two arms, what is compared, clusters of items that have one, items that could be). Of several answers the first is compared."""
    by_arm: dict[str, dict[str, ArmScore]] = {}
    for score in scores_from(read_records(config.run / "scores.jsonl")):
        of_arm = by_arm.setdefault(score.arm, {})
        if score.item not in of_arm or score.sample < of_arm[score.item].sample:
            of_arm[score.item] = score
    wanted = config.arms or _compared(config.run, by_arm)
    if len(set(wanted)) != 2 or not set(wanted) <= by_arm.keys():
        raise ConfigError(f"arms is {', '.join(wanted) or 'empty'}; give two of this run's: {', '.join(by_arm) or 'it has none'}.")
    first, second = (by_arm[arm] for arm in wanted)
    pairs = []
    for record in read_records(config.run / "items.jsonl"):
        a, b = first.get(record["item"]), second.get(record["item"])
        if a is not None and b is not None and "error" not in (a.ended, b.ended):
            asked = "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in record["messages"])
            reference = record["reference"] if isinstance(record["reference"], str) else None
            pairs.append(Pairing(record["item"], asked, a.text, b.text, reference))
    if not pairs:
        raise DataError(f"{config.run}: no item was answered by both {wanted[0]} and {wanted[1]}, so there is nothing to compare.")
    every = {pair.id for pair in pairs}
    if config.pairs:  # by the hash of the item: a larger number takes these and more
        pairs = sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).digest())[: config.pairs]
    clusters = {item: score.cluster for item, score in first.items() if score.cluster is not None}
    return (wanted[0], wanted[1]), pairs, clusters, every


def _compared(run: Path, arms: Collection[str]) -> tuple[str, ...]:
    """The best alternative and what was tuned, as the run's own verdict compares them."""
    verdict = read_json(run / "verdict.json")
    found = verdict.get("best_other"), verdict.get("tuned")
    return cast(tuple[str, str], found) if set(found) <= set(arms) else tuple(arms)[:1] + tuple(arms)[-1:]


def _judged(
    judge: Judge, arms: tuple[str, str], pairs: Sequence[Pairing], run: Run, config: JudgeConfig, screen: Screen
) -> list[PairVerdict]:
    """Verdicts of all pairs; those of this judge on these arms that are on record are not asked for again."""
    kept: dict[str, PairVerdict] = {}
    for record in run.read(RECORDS):
        if record["arms"] == list(arms) and record["judge"] == judge.key and record["winner"] is not None:
            kept[record["id"]] = verdict_from(record)
    missing = [pair for pair in pairs if pair.id not in kept]
    if missing:
        where = f"go to {config.judge_model} at {config.judge_url}" if config.judge_url else f"are judged by {config.judge_model}, here"
        screen.say(f"{len(missing)} pairs, each in both orders, with questions and references, {where}.")
    with screen.progress("judging") as advance:
        for begin in range(0, len(missing), _TOGETHER):
            batch = judge_pairs(judge, missing[begin : begin + _TOGETHER])
            run.append(RECORDS, *({"arms": list(arms), "judge": judge.key, "model": judge.model, **asdict(verdict)} for verdict in batch))
            kept |= {verdict.id: verdict for verdict in batch}
            advance(min(begin + _TOGETHER, len(missing)), len(missing), "")
    return [kept[pair.id] for pair in pairs]


def _mostly(verdicts: Sequence[PairVerdict]) -> str:
    """Why most of those that are missing are."""
    sides = ((side, why) for verdict in verdicts for side, why in zip((verdict.forward, verdict.backward), verdict.reasons, strict=True))
    ((why, count), *others) = Counter(why for side, why in sides if side is None).most_common()
    return f"{count} times {why}" if others else why


def _counted(
    arms: tuple[str, str], verdicts: Sequence[PairVerdict], people: dict[str, Winner], card: Card | None, clusters: dict[str, str]
) -> tuple[list[str], dict[str, Any]]:
    told = [(verdict, verdict.value) for verdict in verdicts if verdict.value is not None]
    failed = len(verdicts) - len(told)
    found: dict[str, Any] = {"arms": arms, "pairs": len(verdicts), "failed": failed}
    lines = [f"{failed} of {len(verdicts)} pairs without a verdict: {_mostly(verdicts)}"] if failed else []
    if not told:
        return [*lines, "the judge gave no verdict at all, so there is no rate"], found
    values = [value for _, value in told]
    groups = [clusters.get(verdict.id, verdict.id) for verdict, _ in told] if clusters else None
    interval = mean_interval(values, groups)
    calibrated = "" if card is not None else " (not calibrated: nobody's labels vouch for this judge)"
    ties, flips = values.count(0.5), sum(verdict.flipped for verdict, _ in told)
    lines.append(
        f"{arms[1]} against {arms[0]}: win rate {sum(values) / len(values):.1%} [{interval.low:.1%}, {interval.high:.1%}] of {len(values)} "
        f"pairs, {ties} ties, {flips} of them because the verdict followed the order{calibrated}"
    )
    found["raw"] = {"rate": sum(values) / len(values), "low": interval.low, "high": interval.high, "ties": ties, "flips": flips}
    if len(told) >= FEWEST_PAIRS:
        even = length_controlled(values, [verdict.longer_by for verdict, _ in told], clusters=groups)
        apart = "" if even.overlap else "; one arm is nearly always the longer one, so length and quality cannot be told apart"
        lines.append(f"at equal length: {even.rate:.1%} [{even.interval.low:.1%}, {even.interval.high:.1%}]{apart}")
        found["equal_length"] = {"rate": even.rate, "low": even.interval.low, "high": even.interval.high, "overlap": even.overlap}
    if card is not None:
        lines.append(str(card))
        if any(verdict.id not in people for verdict, _ in told):
            true = corrected_win_rate(verdicts, people, clusters)
            lines.append(
                f"as people would say: {true.mean:.1%} [{true.interval.low:.1%}, {true.interval.high:.1%}] ({true.interval.method})"
            )
            found["corrected"] = {"rate": true.mean, "low": true.interval.low, "high": true.interval.high, "trust": true.trust}
    elif people:
        both = sum(verdict.id in people for verdict, _ in told)
        lines.append(f"{both} pairs with a label and a verdict are too few to calibrate a judge; {FEWEST} are needed")
    return lines, found
