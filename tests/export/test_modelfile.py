"""Go templates: the evaluator against the language's rules, templates learned from models' own, and what is refused."""

from __future__ import annotations

from datetime import datetime
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.chat import Chat
from sapwood.errors import TemplateError
from sapwood.export.go_template import render, render_as_ollama
from sapwood.export.modelfile import checked_template, modelfile
from sapwood.records import Message
from tiny.folder import TEMPLATE, write_model

TALK = [
    Message("system", "Be brief."),
    Message("user", "a {{ b }}"),
    Message("assistant", "c\nd"),
    Message("user", "e"),
]
INSIDE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rule = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set rule = '' %}{% endif %}{% for m in messages %}<{{ m.role }}>\n{% if loop.first %}{{ rule }}{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are {{ '{{' }}.<|im_end|>\n{% endif %}" + TEMPLATE
STRIPS = TEMPLATE.replace("message['content']", "message['content'] | trim")
LAST_ONLY = TEMPLATE.replace("message['content']", "(message['content'] if loop.last else message['content'] | upper)")
DATED = "{{ strftime_now('%d %B %Y') }}\n" + TEMPLATE
PREFILLED = TEMPLATE.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")


def chat_with(tmp_path: Path, template: str, today: datetime | None = None) -> Chat:
    return Chat.load(write_model(tmp_path / "model", template=template), today=today)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a{{ .X }}b", "aoneb"),
        ("a {{- .X -}} b", "aoneb"),
        ("a {{/* a note */}} b", "a  b"),
        ('{{ if eq .X "two" }}2{{ else if eq .X "one" }}1{{ else }}0{{ end }}', "1"),
        ("{{ if .Empty }}yes{{ else }}no{{ end }}", "no"),
        ('{{ if and .X (not .Empty) (ne .X "z") }}yes{{ end }}', "yes"),
        ("{{ if or .Empty .Nothing }}yes{{ end }}", ""),
        ("{{ range $i, $_ := .List }}{{ $i }}{{ .Y }}{{ if eq (len (slice $.List $i)) 1 }}!{{ end }}{{ end }}", "0p1q!"),
        ("{{ range .List }}{{ .Y }}{{ else }}none{{ end }}{{ range .None }}x{{ else }}none{{ end }}", "pqnone"),
        ('{{ $x := "k" }}{{ $x }}{{ "{{" }}{{ `raw \\n` }}', "k{{raw \\n"),
    ],
)
def test_go_templates_are_rendered_as_go_renders_them(source: str, text: str) -> None:
    values = {"X": "one", "Empty": "", "Nothing": [], "None": [], "List": [{"Y": "p"}, {"Y": "q"}]}
    assert render(source, values) == text


@pytest.mark.parametrize(
    "source", ["{{ if .X }}", "{{ end }}", "{{ .X | json }}", '{{ template "x" }}', "{{ $y }}", "{{ .X.Y }}", "{{ len }}x{{ else }}"]
)
def test_what_is_not_understood_raises(source: str) -> None:
    with pytest.raises((TemplateError, TypeError)):
        render(source, {"X": "one"})


def test_messages_reach_a_template_as_ollama_hands_them_over() -> None:
    source = "[{{ .System }}]{{ range $i, $_ := .Messages }}<{{ .Role }}:{{ .Content }}>{{ end }}"
    messages = [Message("system", "s"), Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("system", "t")]
    assert render_as_ollama(source, messages) == "[s\n\nt]<system:s><user:a\n\nb><assistant:c><system:t>"


@pytest.mark.parametrize("template", [TEMPLATE, DEFAULT, INSIDE, PREFILLED])
def test_a_learned_template_renders_letter_by_letter(tmp_path: Path, template: str) -> None:
    chat = chat_with(tmp_path, template)
    source, notes = checked_template(chat, [chat.prompt(TALK)], {}, adds_bos=False)
    assert source is not None
    assert notes == []
    for messages in (TALK, TALK[1:], TALK[:2], TALK[1:2]):
        assert render_as_ollama(source, messages) == chat.prompt(messages).text


