"""No template escapes the sandbox, and no data become a template: known ways out of Jinja, tried as both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chat.chat_folders import CHATML, TEMPLATES, load, write_folder
from sapwood.chat import Chat
from sapwood.data import read
from sapwood.errors import TemplateError
from sapwood.records import Conversation, Message, ToolCall

SECRET = "sapwood-secret-of-this-process"
SHELL = "touch {canary}"
ESCAPES = [
    "''.__class__.__mro__[1].__subclasses__()",
    "''['__class__']['__mro__'][1]['__subclasses__']()",
    "''|attr('__class__')|attr('__mro__')",
    "''|attr('\\x5f\\x5fclass\\x5f\\x5f')",
    "(''|attr('_' ~ '_class_' ~ '_'))",
    "[''.format]|map(attribute='__self__')|list",
    "[{}]|map(attribute='__class__')|list",
    "[{}]|groupby('__class__')",
    "[{}]|sort(attribute='__class__')",
    "[{}]|selectattr('__class__')|list",
    "[{}]|sum(attribute='__class__.__name__', start='')",
    "'{0.__class__.__mro__}'.format('')",
    "'{0.__init__.__globals__}'.format(raise_exception)",
    "'{m.__class__}'.format_map({'m': messages})",
    "('{0.__class__}'|format(''))",
    "'%s'|format(raise_exception.__globals__)",
    "messages.__class__.__base__.__subclasses__()",
    "messages[0].__class__",
    "messages[0].get.__self__.__class__",
    "messages.append.__self__.__class__.__base__",
    "raise_exception.__globals__",
    "raise_exception.__globals__['__builtins__']",
    "raise_exception.__closure__",
    "raise_exception.__code__",
    "strftime_now.__self__.__class__",
    "strftime_now.__func__.__globals__",
    "namespace.__init__.__globals__['os'].popen('" + SHELL + "').read()",
    "namespace.__class__.__bases__",
    "namespace().__class__",
    "namespace(__class__=1)",
    "cycler.__init__.__globals__.os.popen('" + SHELL + "').read()",
    "joiner.__init__.__globals__",
    "lipsum.__globals__['os'].popen('" + SHELL + "').read()",
    "lipsum.__globals__.os.environ",
    "dict.__base__.__subclasses__()",
    "dict.mro()",
    "range.__class__",
    "self.__init__.__globals__",
    "self._TemplateReference__context",
    "self._TemplateReference__context.environment",
    "self.__class__.__init__.__globals__.sys.modules",
    "loop.__class__",
    "caller.__class__",
    "varargs.__class__",
    "(1).__class__.__base__.__subclasses__()",
    "true.__class__.__base__",
    "none.__class__",
    "undefined_thing.__class__.__init__.__globals__",
    "undefined_thing.__init__.__globals__.__builtins__.open('/etc/passwd').read()",
    "(messages|tojson).__class__",
    "''.join.__self__.__class__.__mro__",
    "messages|map('attr', '__class__')|list",
    "messages|map('format')|list|map(attribute='__class__')|list",
    "(messages|map('upper')).gi_frame.f_builtins",
    "(messages|map('upper')).gi_frame.f_back.f_globals",
    "(messages|select).gi_code",
    "(messages|batch(1)).gi_frame",
    "messages.clear()",
    "messages.append({})",
    "messages[0].update({'role': 'system'})",
    "messages[0].pop('role')",
    "messages[0].__setitem__('role', 'x')",
    "range(1000000000)|list",
    "g.pop.__globals__",
    "config.items()",
    "request.application.__globals__",
    "get_flashed_messages.__globals__",
    "url_for.__globals__",
    "import_module('os')",
    "__import__('os').system('" + SHELL + "')",
    "open('/etc/passwd').read()",
    "eval('1+1')",
]
"""Expressions; what could run a command would leave a file behind."""
STATEMENTS = [
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace() %}{% set ns.__init__ = raise_exception %}{{ ns.__init__.__globals__ }}",
    "{% set ns = namespace(x=1) %}{{ ns.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{% from 'os' import popen %}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}{% endmacro %}{{ m.__class__.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._environment }}",
    "{% for x in [1] %}{{ loop.__class__ }}{{ loop._iterator }}{% endfor %}",
    "{% for k in messages[0].__dict__ %}{{ k }}{% endfor %}",
    "{% block b %}{{ self.b.__class__ }}{{ self.b._context }}{% endblock %}",
    "{% set x = 'os' %}{% set x.y = 1 %}",
    "{% filter attr('__class__') %}x{% endfilter %}",
]
LEAKS = ("<class", "<module", "<function", "<built-in", "<bound method", "<generator", "<frame", "<code", "root:", SECRET, "object at 0x")
"""What a text shows once a template has something of Python's in its hands."""


