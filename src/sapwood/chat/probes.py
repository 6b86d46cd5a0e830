"""What templates are rendered with to see what they do: a question, an answer, and a tool. One place, so that findings compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapwood.records import Message

ASK = Message("user", "Where does sapwood grow?")
TELL = Message("assistant", "Right below the bark.")
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "find_tree",
        "description": "Finds a tree.",
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {"type": "string", "description": "Its kind."},
                "rings": {"type": "integer", "description": "Its age."},
                "deep": {"type": "object", "description": "More."},
            },
            "required": ["kind"],
        },
    },
}
"""Calls of it may hold a text, a number, and an object."""
