"""The rows of `sapwood bench sft`: conversations of each workload, the same from the same seed, and what a peer gets of them.

    tools                  requests from bfcl, all under one tool list of `shared` tokens
    chat                   one question, one answer, lengths log-normal, nothing shared
    multiturn              4 to 8 turns under a template that keeps all of them: the rows of a conversation lie on one path
    multiturn-reasoning    the same with reasoning, under a template that drops that of earlier turns: the rows branch
    long                   one document of about 4,000 tokens and a question in each row, nothing shared
    natural                files as they are (`data`), in the order in which training would take them; bfcl where none is named
    pairs                  two answers of 150 tokens to a prompt of 300 each: what preference training takes
    group, group-short     eight answers of 128 tokens to a prompt of 1,024, or of 64 to one of 256: what policy training takes

In: a model's chat. Out: `Work`, examples by step. A peer gets the same tokens with the same mask: `peer_rows` joins what
lies on one path into one row, which is what a trainer of whole conversations trains in one pass, and keeps apart what branches.
A peer of preferences or policies reads the answers as they stand in `steps`. Left out on purpose: sampling (`bench.grpo`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.answers import Shape, steps_of_answers
from bench.conversations import Words
from sapwood.assets import pull
from sapwood.chat import Chat
from sapwood.errors import ConfigError, DataError
from sapwood.forest import plant
from sapwood.recipes import bfcl
from sapwood.recipes.prepare import DataConfig, prepare_files
from sapwood.recipes.screen import Screen
from sapwood.records import Conversation, Example, Message, Row
from sapwood.train.order import step_examples

WORKLOADS = ("tools", "chat", "multiturn", "multiturn-reasoning", "long", "natural", "pairs", "group", "group-short")
ROWS = {"long": 2, "group": 1, "group-short": 1}
"""Conversations a step, where it is not `USUAL_ROWS`: eight of 4,000 tokens would take a peer minutes a step."""
Objective = Literal["imitation", "preference", "policy"]
OBJECTIVES: dict[str, Objective] = {"pairs": "preference", "group": "policy", "group-short": "policy"}
"""What is trained, where it is not imitation of the rows."""
SHAPES = {"pairs": Shape(300, 150, 2), "group": Shape(1024, 128, 8), "group-short": Shape(256, 64, 8)}
USUAL_ROWS = 8
CHAT_WORDS, CHAT_SPREAD, CHAT_MOST = 100.0, 0.7, 350
"""Median of the log-normal lengths of questions and answers together, in words of 2 to 3 tokens; their spread; the longest."""
TURNS = 6
"""Turns of a conversation in the mean: they come in pairs, one longer and one shorter by as much, so that all steps hold as many."""
LONG_TOKENS = 4000
MESSAGE_WORDS = 14
"""Words of a message in a conversation of several turns."""

DROPPING = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if loop.last and message['reasoning_content'] %}{{- '<think>\n' + message['reasoning_content'] + '\n</think>\n\n' }}{%- endif %}"
    "{{- message['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""ChatML that shows the reasoning of the last turn alone, as reasoning models' templates do."""


@dataclass(frozen=True)
class Work:
    """The examples of each step, the first of them warm-up."""

    steps: tuple[tuple[Example, ...], ...]
    told: str
    """What the rows are, in one sentence."""
    objective: Objective = "imitation"

    def counts(self) -> dict[str, Any]:
        """Tokens of all steps but the first: rows one an assistant turn, what a peer trains, unique ones, trained ones."""
        timed = self.steps[1:]
        rows = [row for step in timed for example in step for row in example.rows]
        unique = sum(unique_of(step) for step in timed)
        peer = sum(len(row["input_ids"]) for step in timed for example in step for row in peer_rows(example))
        row_tokens = sum(row.length for row in rows)
        return {
            "row_tokens": row_tokens,
            "peer_tokens": peer,
            "unique_tokens": unique,
            "trained_tokens": sum(len(row.completion_T) for row in rows),
            "rows": len(rows),
            "conversations": sum(len(step) for step in timed),
            "steps": len(timed),
            "saved_share": 1 - unique / row_tokens,
            "saved_share_of_peer_tokens": 1 - unique / peer,
        }

    def peer_rows_a_step(self) -> int:
        """Rows that a peer counts in each step. Raises `DataError` where steps differ: its batches are all of one size."""
        if self.objective == "preference":
            return len(self.steps[0])  # it counts pairs
        counts = {sum(len(peer_rows(example)) for example in step) for step in self.steps}
        if len(counts) > 1:
            raise DataError(
                f"The peer would need {min(counts)} to {max(counts)} rows a step for these conversations, and its batches are of one size. "
                "Choose data whose conversations branch alike, or --against none."
            )
        return counts.pop()


