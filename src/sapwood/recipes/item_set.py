"""`sapwood items build`: logs of real queries in, an item set out that can be trusted.

    read → personal data masked → near duplicates clustered → those that stand in training data named → a stratified sample
         → edge cases made → hard ones tagged → split into dev and test by cluster → one JSON Lines file a side, and a card

Logs are rows as `sapwood sft` reads them, OpenAI's request and response records, or the answers that a Sapwood run keeps. Each item says
where it comes from, in which version of the set it is, and what it is like, by tags. `card.json` counts the looks at the test side.
Left out on purpose: topics found by a model. Tags that a log already has are kept, and strata are made of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from sapwood.assets.cache import locked
from sapwood.config import did_you_mean
from sapwood.data import read
from sapwood.data.alike import LEVELS, Shelf, contamination
from sapwood.data.masking import Mask
from sapwood.errors import ConfigError, DataError, storage
from sapwood.evaluate.edge_cases import KINDS, edge_cases
from sapwood.evaluate.items import ANSWER, COPIES, STANDS_FOR, asked_text, items_from, spoken_by_users, stands_for
from sapwood.recipes.logs import conversations_of_logs
from sapwood.records import Conversation, Item, Message
from sapwood.run import read_json, read_records, write_atomic

SIDES = ("dev", "test")


@dataclass(frozen=True, kw_only=True)
class ItemsConfig:
    """A set of items."""

    logs: tuple[str, ...] = ()
    """Files of real queries: rows as for `sft`, OpenAI's logs, or files of a server's answers."""
    out: Path = Path("items")
    """The folder to write: dev.jsonl, test.jsonl, card.json."""
    count: int = 200
    """Real queries to keep, both sides together."""
    dev: float = 0.3
    """Share of the clusters that is for looking at while one works."""
    alike: float = 0.8
    """From which likeness on two questions are one cluster, of which one is kept."""
    train: tuple[str, ...] = ()
    """Files that are trained on: questions that stand in them are tagged, and left out unless `keep_seen`."""
    keep_seen: bool = False
    """Keep questions that stand in the training files, tagged `seen:LEVEL`."""
    edge: tuple[str, ...] = ()
    """Kinds of edge cases to make, or `all`."""
    edge_each: int = 20
    """Edge cases of each kind."""
    hard_by: tuple[str, ...] = ()
    """Evaluations or studies of cheap models on these questions: where their arms disagree, an item is tagged `hard`."""
    mask: bool = True
    """Mask personal data."""
    seed: int = 0
    """Of the sample, the edge cases and the split."""

    def __post_init__(self) -> None:
        for name in ("count", "edge_each"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1.")
        for name in ("dev", "alike"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a share between 0 and 1.")
        for kind in self.edge:
            if kind not in (*KINDS, "all"):
                raise ConfigError(f"edge: there is no kind {kind!r}.{did_you_mean(kind, list(KINDS))} Kinds: all, {', '.join(KINDS)}.")


@dataclass(frozen=True)
class ItemSet:
    """What was built."""

    path: Path
    card: dict[str, Any]
    notes: tuple[str, ...]


def build_items(config: ItemsConfig) -> ItemSet:
    """Build the set. Raises `ConfigError` for a folder that holds one, `DataError` where no query can be read."""
    if not config.logs:
        raise ConfigError("No logs are named. Give files of real queries: sapwood items build mails.jsonl")
    if (config.out / "card.json").exists():
        raise ConfigError(f"{config.out} holds a set of items. Name another folder with --out: a set does not change under its version.")
    asked, unread = conversations_of_logs(config.logs)
    read_in_all, asked = len(asked), [one for one in asked if not any(message.media for message in one.messages)]
    if read_in_all > len(asked):
        unread["with images or sounds, which a set does not hold"] = read_in_all - len(asked)
    masked, counts = _masked(asked) if config.mask else (asked, Counter[str]())
    items = _tagged(items_from(masked))
    if not items:
        raise DataError(f"None of {', '.join(config.logs)} holds a question. Read what `sapwood doctor` says of them.")
    shelf = Shelf([spoken_by_users(item) for item in items])
    first = shelf.clusters(config.alike)
    items = [replace(item, cluster=item.cluster or f"like:{items[place].id}") for item, place in zip(items, first, strict=True)]
    kept = [item for place, item in enumerate(items) if first[place] == place]
    kept, seen = _seen(kept, config)
    queries = Counter[str]()
    for item, place in zip(items, first, strict=True):
        queries[items[place].id] += item.meta[COPIES]
    in_all = sum(queries[item.id] for item in kept)
    kept = _sample(kept, queries, config)
    kept, known = _hard(kept, config.hard_by)
    made = _edges(kept, config)
    sides = _split([*kept, *made], config)
    card = {
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": _version(sides),
        "read": len(asked),
        "unread": dict(unread),
        "copies": len(asked) - len(items),
        "near_duplicates": len(items) - sum(first[place] == place for place in range(len(items))),
        "masked": dict(counts),
        "seen_in_training": dict(seen),
        **({"asked_by_hard": known} if config.hard_by else {}),
        "stand_for": round(sum(stands_for(item) or 0 for item in kept)),
        "of_queries": in_all,
        "real": len(kept),
        "edge": len(made),
        "sides": {side: len(rows) for side, rows in sides.items()},
        "tags": dict(Counter(tag for rows in sides.values() for item in rows for tag in item.tags).most_common()),
        "looks_at_test": 0,
    }
    _write(config.out, sides, card)
    return ItemSet(config.out, card, tuple(_notes(card)))


def looked(folder: Path) -> int:
    """Count one more look at the test side of a set, and say the how-many-eth it is; 0 for a folder that is no set."""
    if "looks_at_test" not in read_json(folder / "card.json"):
        return 0
    with locked(folder / ".card.lock", lambda *_: None):  # two studies that begin at once are two looks
        card = read_json(folder / "card.json")
        card["looks_at_test"] = int(card["looks_at_test"]) + 1
        write_atomic(folder / "card.json", orjson.dumps(card, option=orjson.OPT_INDENT_2))
    return int(card["looks_at_test"])


def _masked(conversations: Sequence[Conversation]) -> tuple[list[Conversation], Counter[str]]:
    covered, counts = [], Counter[str]()
    for conversation in conversations:
        mask = Mask()
        covered.append(replace(conversation, messages=tuple(_covered(message, mask) for message in conversation.messages)))
        counts += mask.counts
    return covered, counts


def _covered(message: Message, mask: Mask) -> Message:
    """All of a turn that people or models wrote: what is said, what is thought, and what functions are called with."""
    calls = tuple(replace(call, arguments=mask.cover_all(call.arguments)) for call in message.tool_calls)
    thought = None if message.reasoning is None else mask.cover(message.reasoning)
    return replace(message, content=mask.cover(message.content), reasoning=thought, tool_calls=calls)


def _tagged(items: Sequence[Item]) -> list[Item]:
    """With the tags that every set has: where it is from, and how long it is among its kind."""
    lengths = [len(asked_text(item)) for item in items]
    low, high = np.quantile(lengths, [1 / 3, 2 / 3]) if lengths else (0, 0)
    turns = [sum(message.role == "user" for message in item.conversation.messages) for item in items]
    return [
        replace(
            item,
            tags=(
                *item.tags,
                "source:real",
                f"length:{'short' if length <= low else 'long' if length > high else 'middle'}",
                *(["several-turns"] if turn > 1 else []),
            ),
        )
        for item, length, turn in zip(items, lengths, turns, strict=True)
    ]


def _seen(items: list[Item], config: ItemsConfig) -> tuple[list[Item], Counter[str]]:
    """Items without those that stand in training files, or with a tag that says how they stand there."""
    if not config.train:
        return items, Counter()
    level = contamination(
        [spoken_by_users(item) for item in items_from(read([Path(name) for name in config.train]).conversations)], config.alike
    )
    found = [(item, level(spoken_by_users(item))) for item in items]
    counts = Counter(how for _, how in found if how)
    if not config.keep_seen:
        return [item for item, how in found if how is None], counts
    return [replace(item, tags=(*item.tags, f"seen:{how}")) if how else item for item, how in found], counts


def _sample(items: list[Item], queries: Mapping[str, int], config: ItemsConfig) -> list[Item]:
    """`count` items, as evenly over the strata (all tags together) as they allow, by the seed.

    Each says how many logged queries it stands for: those of its stratum, shared among the items that were drawn of it.
    """
    strata: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for place in np.random.default_rng(config.seed).permutation(len(items)):
        strata[tuple(sorted(items[place].tags))].append(items[place])
    chosen: list[tuple[int, Item]] = []
    rows = [strata[key] for key in sorted(strata)]
    depth = 0
    while len(chosen) < config.count and any(depth < len(row) for row in rows):
        chosen += [(number, row[depth]) for number, row in enumerate(rows) if depth < len(row)][: config.count - len(chosen)]
        depth += 1
    drawn = Counter(number for number, _ in chosen)
    share = {number: sum(queries[item.id] for item in rows[number]) / count for number, count in drawn.items()}
    return [_counted(item, share[number]) for number, item in chosen]


def _counted(item: Item, queries: float | None) -> Item:
    """The item with how many logged queries it stands for; None for one that nobody asked."""
    meta = {key: value for key, value in item.conversation.meta.items() if key != STANDS_FOR}
    return replace(item, conversation=replace(item.conversation, meta=meta if queries is None else {**meta, STANDS_FOR: queries}))


def _hard(items: list[Item], runs: Sequence[str]) -> tuple[list[Item], int]:
    """Tagged `hard` where the arms of earlier evaluations disagree, and how many of these questions they were asked.

    Raises `ConfigError` where they were asked none: a question is known by its content, so one that was masked here is another.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for name in runs:
        path = Path(name)
        if not (path / "scores.jsonl").is_file():
            raise ConfigError(f"hard_by: {path} holds no scores.jsonl. Name the directory of an evaluation or a study.")
        for record in read_records(path / "scores.jsonl"):
            if record.get("value") is not None:
                values[record["item"]].append(float(record["value"]))
    known = sum(item.id in values for item in items)
    if runs and items and not known:
        raise ConfigError(
            f"hard_by: none of these {len(items):,} questions was asked in {', '.join(runs)}, so nothing can be told of them. Build the "
            "set first, evaluate cheap models on its dev.jsonl and test.jsonl, and build it again from the same logs into another folder."
        )
    apart = {item for item, found in values.items() if max(found) - min(found) >= 0.5}
    return [replace(item, tags=(*item.tags, "hard")) if item.id in apart else item for item in items], known


