"""The tasks of the course's chapter 11, section 2 (chat templates), on what any machine can reach.

    python examples/course_templates.py                    # a small model by name, rows written here
    python examples/course_templates.py gsm8k/train.jsonl  # and a data set of yours converted, rendered and checked

Each function is one task: one conversation in several templates, a base model made to chat, many turns, tools, images, and a data
set brought into the form that a model wants, with the proof that it has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.chat import Chat, examine, named_template, schema_of
from sapwood.data import read
from sapwood.errors import SapwoodError
from sapwood.records import Conversation, Media, Message, ToolCall

TALK = (
    Message("system", "You are a helpful assistant with a focus on technical topics."),
    Message("user", "Can you explain what a chat template is?"),
    Message("assistant", "A chat template structures conversations between users and AI models..."),
    Message("user", "How do I use it?"),
)


def several_templates(model: Path) -> dict[str, str]:
    """The same messages as different models read them."""
    written = {"its own": Chat.load(model).prompt(TALK).text}
    for name in ("chatml", "plain"):
        written[name] = Chat.load(model, template=named_template(name, model)).prompt(TALK).text
    return written


def base_to_instruct(base: Path) -> Chat:
    """A base model has no template. With one by name it has marks, a stop token, and everything else that chatting needs."""
    return Chat.load(base, template=named_template("chatml", base))


def many_turns(chat: Chat) -> list[str]:
    """What is trained of a conversation with two answers: both, each on exactly what the model would have seen."""
    answered = Conversation((*TALK, Message("assistant", "Hand it your messages; it writes them as the model was taught.")))
    return [turn.text for turn in chat.turns(answered)]


def weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Tell the weather of a city.

    Args:
        city: The city, in English.
        unit: The scale of the temperature.
    """
    return f"12 degrees {unit} in {city}"


def tools(chat: Chat, functions: dict[str, Callable[..., str]]) -> tuple[Message, ...]:
    """A function is offered, called, and its result handed back; what the model wrote is read back into a call."""
    offered = [schema_of(function) for function in functions.values()]
    asked = (Message("user", "What is the weather in Paris?"),)
    called = Message("assistant", tool_calls=(ToolCall("weather", {"city": "Paris"}, "call_1"),))
    (turn,) = chat.turns(Conversation((*asked, called), tuple(offered)))
    # a model that had learned this turn would write `turn.ids`; this is how they are read
    (call,) = chat.parse(turn.ids, turn.prompt).message.tool_calls
    result = Message("tool", functions[call.name](**call.arguments), tool_call_id="call_1", name=call.name)
    messages = (*asked, called, result)
    chat.prompt(messages, offered)  # raises where the template would leave out the tools, the call or the result
    return messages


def image(picture: Path) -> Message:
    """A message with a picture; in files, every spelling that is in use is read as this."""
    text = "What is in this picture? "
    return Message("user", text, media=(Media("image", len(text), str(picture)),))


def converted(chat: Chat, file: Path) -> tuple[int, list[str]]:
    """A data set in the form of this model: rows in, rows rendered, and each row that cannot be, with its place."""
    reading = read([file])
    print(reading.guess)
    refused = [str(refusal) for refusal in reading.refused]
    rows = 0
    for conversation in reading.conversations:
        try:
            rows += len(chat.example(conversation).rows)
        except SapwoodError as error:
            refused.append(str(error))
    return rows, refused


def main(file: Path | None = None) -> None:
    """All tasks, printed."""
    model = resolve_model(DEFAULT_MODEL)
    for name, text in several_templates(model).items():
        print(f"--- {name}\n{text}")
    chat = Chat.load(model)
    print("--- what is trained of two answers")
    print("\n".join(many_turns(chat)))
    for finding in examine(chat):
        print(finding.severity, finding.sentence)
    print("--- tools")
    for message in tools(chat.with_tools_in_system(), {"weather": weather}):
        print(f"{message.role}: {message.content or message.tool_calls}")
    if file is not None:
        rows, refused = converted(chat, file)
        print(f"{rows} rows; {len(refused)} refused", *refused[:5], sep="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
