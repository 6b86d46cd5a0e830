"""Conversations that templates are tried on: one small one for each feature, and seeded random ones made of chosen features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from sapwood.chat.probes import TOOL
from sapwood.chat.turns import taken_apart
from sapwood.records import Conversation, Message, Source, ToolCall

TOOLS = (TOOL,)
IDS = ("a1b2c3d4e", "b2c3d4e5f", "c3d4e5f6a")
"""Nine letters and digits, as Mistral's templates ask for."""


def _user(text: str = "Where does sapwood grow?") -> Message:
    return Message("user", text)


def _told(text: str = "Right below the bark.", **more: Any) -> Message:
    return Message("assistant", text, **more)


def _call(number: int = 1, text: str = "", **more: Any) -> Message:
    kinds = ("oak", "ash", "elm")
    calls = tuple(ToolCall("find_tree", {"kind": kinds[place], "rings": 12 + place}, IDS[place]) for place in range(number))
    return Message("assistant", text, tool_calls=calls, **more)


def _result(place: int = 0, text: str = "It stands in the north.") -> Message:
    return Message("tool", text, tool_call_id=IDS[place], name="find_tree")


_WHY = "Sap rises there."
_INLINE = f"<think>\n{_WHY}\n</think>\n\nRight below the bark."
_MORE = _user("And what of heartwood?")
FEATURES: dict[str, Conversation] = {
    "plain": Conversation((_user(), _told(), _MORE, _told("Inside of it."))),
    "system": Conversation((Message("system", "Speak of trees only."), _user(), _told(), _MORE, _told("Inside."))),
    "two systems": Conversation((Message("system", "Speak of trees."), Message("system", "Be brief, please."), _user(), _told())),
    "empty texts": Conversation((Message("system", ""), _user(""), _told(), _user(""), _told("Inside."))),
    "reasoning": Conversation((_user(), _told(reasoning=_WHY), _MORE, _told("Inside.", reasoning=_WHY))),
    "inline": Conversation((_user(), _told(_INLINE), _MORE, _told(_INLINE))),
    "mixed": Conversation((_user(), _told(reasoning=_WHY), _MORE, _told("Inside."))),
    "tools": Conversation((_user(), _told()), TOOLS),
    "call": Conversation((_user(), _call(), _result(), _told(), _MORE, _told("Inside.")), TOOLS),
    "two calls": Conversation((_user(), _call(2), _result(0), _result(1), _told()), TOOLS),
    "call with words": Conversation((_user(), _call(text="I will look it up."), _result(), _told()), TOOLS),
    "call with reasoning": Conversation((_user(), _call(reasoning=_WHY), _result(), _told(reasoning=_WHY)), TOOLS),
    "call with both": Conversation((_user(), _call(text="I look.", reasoning=_WHY), _result(), _told(reasoning=_WHY)), TOOLS),
}
"""What a conversation may hold; each is tried by itself."""

CONTROL_TEXTS = ("<|im_end|>", "</s>", "<end_of_turn>", "<|eot_id|>", "[/INST]", "<|end|>")
_WORDS = ("sap", "Wood", "grows", "12 rings", "über", "樹木", "🌲", "{x}", "it's", '"so"', "a  b", "l1\nl2", "1.5", "C++", "[ok]", "x<y")


def random_conversation(seed: int, features: Sequence[str], controls: Sequence[str] = ()) -> Conversation:
    """A conversation of 1 to 6 turns with the chosen features; some texts hold some of `controls`."""
    random = Random(seed)

    def text(edges: bool = True) -> str:
        words = random.choices(_WORDS, k=random.randint(1, 6))
        if controls and random.random() < 0.5:
            words.insert(random.randint(0, len(words)), random.choice(controls))
        front, back = (random.choice(("", "", " ", "  ", "\n")) if edges else "" for _ in range(2))
        return front + " ".join(words) + back

    def maybe_empty() -> str:
        return "" if "empty texts" in features and random.random() < 0.2 else text()

    messages: list[Message] = [Message("system", maybe_empty())] if "system" in features and random.random() < 0.5 else []
    thinks = "reasoning" in features and ("plain" not in features or random.random() < 0.5)

    def spoken(call: bool, words: str) -> dict[str, Any]:
        if not thinks or (call and "call with reasoning" not in features) or ("mixed" in features and random.random() < 0.4):
            return {"content": words}
        why = text(edges=False)
        if "inline" in features and not call and random.random() < 0.4:
            return {"content": f"<think>\n{why}\n</think>\n\n{words}"}
        return {"content": words, "reasoning": random.choice(("", "\n")) + why + random.choice(("", " ", "\n"))}

    tools = TOOLS if "tools" in features and random.random() < 0.6 else ()
    for _ in range(random.randint(1, 6)):
        messages.append(Message("user", maybe_empty()))
        if tools and "call" in features and random.random() < 0.6:
            number = random.randint(1, 3) if "two calls" in features else 1
            kinds = [text(edges=False) if random.random() < 0.5 else "oak" for _ in range(number)]
            calls = tuple(
                ToolCall("find_tree", {"kind": kind, "rings": random.randint(0, 99)}, IDS[place]) for place, kind in enumerate(kinds)
            )
            said = spoken(True, text() if "call with words" in features and random.random() < 0.4 else "")
            if said.get("reasoning") and said["content"].strip() and "call with both" not in features:
                said["content"] = ""
            messages.append(Message("assistant", tool_calls=calls, **said))
            messages += [_result(place, maybe_empty()) for place in range(number)]
        messages.append(Message("assistant", **spoken(False, text())))
    return Conversation(tuple(messages), tools, source=Source("random.jsonl", seed + 1))


def _content(message: Message, answer: str, thought: str) -> str:
    if taken_apart(message).tag:
        return f"<think>\n{thought}\n</think>\n\n{answer}"
    return answer if message.content.strip() else message.content


def with_texts(conversation: Conversation, text: Callable[[int, str], str]) -> Conversation:
    """The same conversation with every text of the assistant replaced: `text(message, part)` gives the new ones."""
    messages = tuple(
        message
        if message.role != "assistant"
        else replace(
            message,
            content=_content(message, text(place, "content"), text(place, "reasoning")),
            reasoning=None if message.reasoning is None else text(place, "reasoning"),
            tool_calls=tuple(
                replace(call, arguments={**call.arguments, "kind": text(place, f"kind {number}")})
                for number, call in enumerate(message.tool_calls)
            ),
        )
        for place, message in enumerate(conversation.messages)
    )
    return replace(conversation, messages=messages)