def shown(chat: Chat) -> str:
    """What the template makes of a conversation, or the refusal."""
    try:
        return chat.prompt([Message("user", "hello")], where="rows.jsonl:1").text
    except TemplateError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("escape", ESCAPES + STATEMENTS)
def test_as_a_template(tmp_path: Path, escape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_SECRET", SECRET)
    canary = tmp_path / "canary"
    source = escape.replace("{canary}", str(canary))
    before = dict(os.environ)
    try:
        chat = Chat.load(write_folder(tmp_path / "model", CHATML + (source if source.startswith("{%") else "{{ " + source + " }}")))
        text = shown(chat)
    except TemplateError as error:
        text = f"refused: {error}"
    assert not canary.exists(), "a template ran a command"
    assert dict(os.environ) == before
    behind = text.rpartition("<|im_start|>assistant\n")[2] if not text.startswith("refused: ") else ""
    assert not any(leak in behind for leak in LEAKS), behind
    if text.startswith("refused: "):
        assert SECRET not in text


OPEN_WIDE = """
import jinja2, json, sys
environment, leaks, out = jinja2.Environment(), json.loads(sys.argv[2]), 0
given = {"raise_exception": json.dumps, "namespace": jinja2.utils.Namespace, "strftime_now": str}
for escape in json.loads(sys.argv[1]):
    try:
        messages = [{"role": "user", "content": "q"}]
        text = environment.from_string("{{ " + escape + " }}").render({**given, "messages": messages})
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError):
        continue
    out += any(leak in text for leak in leaks)
print(out)
"""


def test_that_these_tests_would_see_an_escape(tmp_path: Path) -> None:
    """The same ways lead out of a Jinja that is not sandboxed."""
    canary = tmp_path / "canary"
    escapes = [escape.replace("{canary}", str(canary)) for escape in ESCAPES if "range(" not in escape]  # that would fill the memory
    words = [sys.executable, "-c", OPEN_WIDE, json.dumps(escapes), json.dumps(LEAKS)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 25
    assert canary.exists()


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_as_data(tmp_path: Path, name: str) -> None:
    """In any text of a row an escape is text: it is rendered letter by letter, and nothing in it is evaluated."""
    chat, canary = load(tmp_path / "model", name), tmp_path / "canary"
    texts = [f"{{{{ {escape.replace('{canary}', str(canary))} }}}}" for escape in ESCAPES]
    texts += [*STATEMENTS, "{{ 7 * 191 }}", "{# gone #}", "{% raw %}", "{%- endfor %}", "${7*191}", "#{7*191}", "<%= 7*191 %>"]
    reasoning = "because {{ 7 * 191 }}" if name in ("empty-thought", "prefilled") else None
    rows = []
    for text in texts:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text, "reasoning_content": reasoning}]
        rows.append({"messages": turns, text: text})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = read([path])
    assert reading.refused == []
    for text, conversation in zip(texts, reading.conversations, strict=True):
        (turn,) = chat.turns(conversation)
        assert text.strip() in turn.prompt.text
        assert text.strip() in turn.text
        assert text.strip() in chat.decode(turn.ids)
        assert "1337" not in turn.prompt.text + turn.text, "7 × 191: nobody evaluated it"
    assert not canary.exists()


def test_as_names_of_tools_and_arguments(tmp_path: Path) -> None:
    chat = load(tmp_path / "model", "toolful")
    for escape in (*ESCAPES[:8], "7 * 191"):
        text = f"{{{{ {escape} }}}}"
        tool = {"type": "function", "function": {"name": text, "description": text, "parameters": {text: text}}}
        call = Message("assistant", tool_calls=(ToolCall(text, {text: text}),))
        (turn,) = chat.turns(Conversation((Message("user", "q"), call), (tool,)))
        assert json.dumps(text)[1:-1] in turn.prompt.text
        assert turn.text.count(json.dumps(text)[1:-1]) >= 2
        assert "1337" not in turn.prompt.text + turn.text


def test_templates_that_rows_bring_along_are_not_run(tmp_path: Path) -> None:
    """Names that would replace what the renderer hands over are refused; others are only values."""
    chat = load(tmp_path / "model", "chatml")
    talk = (Message("user", "q"), Message("assistant", "a"))
    with pytest.raises(TemplateError, match="`messages` is set by Sapwood itself"):
        chat.example(Conversation(talk, template_arguments={"messages": []}))
    with pytest.raises(TemplateError, match="does not read the template argument `chat_template`"):
        chat.example(Conversation(talk, template_arguments={"chat_template": "{{ 7 * 191 }}"}))
    reads = Chat.load(write_folder(tmp_path / "reads", "{{ extra }}" + CHATML))
    for escape in ESCAPES:
        (turn,) = reads.turns(Conversation(talk, template_arguments={"extra": f"{{{{ {escape} }}}}"}))
        assert turn.prompt.text.startswith(f"{{{{ {escape} }}}}")