def unique_of(step: Sequence[Example]) -> int:
    """Tokens of a step when every common beginning is computed once."""
    return plant([row for example in step for row in example.rows], min_saving=1).num_tokens


def work_of(workload: str, model: Path, *, steps: int, rows: int, shared: int, seed: int, data: Sequence[str], screen: Screen) -> Work:
    """The work of `steps` steps of `rows` conversations, for the tokenizer and template in `model`.

    Raises `DataError` or `ConfigError` where there are too few.
    """
    rng = np.random.default_rng([seed, WORKLOADS.index(workload)])
    chat = Chat.load(model, template=DROPPING if workload == "multiturn-reasoning" else None)
    if workload in SHAPES:
        examples = steps_of_answers(chat, steps, rows, SHAPES[workload], rng)
    elif workload == "natural":
        examples = _natural(data, chat, steps, rows, seed, screen)
    else:
        examples = [chat.example(conversation) for conversation in _made(workload, chat, steps * rows, rows, shared, rng)]
    told = {
        "tools": f"requests from bfcl under one tool list of about {shared:,} tokens",
        "chat": "single questions and answers, lengths log-normal, nothing shared",
        "multiturn": "conversations of 4 to 8 turns, template keeps history",
        "multiturn-reasoning": "conversations of 4 to 8 turns with reasoning, template drops that of earlier turns",
        "long": f"documents of about {LONG_TOKENS:,} tokens with a question each",
        "natural": f"{', '.join(data) or bfcl.TASK} as it is",
        "pairs": "prompts of 300 tokens with two answers of 150, one preferred",
        "group": "prompts of 1,024 tokens with 8 rewarded answers of 128",
        "group-short": "prompts of 256 tokens with 8 rewarded answers of 64",
    }[workload]
    _refuse_weighted(examples)
    return Work(
        tuple(tuple(examples[place * rows : (place + 1) * rows]) for place in range(steps)), told, OBJECTIVES.get(workload, "imitation")
    )


def peer_rows(example: Example) -> list[dict[str, list[int]]]:
    """The rows that a trainer without a forest is given: token ids, and labels that are -100 where nothing is trained.

    A row that another one begins with is trained as a part of that one; every trained token is trained once in either way.
    """
    joined: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for row in sorted(example.rows, key=lambda row: -row.length):
        ids_T = np.concatenate([row.prompt_T, row.completion_T])
        begin, end = len(row.prompt_T), row.length
        for longer_T, labels_T in joined:
            if np.array_equal(longer_T[:end], ids_T) and np.all(labels_T[begin:end] == -100):
                labels_T[begin:end] = row.completion_T
                break
        else:
            labels_T = np.full(end, -100)
            labels_T[begin:] = row.completion_T
            joined.append((ids_T, labels_T))
    return [{"input_ids": ids_T.tolist(), "labels": labels_T.tolist()} for ids_T, labels_T in joined]


def write_work(file: Path, work: Work) -> None:
    """The rows as both contestants read them: `steps` for ours, `peer_rows` by step for the peer."""
    steps = [
        [[{"prompt": row.prompt_T.tolist(), "completion": row.completion_T.tolist()} for row in example.rows] for example in step]
        for step in work.steps
    ]
    peer = [[row for example in step for row in peer_rows(example)] for step in work.steps]
    file.write_bytes(orjson.dumps({"steps": steps, "peer": peer}))


def read_steps(file: Path) -> list[list[Example]]:
    """What `write_work` wrote, as examples."""
    return [
        [Example(tuple(_row(row["prompt"], row["completion"]) for row in example)) for example in step]
        for step in orjson.loads(file.read_bytes())["steps"]
    ]


def _row(prompt: list[int], completion: list[int]) -> Row:
    return Row(np.array(prompt, np.int64), np.array(completion, np.int64), np.ones(len(completion), np.float32))


def _refuse_weighted(examples: Sequence[Example]) -> None:
    if any((row.weights_T != 1).any() for example in examples for row in example.rows):
        raise DataError("These rows carry weights, and the peer knows none. Leave the weights out of the file.")


