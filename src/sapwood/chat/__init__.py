"""Messages ⇄ text ⇄ tokens: one `Chat` a model makes the prompts of training, evaluation, chat and serving."""

from sapwood.chat.builtin import named_template, trained_template
from sapwood.chat.chat import Chat
from sapwood.chat.colour import coloured
from sapwood.chat.doctor.diagnosis import examine
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.functions import schema_of
from sapwood.chat.parsing import Answer, AnswerStream, Delta
from sapwood.chat.properties import Fault, faults
from sapwood.chat.roundtrip import Loss, round_trip
from sapwood.chat.tokens import StreamDecoder
from sapwood.chat.tools import call_text, parse_call, tool_prompt
from sapwood.chat.trained import Turn
from sapwood.chat.validation import Mismatch, check_conversation, validate_calls

__all__ = [
    "Answer",
    "AnswerStream",
    "Chat",
    "Delta",
    "Fault",
    "Finding",
    "Loss",
    "Mismatch",
    "StreamDecoder",
    "Turn",
    "call_text",
    "check_conversation",
    "coloured",
    "examine",
    "faults",
    "named_template",
    "parse_call",
    "round_trip",
    "schema_of",
    "tool_prompt",
    "trained_template",
    "validate_calls",
]
