"""Planted faults: whatever harm is put into a good template, the doctor names it, and says that it cannot be trained so."""

from __future__ import annotations

import pytest
from template_families import family_of, folder, templates

from sapwood.chat import Chat, examine
from sapwood.chat.doctor.diagnosis import diagnose

GOOD = ("qwen2", "qwen2_5", "qwen3", "llama3_1", "phi3", "smollm2", "mistral_v7_tekken", "deepseek_r1_distill", "gemma3", "glm4moe")
"""Templates of many makes."""
_REBUILT = (
    "{{%- set planted = namespace(messages=[]) -%}}{{%- for m in messages -%}}{{%- set planted.messages = planted.messages + [{entry}] -%}}"
    "{{%- endfor -%}}{{%- set messages = planted.messages -%}}"
)
_TEXT = "m.content | selectattr('text', 'defined') | map(attribute='text') | join"
_ENTRY = "dict(m, content=(m.content | {f}) if m.content is string else [dict(type='text', text={text} | {f})])"
TRIMMED, LOWERED = (_REBUILT.format(entry=_ENTRY.format(f=f, text=f"({_TEXT})")) for f in ("trim", "lower"))
NO_SYSTEM = "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}"
NO_MIDDLE = "{%- if messages | length > 4 -%}{%- set messages = messages[:-4] + messages[-2:] -%}{%- endif -%}"


def findings(name: str, source: str | None = None) -> dict[str, str]:
    """Severity by kind; the gravest where a kind is found twice."""
    found: dict[str, str] = {}
    for finding in examine(Chat.load(folder(name, source))):
        if found.get(finding.kind) != "problem":
            found[finding.kind] = finding.severity
    return found


def test_many_makes_are_at_hand() -> None:
    assert len(GOOD) >= 7


@pytest.mark.parametrize("name", GOOD)
def test_a_dropped_middle_turn(name: str) -> None:
    assert findings(name, NO_MIDDLE + templates()[name]).get("message-dropped") == "problem"
    assert "message-dropped" not in findings(name)


@pytest.mark.parametrize("name", GOOD)
def test_lower_case(name: str) -> None:
    assert findings(name, LOWERED + templates()[name]).get("text-changed") == "problem"
    assert "text-changed" not in findings(name)


@pytest.mark.parametrize("name", GOOD)
def test_a_dropped_system_message(name: str) -> None:
    planted, plain = findings(name, NO_SYSTEM + templates()[name]), findings(name)
    if "system-refused" in plain:
        return  # there was none to drop
    assert planted.get("system-dropped") == "problem"
    assert "system-dropped" not in plain
    assert "system" not in planted, "the doctor does not say in one breath that it reaches the prompt"


@pytest.mark.parametrize("name", GOOD)
def test_trimming_is_a_note_not_a_problem(name: str) -> None:
    assert findings(name, TRIMMED + templates()[name]).get("text-trimmed") == "note"


@pytest.mark.parametrize("name", GOOD)
def test_a_doubled_bos(name: str) -> None:
    bos = family_of(name).bos
    if bos is None:
        return  # the model has none
    source = templates()[name]
    twice = "{{- bos_token }}" + ("" if "bos_token" in source or bos in source else "{{- bos_token }}") + source
    assert findings(name, twice).get("bos-doubled") == "problem"
    assert "bos-doubled" not in findings(name)


@pytest.mark.parametrize(
    ("name", "ends"), [("qwen2", "<|im_end|>"), ("llama3_1", "<|eot_id|>"), ("phi3", "<|end|>"), ("smollm2", "<|im_end|>")]
)
def test_a_turn_that_never_ends(name: str, ends: str) -> None:
    chat = Chat.load(folder(name, templates()[name].replace(ends, "").replace("eos_token", "''")))
    found = examine(chat)
    assert [finding.severity for finding in found if finding.kind == "no-stop"] == ["problem"]
    diagnosis = diagnose(found, None)
    assert diagnosis.verdict == "not trainable"
    assert diagnosis.exit_code == 1
    assert "no-stop" not in findings(name)
