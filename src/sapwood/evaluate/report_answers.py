"""Sampled answers over a training: records of rollouts.jsonl in, the best and the worst of chosen steps out, thought and answer told apart.

What a sitting that was lost had written is left out: a resumed run samples those steps again. Left out on purpose: the answers between the
best and the worst. They are not kept by a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.evaluate.learning_figures import REWARD
from sapwood.evaluate.report_files import Record, mapping, number, text_of
from sapwood.evaluate.report_items import shortened

MOST_STEPS = 24
"""Steps whose answers the page holds, evenly spread, the first and the last among them."""
MOST_NOTES = 12
FILE = "rollouts.jsonl"
THOUGHT_ENDS = "</think>"
ENDS = {"length": "cut at the limit", "error": "failed"}


@dataclass(frozen=True)
class Shown:
    """One answer. `thought` is empty where it has none, or where it never ended: then all of it is the answer."""

    which: str
    thought: str
    answer: str
    reward: str
    parts: list[tuple[str, str]]
    facts: str


@dataclass(frozen=True)
class Pair:
    """A question with the answers of one step to it: often the best and the worst."""

    question: str
    reference: str
    answers: list[Shown]


@dataclass(frozen=True)
class StepAnswers:
    """One step's best and worst answers."""

    step: int
    facts: str
    pairs: list[Pair]


@dataclass(frozen=True)
class AnswersView:
    """Chosen steps in their order, how many others are in the file, and what rewards failed at."""

    steps: list[StepAnswers]
    left_out: int
    notes: list[tuple[str, int]]
    """(sentence, steps in which it was said)"""


def thought_and_answer(text: str, record: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """The thought, if it ended, and what stands behind it. A record may say both; else they are told apart by the closing tag."""
    said = record or {}
    if isinstance(said.get("thought"), str):
        return said["thought"].strip(), text_of(said.get("said")).strip()
    thought, ended, answer = text.rpartition(THOUGHT_ENDS)
    return (thought.strip().removeprefix("<think>").strip(), answer.strip()) if ended else ("", text.strip())


def of_the_last_sitting(records: Iterable[Record]) -> list[Record]:
    """Records without what a lost sitting wrote behind the step at which the next one began, and none twice."""
    kept: list[Record] = []
    for record in records:
        step = number(record.get("step"))
        if step is None:
            continue
        if kept and step < kept[-1]["step"]:
            kept = [one for one in kept if one["step"] < step]
        if record not in kept[-8:]:  # a step that was killed behind its answers is written again, the same
            kept.append(record)
    return kept


def answers_view(rollouts: Sequence[Record], metrics: Sequence[Record]) -> AnswersView:
    """The answers of chosen steps, with the reward and the solved share of each step."""
    records = of_the_last_sitting(rollouts)
    grouped: dict[int, list[Record]] = {}
    notes: dict[str, set[int]] = {}
    for record in records:
        if record.get("which") == "failed":
            notes.setdefault(text_of(record.get("note")), set()).add(int(record["step"]))
        else:
            grouped.setdefault(int(record["step"]), []).append(record)
    chosen = _spread(sorted(grouped), MOST_STEPS)
    figures = {record.get("step"): record for record in metrics if record.get("kind", "train") == "train"}
    steps = [StepAnswers(step, _facts(mapping(figures.get(step))), _pairs(grouped[step])) for step in chosen]
    said = sorted(((note, len(seen)) for note, seen in notes.items()), key=lambda one: -one[1])
    return AnswersView(steps, len(grouped) - len(chosen), said[:MOST_NOTES])


def _spread(steps: Sequence[int], most: int) -> list[int]:
    if len(steps) <= most:
        return list(steps)
    return sorted({steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)})


def _facts(record: Record) -> str:
    reward, solved = number(record.get("reward")), number(record.get("solved"))
    return " · ".join(
        [
            *([f"reward {REWARD.words(reward)}"] if reward is not None else []),
            *([f"{solved:.0%} solved"] if solved is not None else []),
        ]
    )


def _pairs(records: Sequence[Record]) -> list[Pair]:
    """Answers by their question, in the order in which they were recorded."""
    asked: dict[tuple[str, str], list[Shown]] = {}
    for record in records:
        key = shortened(text_of(record.get("question")), FILE), shortened(text_of(record.get("reference")), FILE)
        asked.setdefault(key, []).append(_shown(record))
    return [Pair(question, reference, answers) for (question, reference), answers in asked.items()]


def _shown(record: Record) -> Shown:
    text = text_of(record.get("answer"))
    thought, answer = thought_and_answer(text, record)
    turns = record.get("turns")
    if isinstance(turns, list) and len(turns) > 1:
        answer = "\n\n".join(f"[turn {number}]\n{text_of(turn)}" for number, turn in enumerate(turns, 1))
        thought = ""
    reward, tokens = number(record.get("reward")), number(record.get("tokens"))
    facts = [f"{tokens:,.0f} tokens"] if tokens is not None else []
    facts += [ENDS[end] for end in [text_of(record.get("ended"))] if end in ENDS]
    parts = [
        (name, "not judged" if (value := number(part)) is None else f"{value:g}") for name, part in mapping(record.get("parts")).items()
    ]
    return Shown(
        text_of(record.get("which")),
        shortened(thought, FILE),
        shortened(answer, FILE),
        "–" if reward is None else f"{reward:.3g}",
        parts,
        " · ".join(facts),
    )
