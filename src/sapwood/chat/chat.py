"""Conversation ⇄ text ⇄ tokens for one model: the only place where prompts and training rows are made.

In: a model folder, and messages. Out: `Prompt`s (exactly what inference sends) and `Example`s of rows whose prompts are
made by the same function. A row's completion is what the model must write, its stop token included as the last token;
what a template puts behind that token belongs to the next prompt. Nothing is ever cut or dropped: a row that cannot be
made raises. Images and sounds go through a model's processor (see `chat.media`). Left out on purpose: documents.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from sapwood.chat.checks import check_prompt
from sapwood.chat.completing import completion, opening_of
from sapwood.chat.files import Folder, read_folder
from sapwood.chat.media import MediaProcessor, grown_text, refuse_kinds, refuse_placeholders, spans
from sapwood.chat.parsing import Answer, AnswerStream, Form, learn_form, parse
from sapwood.chat.properties import rendering_faults
from sapwood.chat.rendering import Rendering
from sapwood.chat.saving import saved_files
from sapwood.chat.steps import Steps
from sapwood.chat.stops import Stops, learn_stops
from sapwood.chat.templating import Template
from sapwood.chat.tokens import StreamDecoder, Tokens, named
from sapwood.chat.trained import Turn
from sapwood.chat.turns import Refusal, taken_apart
from sapwood.chat.vocabulary import Extended, extended
from sapwood.errors import DataError, TemplateError
from sapwood.records import Conversation, Example, Message, Prompt

THINKING = ("enable_thinking", "thinking")
"""Template arguments that switch thinking on or off, in the order in which they are tried."""


class Chat:
    """A model's tokenizer and chat template. Made by `Chat.load`; immutable afterwards."""

    def __init__(self, folder: Folder, today: datetime, given: Extended | None = None) -> None:
        self.folder = folder.path
        self.new_tokens: Mapping[str, int] = {} if given is None else given.new
        """Control tokens of a template that was given, which the model's tokenizer lacked, and their ids."""
        self.known_tokens: Mapping[str, int] = {} if given is None else given.known
        """Control tokens of a template that was given, which the tokenizer had; the model may never have been trained on them."""
        self.today = today
        """What templates that write the date are told."""
        self.special_tokens: Mapping[str, str] = folder.special
        self.context_length = folder.context_length
        """Tokens that the model can attend to, where its files say so."""
        self.tokens = Tokens(folder.tokenizer, frozenset(folder.stops))
        self._rendering = Rendering(
            {name: Template(source, folder.template_origin, today, folder.special) for name, source in folder.templates.items()},
            self.tokens.shield,
            folder.special,
        )
        self._stops: Stops = learn_stops(self._rendering.drawn, self.tokens, folder.stops)
        self.stop_ids = self._stops.ids
        """Ids at which generation stops: those of the model's files, and the one with which a turn ends."""
        self.turn_end = self._stops.turn_end
        """The id with which the template ends an assistant turn; None if it ends in no stop token."""
        self.notes: tuple[str, ...] = tuple(self._stops.notes) if given is None else given.notes(self.tokens, self.turn_end)
        """Sentences that a person should read once."""
        self._checked: set[Hashable] = set()  # shapes of prompts that need no second rendering any more, see `checks`
        self._steps = Steps(self._rendering.template(), self.tokens, self._stops, self.special_tokens, self._rendering.cover_one)
        self._opening = opening_of(self._rendering.drawn)
        self.faults = tuple(rendering_faults(self._rendering.drawn, self.special_tokens.get("bos_token")))
        """What the template does to texts; `properties.faults` adds what its turns end in."""
        self._content, self._given = folder, given is not None
        self._media: MediaProcessor | None = None
        self._no_media = (
            f"No processor for images and sounds is loaded for {self.folder}. Choose a model that takes them, or remove the row."
        )
        key = [sorted(folder.templates.items()), sorted(folder.special.items()), sorted(self.stop_ids)]
        content = orjson.dumps([key, folder.tokenizer], option=orjson.OPT_SORT_KEYS)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        """sha256 over templates, tokenizer, special tokens and stop tokens: what a run records."""

    @classmethod
    def load(cls, folder: Path, *, template: str | None = None, today: datetime | None = None) -> Chat:
        """Read a model folder. `template` is the text of a template to use instead of the folder's (see `named_template`).

        Control tokens of a given template that the tokenizer lacks are added to it: they are in `new_tokens`.
        `today` is what `strftime_now` tells templates that write the date; the default is the moment of loading, as
        inference servers do it. Give a fixed one for rows that are the same on every day.
        Raises `AssetError` for a folder without a tokenizer, `TemplateError` for one without a (valid) template.
        """
        found = read_folder(Path(folder))
        if template is not None:
            given = extended(replace(found, templates={"default": template}, template_origin="the template given"), template)
            return cls(given.folder, today or datetime.now(), given)
        if "default" not in found.templates:
            raise TemplateError(
                f"{found.path}: no chat template (no chat_template.jinja, no `chat_template` in tokenizer_config.json), so "
                "nothing says how it wants messages written. This is a base model: give it a template with `--template chatml` (or "
                "`--template FILE`), or choose an instruction-tuned model."
            )
        return cls(found, today or datetime.now())

    def with_media(self, processor: MediaProcessor | str) -> Chat:
        """The same chat, for a model that takes images or sounds by this processor. Prompts are then those of the processor.

        A text says why the model takes none: rows that hold some are refused with it.
        """
        chat = copy.copy(self)
        if isinstance(processor, str):
            chat._no_media = processor
            return chat
        chat._media = processor
        chat.fingerprint = hashlib.sha256(f"{self.fingerprint} {processor.fingerprint}".encode()).hexdigest()
        return chat

    def with_tools_in_system(self) -> Chat:
        """The same chat, with tools offered in the system message, calls and results as text: for templates without a place for them."""
        chat = copy.copy(self)
        chat.__dict__.pop("form", None)
        chat._rendering = self._rendering.folded()
        chat._checked = set()
        chat._stops = replace(self._stops, implied_call=self._stops.implied)  # calls are text there, and results a user's
        chat.fingerprint = hashlib.sha256(f"{self.fingerprint} {chat._rendering.folding}".encode()).hexdigest()
        return chat

    @property
    def tools_in_system(self) -> bool:
        """Whether tools are offered in the system message (`with_tools_in_system`)."""
        return self._rendering.folding is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the template spoils in silence, a sentence each with the next step: rows are made, but not of all that is given."""
        spoilt = (f"{fault.sentence} {fault.next_step}" for fault in self.faults if fault.severity == "problem")
        return (*spoilt, *((self.form.note,) if self.form.note else ()))

    @property
    def template(self) -> str:
        """The source of the default template."""
        return self._rendering.template().source

    def saved_files(self) -> dict[str, bytes]:
        """Files that lie beside trained weights, so that others chat alike: tokenizer, template, stop tokens; by name."""
        return saved_files(self._content, self.template if self._given else None, self.turn_end, self.stop_ids)

    @property
    def template_sources(self) -> list[str]:
        """The sources of all templates of the model, the one for tools included."""
        return [template.source for template in self._rendering.templates.values()]

    def plan(self) -> bytes | None:
        """All that another process needs to make rows as this chat does (`planned`), as JSON; None where that is not enough (media)."""
        if self._media is not None:
            return None
        content = {**vars(self._content), "path": str(self.folder)}
        return orjson.dumps([content, self.today.isoformat(), self.tools_in_system], option=orjson.OPT_NON_STR_KEYS)

    @classmethod
    def planned(cls, plan: bytes) -> Chat:
        """The chat of a `plan`: its rows and fingerprint are those of the chat that gave it."""
        content, today, folded = orjson.loads(plan)
        stops = {int(number): names for number, names in content["stops"].items()}
        chat = cls(Folder(**{**content, "path": Path(content["path"]), "stops": stops}), datetime.fromisoformat(today))
        return chat.with_tools_in_system() if folded else chat

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        template_arguments: Mapping[str, Any] | None = None,
        *,
        where: str = "a conversation made in code",
    ) -> Prompt:
        """The exact inference prompt: rendered with the generation prompt, tokenised without added BOS.

        Evaluation, chat, generation and training rows all come through here. `where` is named in errors.
        Raises `TemplateError` where the template refuses the messages, or ignores tools, calls or a message.
        """
        return self._prompt(messages, tools, template_arguments or {}, where)[0]

    def example(self, conversation: Conversation, *, context: int | None = None, last_turn_only: bool = False) -> Example:
        """One row for each assistant turn with a weight above 0.

        `context` is the longest row allowed, in tokens; the default is the model's own context length.
        `meta` is the conversation's; it gains `protected_specials` (control tokens found in texts and kept as text) and
        `template_arguments` (all that the last turn's prompt used) where it needed more than the conversation gives, such as
        `enable_thinking`: evaluate with the same.
        Raises `DataError` or `TemplateError` naming the place where a row cannot be made; nothing is cut.
        """
        meta = dict(conversation.meta)
        if protected := self.protected(conversation):
            meta["protected_specials"] = protected
        trained = conversation.trained(last_turn_only)
        short = self._media is None and not self.tools_in_system
        rows = self._steps.rows(conversation, trained, self._longest(context)) if short else None
        if rows is None:
            turns = self.turns(conversation, context=context, last_turn_only=last_turn_only)
            rows = tuple(turn.row for turn in turns)
            if turns[-1].added_arguments:
                meta["template_arguments"] = dict(turns[-1].prompt.template_arguments)
            elif short:
                self._steps.learn(conversation, trained, rows)
        return Example(rows, conversation.source, meta)

    def turns(self, conversation: Conversation, *, context: int | None = None, last_turn_only: bool = False) -> list[Turn]:
        """The trained turns of a conversation, in order; `example` makes them into rows. Raises as `example` does."""
        where = conversation.where
        trained = conversation.trained(last_turn_only)
        if not trained:
            raise DataError(f"{where}: no assistant turn to train. Add an answer, or give one a `weight` above 0.")
        if self.turn_end is None:
            raise TemplateError(f"{where}: {self._stops.problem}")
        turns = [self._turn(conversation, index) for index in trained]
        limit = self._longest(context)
        for turn in turns:
            length = len(turn.prompt.ids) + len(turn.ids)
            if limit is not None and length > limit:
                raise DataError(
                    f"{where}, message {turn.index + 1}: {length} tokens ({len(turn.prompt.ids)} prompt, {len(turn.ids)} to train); "
                    f"at most {limit} are allowed. Shorten or split the conversation, or raise the context if the model can hold it."
                )
        return turns

    def protected(self, conversation: Conversation) -> int:
        """How many control tokens stand as text in messages and tools; they stay text."""
        odd = [message for message in conversation.messages if not message.plain or self._rendering.cover_one(message) is not message]
        if not odd and not conversation.tools:
            return 0
        return self.tokens.shield.count([[message.for_template() for message in odd], list(conversation.tools)])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        return self.tokens.decode(ids, skip_special_tokens=skip_special_tokens)

    def answer(self, ids: Sequence[int]) -> str:
        """The text of sampled ids without the stop token, if they end in one."""
        return self.decode(ids[:-1] if len(ids) and ids[-1] in self.stop_ids else ids)

    def parse(self, answer: str | Sequence[int], prompt: Prompt) -> Answer:
        """What a model answered to `prompt`, as a message: content, reasoning, calls, and how it ended (see `parsing`).

        Give ids where there are any (the stop token included): of a text, letters that spell a control token count as one.
        Never raises on what a model wrote.
        """
        return parse(self, answer, prompt)

    def parse_stream(self, prompt: Prompt) -> AnswerStream:
        """The same, token by token."""
        return AnswerStream(self, prompt)

    @cached_property
    def form(self) -> Form:
        """How the template writes calls and what it puts around an answer, learned from its own renderings."""
        return learn_form(self)

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one at a time; stop tokens give no text."""
        return StreamDecoder(self.tokens, self.stop_ids)

    def render(self, conversation: Conversation, *, generation_prompt: bool = False) -> str:
        """The whole conversation as the template writes it, for people to read. Raises `TemplateError`."""
        return self.tokens.shield.reveal(self._written_whole(conversation, generation_prompt))

    def whole(self, conversation: Conversation) -> list[int]:
        """The whole conversation as ids, with what the template puts behind its last turn: what a reward model reads. Raises
        `TemplateError`."""
        with named(conversation.where):
            return self.tokens.encode(self._written_whole(conversation, False))

    def _written_whole(self, conversation: Conversation, generation_prompt: bool) -> str:
        """The covered text."""
        return self._rendering.covered(
            self._rendering.cover(conversation.messages),
            self.tokens.shield.cover(conversation.tools),
            conversation.template_arguments,
            generation_prompt,
            conversation.where,
        )

    def written(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template is given them: what to hand to another renderer of the same template."""
        return [self._rendering.template().written(message) for message in messages]

    def _longest(self, context: int | None) -> int | None:
        return self.context_length if context is None else context

    def _turn(self, conversation: Conversation, index: int) -> Turn:
        """Try the conversation's own template arguments first, then with thinking switched to what the turn has."""
        where = f"{conversation.where}, message {index + 1} (assistant)"
        message = conversation.messages[index]
        thought = taken_apart(message)
        if index == 0:
            raise DataError(
                f"{where}: nothing stands before this turn, so there is no prompt. Give it `weight: 0`, or add a message before it."
            )
        if not (thought.answer.strip() or thought.reasoning or message.tool_calls):
            raise DataError(f"{where}: the answer is empty. Write one, give it `weight: 0`, or remove the row.")
        refusal: Refusal | None = None
        for added in self._thinking_arguments(conversation, bool(thought.reasoning)):
            arguments = {**conversation.template_arguments, **added}
            prompt, covered = self._prompt(conversation.messages[:index], conversation.tools, arguments, where)
            text = self._completion(conversation, index, covered, arguments, where)
            if isinstance(text, Refusal):
                refusal = text  # the last says most: there, thinking is switched to what the turn has
                continue
            ids = self._completion_ids(prompt, covered, text, where)
            return Turn(index, prompt, self.tokens.shield.reveal(text), ids, message.weight, added)
        raise TemplateError(f"{where}: {refusal}")

    def _thinking_arguments(self, conversation: Conversation, thinking: bool) -> Iterator[dict[str, Any]]:
        yield {}
        for name in THINKING:
            if name not in conversation.template_arguments and self._rendering.template(conversation.tools).knows(name):
                yield {name: thinking}

    def _completion(self, conversation: Conversation, index: int, prompt: str, arguments: Mapping[str, Any], where: str) -> str | Refusal:
        """The covered text behind the covered prompt; the stop token's string is its end."""
        messages = self._rendering.cover(conversation.messages[: index + 1])
        full = self._rendering.covered(messages, self.tokens.shield.cover(conversation.tools), arguments, False, where)

        def render(some: Sequence[Message], generation_prompt: bool) -> str:
            return self._rendering.covered(some, (), arguments, generation_prompt, where)

        source = self._rendering.template(conversation.tools).source
        return completion(messages, prompt, full, source, self._stops, self._opening, render)

    def _completion_ids(self, prompt: Prompt, covered: str, text: str, where: str) -> tuple[int, ...]:
        grown, lead, _ = grown_text(covered, prompt.messages, self._media, where)
        with named(where):
            ids = self.tokens.continuation(grown, prompt.ids[len(lead) :], text)
        refuse_placeholders(ids, self._media, where)
        if not ids or ids[-1] not in self.stop_ids or not self.stop_ids.isdisjoint(ids[:-1]):
            stops = [place for place, token_id in enumerate(ids) if token_id in self.stop_ids]
            raise TemplateError(
                f"{where}: the turn's tokens hold stop tokens at {stops} of {len(ids)}, where only the last may be one: the tokenizer "
                "reads the answer's own text as a stop token. Change that text, or choose another tokenizer."
            )
        return tuple(ids)

    def _prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], where: str
    ) -> tuple[Prompt, str]:
        """The prompt, and its text as rendered, with control tokens in texts still covered."""
        if not messages:
            raise DataError(f"{where}: there is no message to answer. Begin the conversation with a system or user message.")
        refuse_kinds(messages, self._media or self._no_media, where)
        covered_messages, covered_tools = self._rendering.cover(messages), self.tokens.shield.cover(tuple(tools))

        def render(some: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
            return self._rendering.covered(some, tools, arguments, True, where)

        covered = render(covered_messages, covered_tools)
        refusal = check_prompt(covered_messages, covered_tools, covered, render, self._checked)
        if refusal is not None:
            raise TemplateError(f"{where}: {refusal}")
        grown, lead, contents = grown_text(covered, messages, self._media, where)
        with named(where):
            ids = (*lead, *self.tokens.encode(grown))
        media = () if self._media is None else spans(ids, contents, self._media, where)
        messages, tools = self._rendering.laid_out(messages, tools, where)
        return Prompt(tuple(messages), ids, self.tokens.shield.reveal(covered), tuple(tools), dict(arguments), media), covered
