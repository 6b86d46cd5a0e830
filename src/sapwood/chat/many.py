"""Many conversations → their examples, each the very one that `Chat.example` makes, or the error that it raises.

In: a chat, and conversations by the hundred. Out: one entry a conversation, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.chat.chat import Chat
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Example

Made = Example | DataError | TemplateError


def examples(chat: Chat, conversations: Sequence[Conversation]) -> list[Made]:
    """One example, or the reason why there is none, for each conversation. Never raises for a conversation."""
    return [_exact(chat, conversation) for conversation in conversations]


def _exact(chat: Chat, conversation: Conversation) -> Made:
    try:
        return chat.example(conversation)
    except (DataError, TemplateError) as error:
        return error
