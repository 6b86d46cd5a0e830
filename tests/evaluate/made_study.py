"""A made-up study with everything in it, for the tests of its files and its page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from sapwood.config import from_dict
from sapwood.evaluate import ArmScore
from sapwood.evaluate.declared import Plan, declare, questions
from sapwood.evaluate.shipping import Skills, ship
from sapwood.evaluate.study_files import write_study
from sapwood.records import Conversation, Item, Message, Source
from sapwood.requirements import Requirements
from sapwood.run import open_run

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
NEEDS: dict[str, Any] = {
    "name": "refunds",
    "about": "Answers to those who want their money back.",
    "metrics": [{"name": "right", "primary": True, "at_least": 0.3}, {"name": "brief", "margin": 0.2}],
    "slices": [{"name": "typos", "tags": ["edge:typos"], "margin": 0.2}, {"name": "nothing", "tags": ["none"]}],
    "errors": [{"name": "wrong", "found_by": "wrong"}, {"name": "rude", "severity": 5, "veto": True, "found_by": "matches:idiot"}],
    "general": [{"name": "mmlu", "margin": 0.1}],
    "prices": {"machine_hour": 0.5, "setup": 10},
}


def made(n: int) -> list[Item]:
    """Items with tags; the first one asks something hostile."""
    found = []
    for k in range(n):
        asked = f"{HOSTILE} number {k}" if k == 0 else f"How much is refund number {k}? " + "It was a long story. " * 8
        tags = ("edge:typos",) if k % 4 == 0 else ("real",)
        source = Source("mails.jsonl", k + 1)
        found.append(Item(Conversation((Message("user", asked),), source=source), f"{k} euros", f"c{k // 2}", tags))
    return found


def arm(name: str, items: list[Item], rate: float, seed: int) -> list[ArmScore]:
    """An arm that is right on a share of the items."""
    draw = np.random.default_rng(seed).random(len(items))
    return [
        ArmScore(
            name,
            item.id,
            item.cluster,
            float(draw[k] < rate),
            f"{k} euros",
            "" if draw[k] < rate else f"expected {item.reference}",
            f"{name} says {k} euros. {HOSTILE if k == 0 else ''}",
            "stop",
            40,
            9,
            0.05 + 0.01 * (k % 7),
            others={"brief": 1.0},
        )
        for k, item in enumerate(items)
    ]


def _counted(item: Item, number: float | None) -> Item:
    """The item with how many logged queries it stands for."""
    return dataclasses.replace(item, conversation=dataclasses.replace(item.conversation, meta={"stands_for": number} if number else {}))


def write(
    folder: Path, n: int = 60, *, texts: bool = True, rude: bool = False, labels: Any = None, counts: Any = None, **changed: Any
) -> dict[str, Any]:
    """Write a study's files and give its record."""
    needs = from_dict(Requirements, {**NEEDS, **changed}, "made")
    items = [_counted(item, counts(place) if counts else None) for place, item in enumerate(made(n))]
    scores = [*arm("plain prompt", items, 0.3, 1), *arm("few-shot 4", items, 0.4, 2), *arm("tuned", items, 0.75, 3)]
    if rude:
        scores[-1] = dataclasses.replace(scores[-1], text="you idiot", value=0.0)
    skills = [Skills("mmlu", arm("plain prompt", items, 0.5, 4), arm("tuned", items, 0.5, 4))]
    plan = Plan(
        requirements=needs,
        candidate="tuned",
        arms=("plain prompt", "few-shot", "tuned"),
        alternatives=("plain prompt", "few-shot"),
        base="plain prompt",
        items=questions("items", items),
    )
    run = open_run(folder)
    try:
        declared = declare(run, plan)
        found = ship(
            scores,
            needs,
            candidate="tuned",
            alternatives=["plain prompt", "few-shot 4"],
            tags={item.id: item.tags for item in items},
            general=skills,
            labels=labels,
        )
        return write_study(run, declared, found, scores, items, skills=skills, training_seconds=600.0, notes=["A note."], texts=texts)
    finally:
        run.close()