@settings(max_examples=25)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=3, max_size=3))
def test_any_contents_go_through(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-contents"
    chat = Chat.load(folder if folder.is_dir() else write_model(folder, template=DEFAULT))
    source, _ = checked_template(chat, [], {}, adds_bos=False)
    assert source is not None
    messages = [Message("user", texts[0]), Message("assistant", texts[1]), Message("user", texts[2])]
    assert render_as_ollama(source, messages) == chat.prompt(messages).text


def test_a_template_that_strips_contents_is_told_of(tmp_path: Path) -> None:
    source, (note,) = checked_template(chat_with(tmp_path, STRIPS), [], {}, adds_bos=False)
    assert source is not None
    assert "white space around contents" in note


def test_what_go_cannot_say_gets_no_template(tmp_path: Path) -> None:
    for number, (template, said) in enumerate(((LAST_ONLY, "no exact form"), (DATED, "day's date"))):
        source, (note,) = checked_template(chat_with(tmp_path / str(number), template), [], {}, adds_bos=False)
        assert source is None
        assert said in note
        assert "TEMPLATE" in note
    chat = chat_with(tmp_path / "plain", TEMPLATE)
    prompt = chat.prompt([Message("user", "a"), Message("user", "b")])
    source, (note,) = checked_template(chat, [prompt], {}, adds_bos=False)
    assert source is None, "Ollama joins neighbours of one role"
    assert "comes out otherwise" in note


def test_rows_with_tools_get_no_template(tmp_path: Path) -> None:
    chat = chat_with(tmp_path, "{{ tools | tojson if tools }}" + TEMPLATE)
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}
    source, (note,) = checked_template(chat, [chat.prompt([Message("user", "a")], [tool])], {}, adds_bos=False)
    assert source is None
    assert "offer tools" in note


def test_a_bos_that_llama_cpp_adds_is_not_in_the_template(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", template="<|endoftext|>" + TEMPLATE)
    settings = (folder / "tokenizer_config.json").read_text().replace("{", '{"bos_token": "<|endoftext|>", ', 1)
    (folder / "tokenizer_config.json").write_text(settings)
    chat = Chat.load(folder)
    for adds_bos in (False, True):
        source, _ = checked_template(chat, [chat.prompt(TALK)], {}, adds_bos=adds_bos)
        assert source is not None
        assert source.startswith("<|endoftext|>") is not adds_bos


def test_the_modelfile(tmp_path: Path) -> None:
    text = modelfile(chat_with(tmp_path, TEMPLATE), "it.gguf", "{{ .Prompt }}", {"temperature": 0.0, "top_p": 0.9})
    assert text.splitlines() == [
        "FROM ./it.gguf",
        "# Renders letter by letter what the model was trained on.",
        'TEMPLATE """{{ .Prompt }}"""',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER num_ctx 512",
        "PARAMETER temperature 0",
        "PARAMETER top_p 0.9",
    ]


def real_templates() -> list[str]:
    """Template files of the peer, where it is installed."""
    try:
        found = metadata.files("trl") or ()
    except metadata.PackageNotFoundError:
        return []
    return sorted(str(file.locate()) for file in found if str(file).endswith(".jinja") and "_training" not in str(file))


@pytest.mark.parametrize("path", real_templates(), ids=lambda path: Path(path).stem)
def test_templates_of_real_families(tmp_path: Path, path: str) -> None:
    """Those that write the date cannot be said in Go; all others are, some but for white space around contents."""
    folder = write_model(tmp_path / "model", template=Path(path).read_text())
    settings = (folder / "tokenizer_config.json").read_text().replace("{", '{"bos_token": "<|endoftext|>", ', 1)
    (folder / "tokenizer_config.json").write_text(settings)
    chat = Chat.load(folder)
    source, notes = checked_template(chat, [], {}, adds_bos=False)
    if source is None:
        assert "day's date" in notes[0]
    else:
        assert render_as_ollama(source, TALK[1:]) == chat.prompt(TALK[1:]).text