def _made(workload: str, chat: Chat, count: int, rows: int, shared: int, rng: np.random.Generator) -> list[Conversation]:
    match workload:
        case "tools":
            return _tools(chat, count, shared, rng)
        case "chat":
            return _chat(count, rng)
        case "long":
            return _long(chat, count, rng)
        case _:
            return _turns(count, rows, rng, reasoning=workload == "multiturn-reasoning")


def _tools(chat: Chat, count: int, shared: int, rng: np.random.Generator) -> list[Conversation]:
    """The functions that are asked for most, as many as fit into `shared` tokens; then requests that call one of them."""
    rows = [(row, allowed) for _, row, allowed in bfcl.rows_of(pull("bfcl"), "live_multiple")]
    called = Counter(next(iter(allowed)) for _, allowed in rows)
    described = {function["name"]: function for row, _ in rows for function in row["function"]}
    chosen: list[str] = []
    system = bfcl.SYSTEM + "\n\nFunctions:"
    for name, _ in called.most_common():
        longer = system + "\n" + orjson.dumps(described[name]).decode()
        if name in described and len(chat.prompt([Message("system", longer), Message("user", "")]).ids) <= shared:
            chosen.append(name)
            system = longer
    asked = [(row, allowed) for row, allowed in rows if next(iter(allowed)) in chosen]
    if len(asked) < count:
        raise ConfigError(
            f"bfcl holds {len(asked)} requests for the {len(chosen)} functions that fit into {shared} tokens, and {count} are asked for. "
            "Give a larger --shared, fewer --rows, or fewer --steps."
        )
    conversations = []
    for place in rng.permutation(len(asked))[:count]:
        row, allowed = asked[place]
        request = "\n\n".join(turn["content"] for turn in row["question"][0] if turn["role"] == "user")
        turns = (Message("system", system), Message("user", request), Message("assistant", bfcl.answer_of(allowed)))
        conversations.append(Conversation(turns))
    return conversations


def _chat(count: int, rng: np.random.Generator) -> list[Conversation]:
    """Each under a system message of its own: what a template writes where there is none would be shared."""
    words = Words(rng)
    totals = np.minimum(CHAT_MOST, rng.lognormal(np.log(CHAT_WORDS), CHAT_SPREAD, count)).astype(int)
    shares = rng.uniform(0.3, 0.7, count)
    return [
        Conversation(
            (
                Message("system", words.text(6)),
                Message("user", words.text(max(3, int(total * share)))),
                Message("assistant", words.text(max(3, int(total * (1 - share))))),
            )
        )
        for total, share in zip(totals, shares, strict=True)
    ]


def _turns(count: int, rows: int, rng: np.random.Generator, *, reasoning: bool) -> list[Conversation]:
    words = Words(rng)
    conversations = []
    for _ in range(count // rows):
        longer = rng.integers(0, 3, rows // 2)
        for turns in [*(TURNS + longer), *(TURNS - longer), *([TURNS] if rows % 2 else [])]:
            pairs = [
                (
                    Message("user", words.text(MESSAGE_WORDS)),
                    Message("assistant", words.text(MESSAGE_WORDS), reasoning=words.text(MESSAGE_WORDS) if reasoning else None),
                )
                for _ in range(turns)
            ]
            conversations.append(Conversation((Message("system", words.text(6)), *itertools.chain(*pairs))))
    return conversations


def _long(chat: Chat, count: int, rng: np.random.Generator) -> list[Conversation]:
    words = Words(rng)
    sample = words.text(400)
    per_word = len(chat.prompt([Message("user", sample)]).ids) / 400
    document = int(LONG_TOKENS / per_word) - 2 * 40
    return [
        Conversation((Message("system", words.text(6)), Message("user", words.text(document + 40)), Message("assistant", words.text(40))))
        for _ in range(count)
    ]


def _natural(data: Sequence[str], chat: Chat, steps: int, rows: int, seed: int, screen: Screen) -> list[Example]:
    names = list(data) or [bfcl.TASK]
    prepared = prepare_files(names, chat, DataConfig(held_out=0), screen)
    if len(prepared.examples) < steps * rows:
        raise DataError(
            f"{', '.join(names)}: {len(prepared.examples)} conversations, and {steps * rows} are needed. Give fewer --steps or --rows."
        )
    order = [step_examples(step, num_examples=len(prepared.examples), batch=rows, epochs=1, seed=seed) for step in range(steps)]
    return [prepared.examples[int(place)] for places in order for place in places]
