"""A chat template as a sandboxed Jinja program.

In: the template's source. Out: `Template.render(...) -> str`, the same text that transformers' `apply_chat_template`
renders (`trim_blocks`, `lstrip_blocks`, loop controls, `tojson` that keeps non-ASCII letters, `raise_exception`,
`strftime_now`, and the `generation` tag, which marks nothing here: masks come from the conversation, not from marks).
The date that `strftime_now` reads is fixed when the template is loaded, so that a run that lasts past midnight renders
every row alike. Some templates want messages in another form than most do (`Form`); which, is found by rendering. Left out on
purpose: RAG documents (`documents` is None).
Source of the conventions: transformers, `utils/chat_template_utils.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from sapwood.chat.bounds import Bounded, Overspent, TooLarge, check_call, check_format, check_operation, guarded
from sapwood.chat.probes import ASK, TELL
from sapwood.chat.stepwise import MARK, marked
from sapwood.chat.turns import taken_apart
from sapwood.errors import TemplateError
from sapwood.records import Message, ToolCall

RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
"""Names that the renderer itself gives to a template."""

WIDEST_INDENT = 1000
_CAUSES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)
"""What a template can raise while it renders: its own refusals, and its bugs."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a template wants messages written. Most take all of the defaults."""

    parts: bool = False
    """Content as a list of parts instead of a string, as processors of images want it (LLaVA, Idefics)."""
    none_beside_calls: bool = False
    """Content None, not an empty string, in a message that only calls (DeepSeek drops the calls otherwise)."""
    text_arguments: bool = False
    """The arguments of a call as JSON text instead of an object (DeepSeek joins them to a string)."""
    short_ids: bool = False
    """Ids of calls as nine letters or digits (Mistral refuses others): those that are not so are hashed."""
    needs_ids: bool = False
    """An id for every call and result (Mistral): those that have none get one made of the call."""
    thoughts_apart: bool = False
    """Inline `<think>…</think>` handed over as the reasoning, which the template writes in its own way (gpt-oss, Mistral, Qwen3)."""


_CALL_FORMS = tuple(Form(none_beside_calls=none, text_arguments=text) for none in (False, True) for text in (False, True))
_THINKER = Message("assistant", TELL.content, reasoning="It is young wood.")
_CALL = Message("assistant", tool_calls=(ToolCall("probe_function", {"tree": "heartwood"}, "a1b2c3d4e"),))


