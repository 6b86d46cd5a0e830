"""What a person should know about a template, a tokenizer and their data before anything is trained.

In: a `Chat` and conversations. Out: `Finding`s: a sentence each, how grave it is, and the next step. Nothing is changed
and nothing printed; the probes are small conversations of our own, rendered and compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sapwood.chat.chat import Chat, Turn
from sapwood.chat.turns import TAGS
from sapwood.errors import SapwoodError, TemplateError
from sapwood.records import Conversation, Message

SAMPLES = {
    "digits": "1234567890 3.14159 12:05",
    "emoji": "🌱🌲👩‍🌾 ok",
    "Chinese, Japanese, Korean": "树木 木材 나무",
    "leading spaces": "    indented\n\tcode",
    "accents": "Ça va, naïve Übergröße?",
}
_ASK = Message("user", "Where does sapwood grow?")
_TELL = Message("assistant", "Right below the bark.")
_TOOL = {
    "type": "function",
    "function": {"name": "find_tree", "description": "Finds a tree.", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `problem` stands in the way of training; a `note` is worth knowing; `ok` was checked."""

    severity: Literal["ok", "note", "problem"]
    sentence: str
    next_step: str = ""


def examine(chat: Chat, conversations: Sequence[Conversation] = (), *, context: int | None = None) -> list[Finding]:
    """All findings about the template and tokenizer, then about the data. `context` as in `Chat.example`."""
    return [
        Finding("ok", f"The model has a chat template ({len(chat.template)} letters)."),
        *_system(chat),
        *_tools(chat),
        *_turns(chat),
        *_stops(chat),
        *_tokenizer(chat),
        *(_data(chat, conversations, context) if conversations else ()),
    ]


def _system(chat: Chat) -> Iterator[Finding]:
    try:
        chat.prompt([Message("system", "Speak of trees only."), _ASK], where="a probe")
    except TemplateError as error:
        yield Finding("note", f"System messages are not supported: {error}", "Write their text into the first user message.")
    else:
        yield Finding("ok", "System messages reach the prompt.")


def _tools(chat: Chat) -> Iterator[Finding]:
    try:
        chat.prompt([_ASK], [_TOOL], where="a probe")
    except TemplateError:
        yield Finding(
            "note", "The template has no place for tools.", "For data with tools use --tools-in-system, or a template with a tools branch."
        )
    else:
        yield Finding("ok", "Tools reach the prompt.")


def _turns(chat: Chat) -> Iterator[Finding]:
    """Generation prompt, prefill, history."""
    try:
        prompt = chat.prompt([_ASK], where="a probe").text
        bare = chat.render(Conversation((_ASK,)))
    except TemplateError as error:
        yield Finding("problem", f"A plain question cannot be rendered: {error}", "Choose another template with --template FILE.")
        return
    lead = prompt.partition(_ASK.content)[0]
    for control in chat.tokens.control_ids:
        lead = lead.replace(control, " ")
    if len(lead.split()) > 3:
        yield Finding("note", f"The template puts text of its own before a question without a system message: {' '.join(lead.split())!r}.")
    if prompt == bare:
        yield Finding("note", "The template adds no generation prompt; the model speaks right behind the question.")
    else:
        yield Finding("ok", f"The generation prompt is {prompt[len(bare) :] if prompt.startswith(bare) else prompt[-40:]!r}.")
    if chat.knows_argument("strftime_now"):
        yield Finding("note", "The template writes today's date: prompts differ from day to day unless a date is fixed at loading.")
    opened = next((tag for tag in TAGS if prompt.rstrip().endswith(tag)), None)
    if opened:
        yield Finding("note", f"The prompt opens a thought ({opened}): each trained turn needs reasoning.", "Give turns `reasoning`.")
    thought = "It is the young wood." if opened else None
    first = Message("assistant", _TELL.content, reasoning=thought)
    try:
        turns = chat.turns(Conversation((_ASK, first, Message("user", "And heartwood?"), first)))
    except SapwoodError as error:
        yield Finding("problem", f"A plain conversation cannot be trained: {error}")
        return
    if turns[1].prompt.text.startswith(turns[0].prompt.text + turns[0].text):
        yield Finding("ok", "History is kept as it was written, so the rows of a conversation share their beginnings.")
    else:
        yield Finding("note", "The template rewrites history (it drops old reasoning, say): rows branch, which is correct but shares less.")
    if turns[0].added_arguments:
        yield Finding("note", f"Answers without reasoning need {dict(turns[0].added_arguments)}; rows and evaluation use it where needed.")