def _edges(items: list[Item], config: ItemsConfig) -> list[Item]:
    kinds = KINDS if "all" in config.edge else config.edge
    made: dict[str, Item] = {}
    for number, kind in enumerate(kinds):
        order = np.random.default_rng([config.seed, number]).permutation(len(items))
        found = [variant for place in order for variant in edge_cases(items[place], (kind,), config.seed)]
        made |= {item.id: _counted(item, None) for item in found[: config.edge_each]}
    return list(made.values())


def _split(items: list[Item], config: ItemsConfig) -> dict[str, list[Item]]:
    """Whole clusters on one side, by the hash of the cluster's name and the seed: who joins later moves nobody."""
    sides: dict[str, list[Item]] = {side: [] for side in SIDES}
    for item in items:
        digest = hashlib.sha256(f"{config.seed}:{item.cluster or item.id}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        sides["dev" if share < config.dev else "test"].append(item)
    return sides


def _version(sides: dict[str, list[Item]]) -> str:
    ids = sorted(f"{side}:{item.id}" for side, rows in sides.items() for item in rows)
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]


def _write(folder: Path, sides: dict[str, list[Item]], card: dict[str, Any]) -> None:
    with storage(folder, "create the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    for side, items in sides.items():
        lines = [orjson.dumps(_row(item, card["version"]), default=str) for item in items]
        write_atomic(folder / f"{side}.jsonl", b"".join(line + b"\n" for line in lines))
    write_atomic(folder / "card.json", orjson.dumps(card, option=orjson.OPT_INDENT_2))


def _row(item: Item, version: str) -> dict[str, Any]:
    """A row that `sapwood study` and `eval` read: the question, and its answer where one is known to be right."""
    answer = item.meta.get(ANSWER)
    messages = [message.for_template() for message in item.conversation.messages]
    if item.reference is not None:
        messages.append(answer.for_template() if isinstance(answer, Message) else {"role": "assistant", "content": str(item.reference)})
    row: dict[str, Any] = {"messages": messages, "tags": list(item.tags), "cluster": item.cluster, "id": item.id, "set": version}
    row["source"] = item.conversation.where
    if (number := stands_for(item)) is not None:
        row[STANDS_FOR] = round(number, 4)
    if item.conversation.tools:
        row["tools"] = list(item.conversation.tools)
    if item.conversation.template_arguments:
        row["template_arguments"] = dict(item.conversation.template_arguments)
    return row


def _notes(card: dict[str, Any]) -> list[str]:
    said = [f"{card['read']:,} queries were read; {card['copies']:,} copies and {card['near_duplicates']:,} near duplicates are not kept."]
    if card["unread"]:
        said.append("Not read: " + ", ".join(f"{count:,} {why}" for why, count in card["unread"].items()) + ".")
    if card["masked"]:
        said.append("Masked: " + ", ".join(f"{count:,} {kind}" for kind, count in card["masked"].items()) + ". Names are not: look.")
    if card["seen_in_training"]:
        levels = ", ".join(f"{card['seen_in_training'][level]:,} {level}" for level in LEVELS if level in card["seen_in_training"])
        said.append(f"Stand in the training files: {levels}.")
    if "asked_by_hard" in card:
        said.append(
            f"Cheap models were asked {card['asked_by_hard']:,} of {card['real']:,} questions; {card['tags'].get('hard', 0):,} are hard, "
            "edge cases of them included."
        )
    if card["stand_for"] < card["of_queries"]:
        missing = card["of_queries"] - card["stand_for"]
        said.append(f"{missing:,} queries are of kinds of which none was drawn. Raise --count to have them all.")
    said.append(
        f"{card['real']:,} real and {card['edge']:,} edge cases: {card['sides']['dev']:,} for dev, {card['sides']['test']:,} for test."
    )
    said += [
        f"Nothing is on the {side} side: a question and all that is like it go to one side together, and {card['real']:,} are few. Give "
        "more logs, or build it again with another --dev or --seed."
        for side in SIDES
        if not card["sides"][side]
    ]
    return said
