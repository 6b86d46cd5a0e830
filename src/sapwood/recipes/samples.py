"""The same held-out questions before, during and after training, so that a person sees the answers change.

In: the items that were held out, a model. Out: answers, whole in `samples.jsonl`. A question is asked once a step, however often
the run was resumed. Left out on purpose: any conclusion. The verdict rests on all items, these are a few to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sapwood.chat import Chat
from sapwood.evaluate import Scorer
from sapwood.generate import Engine
from sapwood.model import LanguageModel
from sapwood.records import Item, SamplingParams
from sapwood.run import Run


@dataclass(frozen=True)
class Answer:
    """What was answered to one question at one step."""

    step: int
    item: str
    question: str
    answer: str
    right: float | None
    """The scorer's value; None where nobody judged."""


@dataclass(frozen=True)
class Samples:
    """Who is asked what."""

    items: Sequence[Item]
    chat: Chat
    scorer: Scorer | None
    max_new_tokens: int
    run: Run

    def ask(self, model: LanguageModel, step: int) -> list[Answer]:
        """Answers at a step: asked now and recorded, or read where an earlier sitting has asked."""
        known = [answer for answer in self.given() if answer.step == step]
        if known or not self.items:
            return known
        prompts = [
            self.chat.prompt(item.conversation.messages, item.conversation.tools, item.conversation.template_arguments)
            for item in self.items
        ]
        engine = Engine(model, self.chat)
        answers = engine.generate(prompts, SamplingParams(max_new_tokens=self.max_new_tokens))
        engine.forget()  # training goes on, and its memory was tried without copies of the weights
        records = [
            {
                "when": f"step {step}" if step else "before",
                "step": step,
                "item": item.id,
                "question": item.conversation.messages[-1].content,
                "answer": completion.text,
                "reference": item.reference,
                "right": self.scorer(item, completion).value if self.scorer is not None else None,
                "ended": completion.ended,
            }
            for item, completion in zip(self.items, answers, strict=True)
        ]
        self.run.append("samples", *records)
        return [_answer(record) for record in records]

    def given(self) -> list[Answer]:
        """All answers so far."""
        return [_answer(record) for record in self.run.read("samples")]


def _answer(record: Mapping[str, Any]) -> Answer:
    item = record.get("item", record["question"])  # records of before the items were named
    return Answer(record["step"], item, record["question"], record["answer"], record["right"])


def what_differs(questions: Sequence[str]) -> list[list[str]]:
    """The lines of each question, without those at its beginning and its end that all share: an instruction, a list, a closing line."""
    lines = [[" ".join(line.split()) for line in question.splitlines() if line.strip()] for question in questions]
    if len({tuple(each) for each in lines}) < 2:
        return lines
    first = _shared(lines)
    last = _shared([each[first:][::-1] for each in lines])
    if first + last == min(map(len, lines)):  # one of them would have nothing left to show
        first, last = (first - 1, last) if first else (0, max(0, last - 1))
    return [each[first : len(each) - last] for each in lines]


def _shared(lines: Sequence[Sequence[str]]) -> int:
    """How many first lines are the same for all."""
    return next((place for place, line in enumerate(zip(*lines, strict=False)) if len(set(line)) > 1), min(map(len, lines)))


def evenly(items: Sequence[Item], count: int) -> Sequence[Item]:
    """`count` items, evenly spread."""
    return items[:: max(1, len(items) // count)][:count] if count else []
