"""Model folders for the tests of `chat`: small templates with the structures that exist in the wild, tiny tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sapwood.chat import Chat

CHATML = """{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOOLFUL = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] -%}
<call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</call>
{%- endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

HEADERS = """{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>

{{ m['content'] | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>

{% endif %}"""

BRACKETS = """{{ bos_token }}{% for m in messages -%}
{%- if m.role == 'user' %}[INST] {{ m.content }} [/INST]
{%- elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}
{%- else %}{{ raise_exception('only user and assistant may speak here, not ' + m.role) }}{% endif %}{% endfor %}"""

TWO_ROLES = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}
{%- for m in messages %}
{%- set who = 'model' if m.role == 'assistant' else m.role %}
<start>{{ who }}
{{ m.content | trim }}<end>
{% endfor %}
{%- if add_generation_prompt %}<start>model
{% endif %}"""

EMPTY_THOUGHT = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' -%}
{%- set answer = m.content.split('</think>')[-1].lstrip('\\n') -%}
{%- set thought = m.reasoning_content or '' -%}
{%- if '</think>' in m.content -%}{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}{%- endif -%}
{%- if loop.last -%}
{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + answer }}
{%- else -%}{{ answer }}{%- endif -%}
{%- else -%}{{ m.content }}{%- endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

STUBBORN_THOUGHT = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

PREFILLED = """{{ bos_token }}{% for m in messages -%}
{%- if m.role == 'user' %}<|user|>{{ m.content }}
{%- elif m.role == 'assistant' %}<|assistant|>{{ m.content.split('</think>')[-1] }}<|eos|>
{%- endif %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{{ '<think>\\n' }}{% endif %}"""

TWO_MODES = """{%- for m in messages -%}
{%- if m.role == 'user' %}<|user|>{{ m.content }}
{%- else %}<|assistant|></think>{{ m.content }}<|eos|>{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"""

ENDLESS = """{%- for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""

NO_SYSTEM = """{%- for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "toolful": TOOLFUL,
    "headers": HEADERS,
    "brackets": BRACKETS,
    "two-roles": TWO_ROLES,
    "empty-thought": EMPTY_THOUGHT,
    "prefilled": PREFILLED,
}
ENDS = {"headers": "<|eot|>", "brackets": "<|eos|>", "two-roles": "<end>", "prefilled": "<|eos|>"}
SPECIALS = [
    "<|bos|>",
    "<|eos|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<start>",
    "<end>",
    "<|user|>",
    "<|assistant|>",
]
CORPUS = [
    "Where does sapwood grow? Right below the bark of a tree, in 12 rings.",
    'the sap rises in spring; {"name": "grow"}',
    "  two  spaces\n\nlines",
]


THINK = ("<think>", "</think>")


def byte_level(controls: Sequence[str] = SPECIALS, plain: Sequence[str] = THINK) -> Tokenizer:
    """A tiny byte-level BPE, as most models of today have, that knows these control tokens and these added tokens of plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return _with(tokenizer, controls, plain)


def metaspace(controls: Sequence[str] = SPECIALS, plain: Sequence[str] = THINK) -> Tokenizer:
    """A tiny tokenizer that puts a dummy space before a text, as SentencePiece ones do; unknown letters fall back to bytes."""
    letters = sorted({letter for text in CORPUS for letter in text} | set("[]/INST▁\n<>SY"))
    vocabulary = {"<unk>": 0}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *letters]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "t"), ("▁", "s"), ("a", "p"), ("▁s", "ap")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _with(tokenizer, controls, plain)


def _with(tokenizer: Tokenizer, controls: Sequence[str], plain: Sequence[str]) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


def write_folder(
    path: Path,
    template: str | None,
    *,
    tokenizer: Tokenizer | None = None,
    eos: str = "<|im_end|>",
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """A model folder without weights."""
    path.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level()).save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": eos, "model_max_length": 10**30}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048, **(config or {})}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def load(path: Path, name: str, **more: Any) -> Chat:
    """The chat of one of the templates above."""
    return Chat.load(write_folder(path, TEMPLATES[name], eos=ENDS.get(name, "<|im_end|>"), **more))