class Template:
    """One compiled template. `origin` names the file it came from, for messages."""

    def __init__(self, source: str, origin: str, today: datetime, special: Mapping[str, str] | None = None) -> None:
        """`special` are the special tokens that it writes by name; they are needed to try it out.

        Raises `TemplateError` with the line where the source is not valid Jinja.
        """
        self.source, self.origin = source, origin
        self._words = frozenset(re.findall(r"\w+", source))
        environment = _environment(today)
        try:
            self._compiled = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"{origin}:{error.lineno}: the chat template is not valid Jinja ({error.message}). Mend it there, or give another with "
                "`--template FILE`."
            ) from None
        self._marked = marked(environment, source)
        self._globals = dict(self._compiled.globals)
        self._usual = False
        self._overspent: Overspent | None = None
        """What a rendering was stopped for: the next would take as long."""
        self.form = Form()
        self.form = self._learned_form(special or {})
        without_ids = replace(self.form, short_ids=False, needs_ids=False)
        self._usual = without_ids in [replace(form, parts=False) for form in _CALL_FORMS]  # all that these change are calls

    def knows(self, name: str) -> bool:
        """Whether the source speaks of `name` at all (a template argument, a message field)."""
        return name in self._words

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]],
        generation_prompt: bool,
        special: Mapping[str, str],
        arguments: Mapping[str, Any],
        where: str,
    ) -> str:
        """The text of a conversation. Raises `TemplateError` with the template's own words and `where`."""
        return self._run(self._compiled, messages, tools, generation_prompt, special, arguments, where)

    @property
    def stepwise(self) -> bool:
        """Whether `steps` can be had: the template is proved to write message by message."""
        return self._marked is not None

    def steps(self, messages: Sequence[Message], *, special: Mapping[str, str], arguments: Mapping[str, Any], where: str) -> list[str]:
        """What is written for each message, what stands before them with the first, and last the generation prompt.

        The rendering of the first i messages is the first i of these, and with the generation prompt the last behind them.
        """
        assert self._marked is not None
        first, *rest = self._run(self._marked, messages, (), True, special, arguments, where).split(MARK)
        return [first + rest[0], *rest[1:]]

    def _run(
        self,
        compiled: jinja2.Template,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        generation_prompt: bool,
        special: Mapping[str, str],
        arguments: Mapping[str, Any],
        where: str,
    ) -> str:
        taken = [name for name in arguments if name in RESERVED]
        if taken:
            raise TemplateError(f"{where}: the template argument `{taken[0]}` is set by Sapwood itself. Rename or remove it.")
        unknown = [name for name in arguments if name not in self._words]
        if unknown:
            raise TemplateError(
                f"{where}: the chat template does not read the template argument `{unknown[0]}`, so it would change nothing. Remove it, or "
                "choose a template that reads it, with `--template FILE`."
            )
        if self.form.needs_ids:
            messages = _with_ids(messages)
        try:
            if self._overspent is not None:
                raise self._overspent
            variables = {
                **self._globals,
                **special,
                **_plain(arguments),
                "messages": [self.written(message) for message in messages],
                "tools": [_plain(tool) for tool in tools] or None,
                "documents": None,
                "add_generation_prompt": generation_prompt,
            }
            # what `jinja2.Template.render` does, with the globals made a plain dictionary once and not at every rendering
            context = jinja2.runtime.new_context(compiled.environment, compiled.name, compiled.blocks, variables, shared=True)
            with Bounded():
                return "".join(compiled.root_render_func(context))
        except _CAUSES as error:
            self._overspent = error if isinstance(error, Overspent) else None
            roles = ", ".join(message.role for message in messages) or "none"
            cause = str(error).rstrip(".") or type(error).__name__
            raise TemplateError(
                f"{where}: the chat template ({self.origin}) refused the conversation: {cause}. Roles so far: "
                f"{roles}. Change the messages to what the template allows, or give another template with `--template FILE`."
            ) from error

    def written(self, message: Message) -> dict[str, Any]:
        """The message as this template is given it. Raises nothing; JSON types alone."""
        if self._usual and message.plain:
            return {"role": str(message.role), "content": str(message.content)}
        if self.form.thoughts_apart and message.role == "assistant":
            thought = taken_apart(message)
            if thought.tag and thought.reasoning:
                message = replace(message, content=thought.answer.lstrip("\n"), reasoning=thought.reasoning)
        fields: dict[str, Any] = _plain(message.for_template())
        if message.reasoning is not None:
            fields["thinking"] = message.reasoning  # gpt-oss reads this name; transformers hands over both too
        if self.form.none_beside_calls and message.tool_calls and not message.content:
            fields["content"] = None
        elif self.form.parts and isinstance(fields["content"], str):
            fields["content"] = [{"type": "text", "text": fields["content"]}]
        if self.form.short_ids:
            for call in (*fields.get("tool_calls", ()), fields):
                for key in ("id", "tool_call_id"):
                    if key in call:
                        call[key] = _short_id(call[key])
        if self.form.text_arguments:
            for call in fields.get("tool_calls", ()):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return fields

    def _learned_form(self, special: Mapping[str, str]) -> Form:
        """The first form in which a question, an answer and a call are to be seen; the usual one where none is."""
        shown = (ASK.content, TELL.content)
        parts = not self._shows(Form(), (ASK, TELL), shown, special) and self._shows(Form(parts=True), (ASK, TELL), shown, special)
        apart = self._shows(Form(parts=parts), (ASK, _THINKER), (str(_THINKER.reasoning),), special)
        for form in _CALL_FORMS:
            tried = replace(form, parts=parts, thoughts_apart=apart)
            if self._shows(tried, (ASK, _CALL), ("probe_function", "heartwood"), special):
                takes_long, takes_none = (
                    self._shows(tried, (ASK, _with_id(call_id)), ("probe_function", "heartwood"), special)
                    for call_id in ("call_with_a_long_id", None)
                )
                return replace(tried, short_ids=not takes_long, needs_ids=not takes_none)
        return Form(parts=parts, thoughts_apart=apart)

    def _shows(self, form: Form, messages: Sequence[Message], texts: Sequence[str], special: Mapping[str, str]) -> bool:
        self.form = form
        try:
            rendered = self.render(messages, tools=(), generation_prompt=False, special=special, arguments={}, where="a probe")
        except TemplateError:
            return False
        finally:
            self.form = Form()
        return all(text in rendered for text in texts)


def _with_id(call_id: str | None) -> Message:
    """The probe's call with another id."""
    return replace(_CALL, tool_calls=tuple(replace(call, id=call_id) for call in _CALL.tool_calls))


def _with_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with ids for calls that have none, and for the results that answer them in order."""
    found: list[Message] = []
    waiting: list[str | None] = []
    number = 0
    for message in messages:
        calls = []
        for call in message.tool_calls:
            made = _short_id(json.dumps([number, call.name, _plain(call.arguments)]))
            calls.append(call if call.id is not None else replace(call, id=made))
            number += 1
        if calls:
            message, waiting = replace(message, tool_calls=tuple(calls)), [call.id for call in calls]
        elif message.role == "tool" and waiting:
            message = message if message.tool_call_id is not None else replace(message, tool_call_id=waiting[0])
            waiting = [each for each in waiting if each != message.tool_call_id]
        found.append(message)
    return found


def _short_id(call_id: str) -> str:
    """Nine letters or digits: the id itself where it is so, else the beginning of its hash."""
    fits = len(call_id) == 9 and call_id.isascii() and call_id.isalnum()
    return call_id if fits else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _plain(value: Any) -> Any:
    """A copy made of JSON types alone, so that a template never holds an object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 (Jinja reads a plain class attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without names that begin with an underscore: those reach into Python itself."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}, a name with a leading underscore")
        super().__setitem__(name, value)


_OF_DICTS = frozenset(dir(dict))
_OF_LOOPS = frozenset(("first", "last", "index", "index0", "length"))


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, within bounds. An entry of a plain dictionary, or where a loop is, is looked up at once: neither needs guarding."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        check_call(obj, args)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_format(value.__self__)
        return wrapped

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is jinja2.runtime.LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        if type(obj) is dict and attribute not in _OF_DICTS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


def _environment(today: datetime) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if indent is not None and indent > WIDEST_INDENT:
            raise TooLarge(f"lines that begin with {indent:,} spaces")
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
    environment.filters |= {**guarded(environment.filters), "tojson": tojson}
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = today.strftime
    environment.globals["namespace"] = _Namespace
    return environment