def _stops(chat: Chat) -> Iterator[Finding]:
    names = ", ".join(sorted(repr(chat.tokens.token_of(stop)) for stop in chat.stop_ids))
    if chat.turn_end is None:
        yield Finding("problem", f"No stop token was found at the end of an assistant turn. Known ones: {names or 'none'}.")
        return
    yield Finding("ok", f"Assistant turns end in {chat.tokens.token_of(chat.turn_end)!r}; generation stops at {names}.")
    for note in chat.notes:
        yield Finding("note", note)
    pad, eos = chat.special_tokens.get("pad_token"), chat.special_tokens.get("eos_token")
    if pad is not None and pad == eos:
        yield Finding("ok", f"The padding token is the end token ({pad!r}); that is harmless here, since nothing is masked by token.")


def _tokenizer(chat: Chat) -> Iterator[Finding]:
    bos = chat.special_tokens.get("bos_token")
    if bos is not None and _question(chat).startswith(bos + bos):
        yield Finding("problem", f"The template itself begins with {bos!r} twice.", "Mend the template; the model has never seen that.")
    else:
        yield Finding("ok", "The prompt begins as the template writes it; no token is added in front, so none is doubled.")
    lost = [name for name, text in SAMPLES.items() if chat.decode(chat.tokens.encode(text)) != text]
    if lost:
        yield Finding(
            "note", f"The tokenizer does not give these texts back unchanged: {', '.join(lost)}.", "Expect the model to blur them."
        )
    else:
        yield Finding("ok", f"The tokenizer gives texts back unchanged ({', '.join(SAMPLES)}).")
    if chat.context_length is None:
        yield Finding("note", "The model's files do not say how long a context may be.", "Set the longest row yourself.")
    else:
        yield Finding("ok", f"The context holds {chat.context_length} tokens.")


def _question(chat: Chat) -> str:
    """The prompt of a plain question; empty if the template refuses it (which `_turns` reports)."""
    try:
        return chat.prompt([_ASK], where="a probe").text
    except TemplateError:
        return ""


def _data(chat: Chat, conversations: Sequence[Conversation], context: int | None) -> Iterator[Finding]:
    refused: list[str] = []
    turns: list[Turn] = []
    protected = 0
    for conversation in conversations:
        protected += bool(chat.protected(conversation))
        try:
            turns += chat.turns(conversation, context=context)
        except SapwoodError as error:
            refused.append(str(error))
    total, trained = sum(len(turn.prompt.ids) + len(turn.ids) for turn in turns), sum(len(turn.ids) for turn in turns)
    if turns:
        longest = max(len(turn.prompt.ids) + len(turn.ids) for turn in turns)
        yield Finding(
            "ok",
            f"{len(conversations) - len(refused)} of {len(conversations)} conversations give {len(turns)} rows of {total} tokens, the "
            f"longest {longest}; {trained} tokens ({trained / total:.0%}) are trained.",
        )
    for reason in refused[:5]:
        yield Finding("problem", reason)
    if len(refused) > 5:
        yield Finding("problem", f"{len(refused) - 5} more conversations are refused.", "Mend the ones above first.")
    if protected:
        yield Finding("note", f"{protected} conversations write control tokens as text; they stay text and end no turn.")
    changed = [turn for turn in turns if not _same_text(chat, turn)]
    if changed:
        yield Finding("note", f"{len(changed)} answers do not come back from the tokenizer unchanged, such as {changed[0].text[:40]!r}.")
    needed = Counter(str(dict(turn.added_arguments)) for turn in turns if turn.added_arguments)
    for arguments, count in needed.items():
        yield Finding("note", f"{count} rows need the template arguments {arguments}.", "Evaluate and serve with the same.")


def _same_text(chat: Chat, turn: Turn) -> bool:
    """Whether the ids give the text back, but for the space that a tokenizer with a dummy space hides at the front."""
    found = chat.decode(turn.ids)
    return found == turn.text or (chat.tokens.dummy_space and found == turn.text.removeprefix(" "))
