"""Messages ⇄ text ⇄ tokens: one `Chat` a model makes the prompts of training, evaluation, chat and serving."""

from sapwood.chat.builtin import named_template, trained_template
from sapwood.chat.chat import Chat
from sapwood.chat.colour import coloured
from sapwood.chat.doctor import examine
from sapwood.chat.doctor_tokenizer import Finding
from sapwood.chat.properties import Fault, faults
from sapwood.chat.tokens import StreamDecoder
from sapwood.chat.tools import call_text, parse_call, tool_prompt
from sapwood.chat.trained import Turn

__all__ = [
    "Chat",
    "Fault",
    "Finding",
    "StreamDecoder",
    "Turn",
    "call_text",
    "coloured",
    "examine",
    "faults",
    "named_template",
    "parse_call",
    "tool_prompt",
    "trained_template",
]
