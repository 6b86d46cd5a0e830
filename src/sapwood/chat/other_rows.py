"""Documents and preferences → examples of rows: what `Chat.example` is for conversations.

In: a chat, and a `Document` or a `Preference`. Out: an `Example`. Nothing is cut: what does not fit raises.
Left out on purpose: cutting long documents into parts. Where to cut is the owner's to say, and overlapping parts would be
rows that were never written.
"""

from __future__ import annotations

import numpy as np

from sapwood.chat.chat import Chat
from sapwood.chat.trained import Turn
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Document, Example, Message, Preference, Row

DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|end▁of▁text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "[EOS]", "<|EOS|>")
"""Tokens that end a text in the training of base models, where the tokenizer has one. A chat model's `eos_token` often ends a
turn instead, which a document is not."""


def example_of(chat: Chat, record: Conversation | Document, *, context: int | None = None) -> Example:
    """The rows of a conversation or a document. Raises `DataError` or `TemplateError` with the place."""
    return document_example(chat, record, context=context) if isinstance(record, Document) else chat.example(record, context=context)


def document_example(chat: Chat, document: Document, *, context: int | None = None) -> Example:
    """One row that trains the whole text, and the token that ends it.

    The prompt is what the tokenizer itself puts before a plain text (a BOS token, say). Where it puts nothing, the text's first
    token is the prompt, as a model cannot be asked for something with no token at all. Control tokens in the text stay text.
    Raises `DataError` where the text is longer than `context` (default: the model's own), `TemplateError` for a tokenizer
    without a token that ends a text.
    """
    if document.tokens:
        return _example_of_tokens(chat, document, context)
    shield = chat.tokens.shield
    try:
        ids = chat.tokens.encode(shield.cover(document.text))
    except TemplateError as error:
        raise TemplateError(f"{document.where}: {error}") from None
    end = document_end(chat)
    if end is None:
        raise TemplateError(
            f"{document.where}: the tokenizer has no token that ends a text ({', '.join(DOCUMENT_ENDS[:4])}, … or an `eos_token`), so "
            "the model would never learn where one ends. Choose another model."
        )
    whole = [*chat.tokens.beginning, *ids, end]
    begins = len(chat.tokens.beginning) or 1
    limit = chat.context_length if context is None else context
    if limit is not None and len(whole) > limit:
        raise DataError(
            f"{document.where}: the text has {len(whole)} tokens; at most {limit} are allowed. Split it into parts, one a row, or raise "
            "the context if the model can hold it."
        )
    if not ids:
        raise DataError(f"{document.where}: the text is empty. Delete the row.")
    meta = dict(document.meta)
    protected = shield.count(document.text)
    if protected:
        meta["protected_specials"] = protected
    prompt_T, completion_T = np.array(whole[:begins], dtype=np.int64), np.array(whole[begins:], dtype=np.int64)
    return Example((Row(prompt_T, completion_T, np.ones(len(completion_T), dtype=np.float32)),), document.source, meta)


def _example_of_tokens(chat: Chat, document: Document, context: int | None) -> Example:
    """Ids as they were given. What stands before the first trained token is the prompt; what stands behind the last trains nothing."""
    limit = chat.context_length if context is None else context
    if limit is not None and len(document.tokens) > limit:
        raise DataError(
            f"{document.where}: the row has {len(document.tokens)} tokens; at most {limit} are allowed. Split it, or raise the context if "
            "the model can hold it."
        )
    if max(document.tokens) >= chat.tokens.vocabulary:
        raise DataError(
            f"{document.where}: the token id {max(document.tokens)} is none of the model's {chat.tokens.vocabulary:,}. Make the row with "
            "this model's tokenizer, or give texts instead."
        )
    trained = [place for place, weight in enumerate(document.weights) if weight > 0]
    first, end = trained[0], trained[-1] + 1
    ids_T = np.array(document.tokens[:end], dtype=np.int64)
    row = Row(ids_T[:first], ids_T[first:], np.array(document.weights[first:end], dtype=np.float32))
    return Example((row,), document.source, dict(document.meta))


def document_end(chat: Chat) -> int | None:
    """The id of the token that ends a text: the first of `DOCUMENT_ENDS` that the tokenizer has, else its `eos_token`."""
    for token in (*DOCUMENT_ENDS, chat.special_tokens.get("eos_token")):
        if token in chat.tokens.control_ids:
            return chat.tokens.control_ids[token]
    return None


def preference_example(chat: Chat, preference: Preference, *, context: int | None = None) -> Example:
    """Two rows with the same prompt: the chosen answer, then the rejected one.

    Raises `DataError` or `TemplateError` with the place where one of them cannot be made, where an answer is several turns of
    the assistant, or where the template gives the two different prompts (one with reasoning, one without, say).
    """
    turns = [_answer(chat, preference, name, answer, context) for name, answer in _answers(preference)]
    chosen, rejected = turns
    if chosen.prompt.ids != rejected.prompt.ids:
        raise TemplateError(
            f"{preference.where}: the template gives the two answers different prompts, so they do not answer the same. Usually one has "
            "reasoning and the other has none: give both, or neither."
        )
    return Example((chosen.row, rejected.row), preference.source, dict(preference.meta))


def _answers(preference: Preference) -> list[tuple[str, tuple[Message, ...]]]:
    return [("chosen", preference.chosen), ("rejected", preference.rejected)]


def _answer(chat: Chat, preference: Preference, name: str, answer: tuple[Message, ...], context: int | None) -> Turn:
    if len(answer) != 1:
        raise DataError(
            f"{preference.where}: the {name} answer is {len(answer)} turns; a preference compares one turn of the assistant with another. "
            "Move the turns that both share into the prompt, or leave the row out."
        )
    try:
        (turn,) = chat.turns(preference.conversation(answer), context=context, last_turn_only=True)
    except (DataError, TemplateError) as error:
        raise type(error)(f"{error} (This is the {name} answer.)") from None
    return turn
