"""One rendering for all turns: it is chosen only where it is proved to make the rows of the long way, and makes them."""

from __future__ import annotations

from datetime import datetime
from functools import cache

import pytest
from template_conversations import FEATURES, random_conversation
from template_families import folder, templates

from sapwood.chat import Chat
from sapwood.chat.stepwise import marked
from sapwood.chat.templating import _environment
from sapwood.errors import DataError, SapwoodError
from sapwood.records import Conversation, Message

ENVIRONMENT = _environment(datetime(2026, 1, 2))
LOOP = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
TAIL = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@cache
def stepwise() -> list[str]:
    return [name for name, source in templates().items() if marked(ENVIRONMENT, source) is not None]


def test_the_common_templates_are_stepwise() -> None:
    assert {"smollm2", "qwen2", "llama3", "phi3", "gemma"} <= set(stepwise())


@pytest.mark.parametrize(
    "source",
    [
        LOOP.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}") + TAIL,
        LOOP.replace("message.content", "message.content if loop.nextitem is defined else ''") + TAIL,
        LOOP.replace("message.content", "messages[-1].content") + TAIL,
        LOOP.replace("message.content", "messages[loop.index0].content") + TAIL,
        LOOP.replace("message.content", "messages | length") + TAIL,
        LOOP.replace("<|im_end|>", "{% if add_generation_prompt %}!{% endif %}") + TAIL,
        LOOP.replace("in messages", "in messages[1:]") + TAIL,
        LOOP.replace("in messages", "in messages | reverse") + TAIL,
        LOOP.replace("in messages", "in messages if message.role != 'system'") + TAIL,
        "{% set messages = messages[1:] %}" + LOOP + TAIL,
        "{% set all = messages %}" + LOOP.replace("in messages", "in all").replace("message.content", "all[1].content") + TAIL,
        "{% if messages[-1].role == 'user' %}?{% endif %}" + LOOP + TAIL,
        "{% set ns = namespace(last='') %}"
        + LOOP.replace("{% endfor %}", "{% set ns.last = message.role %}{% endfor %}")
        + "{{ ns.last }}",
        LOOP + "{{ messages[0].content }}",
        LOOP.replace("{% endfor %}", "{% break %}{% endfor %}") + TAIL,
        LOOP.replace("{% endfor %}", "{% else %}none{% endfor %}") + TAIL,
        LOOP + LOOP,
        "{% macro said(m) %}{{ m.content }}{% endmacro %}" + LOOP + TAIL,
        "{% if messages %}" + LOOP + "{% endif %}" + TAIL,
        LOOP.replace("message.content", "loop.cycle('a', 'b')") + TAIL,
        LOOP.replace("message.content", "loop | string") + TAIL,
        "{% filter upper %}" + LOOP + "{% endfilter %}" + TAIL,
        TAIL,
    ],
)
def test_whatever_looks_ahead_is_not_stepwise(source: str) -> None:
    assert marked(ENVIRONMENT, source) is None


@pytest.mark.parametrize(
    "source",
    [
        LOOP + TAIL,
        "{% set all = messages %}" + LOOP.replace("in messages", "in all") + TAIL,
        "{% if messages[0].role != 'system' %}Be kind.{% endif %}" + LOOP + TAIL,
        LOOP.replace("<|im_end|>", "{% if loop.first %}!{% endif %}{% for part in [1, 2] %}{{ loop.last }}{% endfor %}<|im_end|>") + TAIL,
        "{% set ns = namespace(seen=0) %}"
        + LOOP.replace("{% endfor %}", "{% set ns.seen = ns.seen + 1 %}{{ ns.seen }}{% endfor %}")
        + TAIL,
    ],
)
def test_what_looks_back_alone_is_stepwise_and_its_pieces_are_its_renderings(source: str) -> None:
    compiled = marked(ENVIRONMENT, source)
    assert compiled is not None
    messages = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(["user", "assistant"] * 3)]
    plain = ENVIRONMENT.from_string(source)
    first, *rest = compiled.render(messages=messages, add_generation_prompt=True).split("\ue000\ue000")
    pieces, opening = [first + rest[0], *rest[1:-1]], rest[-1]
    for number in range(1, len(messages) + 1):
        assert "".join(pieces[:number]) + opening == plain.render(messages=messages[:number], add_generation_prompt=True)


def both_ways(chat: Chat, conversation: Conversation) -> tuple[object, object]:
    """The rows of `example`, and of the turns one by one; or what is said instead of them."""
    found: list[object] = []
    for ways in (lambda: chat.example(conversation).rows, lambda: [turn.row for turn in chat.turns(conversation)]):
        try:
            found.append([(row.prompt_T.tolist(), row.completion_T.tolist(), row.weights_T.tolist()) for row in ways()])
        except SapwoodError as error:
            found.append(str(error))
    return found[0], found[1]


@pytest.mark.parametrize("name", stepwise())
def test_the_rows_are_those_of_the_long_way(name: str) -> None:
    chat = Chat.load(folder(name), today=datetime(2026, 1, 2))
    controls = sorted(chat.tokens.control_ids)[:4]
    short = 0
    for seed in range(60):
        conversation = random_conversation(seed, ["plain", "system", "empty texts"] if seed % 3 else sorted(FEATURES), controls)
        made, expected = both_ways(chat, conversation)
        assert made == expected, seed
        trained = conversation.trained()
        short += bool(trained) and chat._steps.rows(conversation, trained, None) is not None
    assert chat._steps.open == chat.tokens.cuts_at_added, "the two ways have agreed on every conversation"
    if chat._steps.open and name in ("smollm2", "qwen2", "llama3", "phi3"):
        assert short > 10, "the short way is gone, and not only allowed"


def test_ways_that_differ_close_the_short_one() -> None:
    chat = Chat.load(folder("smollm2"))
    conversation = Conversation((Message("user", "Where does sapwood grow?"), Message("assistant", "Right below the bark.")))
    wrong = chat.example(conversation).rows
    steps = Chat.load(folder("smollm2"))._steps
    steps.learn(conversation, [1], [type(row)(row.completion_T, row.completion_T, row.weights_T) for row in wrong])
    assert not steps.open
    assert steps.rows(conversation, [1], None) is None


def test_the_short_way_takes_the_limit_as_it_is_given() -> None:
    chat = Chat.load(folder("smollm2"))
    length = max(row.length for row in chat.example(FEATURES["plain"]).rows)
    assert chat._steps.rows(FEATURES["plain"], [1], length) is not None, "the short way is open"
    for context in (length - 1, 0):
        with pytest.raises(DataError, match=f"at most {context} are allowed"):
            chat.example(FEATURES["plain"], context=context)
