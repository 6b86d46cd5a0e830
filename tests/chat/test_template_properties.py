"""Every template family at hand: what is trained is right or refused by name, and planted faults are found."""

from __future__ import annotations

import pytest
from template_conversations import TOOLS
from template_families import WRITTEN, folder, templates
from template_table import PAGE, findings, page

from sapwood.chat import Chat, faults
from sapwood.errors import TemplateError
from sapwood.records import Conversation, Message, ToolCall

TAKE = "{%- set ns_ = namespace(taken=[]) -%}{%- for m in messages -%}"
GIVE = "{%- endfor -%}{%- set messages = ns_.taken -%}"
FAULTS = {
    "system-dropped": "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list -%}",
    "message-dropped": "{%- if messages | length > 5 -%}{%- set messages = messages[:-4] + messages[-2:] -%}{%- endif -%}",
    "text-trimmed": TAKE + "{%- set ns_.taken = ns_.taken + [dict(m, content=m.content | trim)] -%}" + GIVE,
    "text-changed": TAKE + "{%- set ns_.taken = ns_.taken + [dict(m, content=m.content | lower)] -%}" + GIVE,
}
"""What stands before a good template to plant a fault."""
GOOD = ("qwen2_5", "qwen3", "smollm2", "phi3", "cohere2", "lfm2", "mistral_v7_tekken", "deepseek_r1")
"""Templates that carry every text letter for letter."""
ENDS = {"qwen2_5": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3_5": "<|end|>", "cohere": "<|END_OF_TURN_TOKEN|>"}
WITH_BOS = ("llama3", "gemma", "cohere", "mistral_v7_tekken", "deepseek_r1_distill")


def kinds(name: str, source: str | None = None) -> set[str]:
    return {fault.kind for fault in faults(Chat.load(folder(name, source)))}


@pytest.mark.parametrize("name", sorted(templates()))
def test_what_is_trained_is_right(name: str) -> None:
    found = findings(name)
    assert found.failures == []
    assert found.turns >= 10


def test_every_family_is_there() -> None:
    names = set(templates())
    assert len(names) >= 90
    assert names > {*WRITTEN, "qwen3_5_think", "llama3_1", "gemma4_v5", "gptoss", "glm4moe", "mistral_v1_spm", "mistral_v15_tekken_think"}


def test_the_page_is_what_the_run_makes() -> None:
    text = page()
    assert "| fails" not in text
    assert PAGE.read_text(encoding="utf-8") == text, "write it anew: python tests/chat/template_table.py"


@pytest.mark.parametrize("name", GOOD)
def test_good_templates_have_no_fault(name: str) -> None:
    assert kinds(name) == set()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", GOOD)
def test_a_planted_fault_is_found(name: str, fault: str) -> None:
    assert fault in kinds(name, FAULTS[fault] + templates()[name])


@pytest.mark.parametrize("reasoning", ["i", "im_end", "n"])
def test_short_reasoning_is_not_taken_for_a_part_of_a_control_token(reasoning: str) -> None:
    turns = (Message("user", "Where?"), Message("assistant", "Below.", reasoning=reasoning))
    with pytest.raises(TemplateError, match="does not render this turn's `reasoning`"):
        Chat.load(folder("qwen2_5")).turns(Conversation(turns))
    assert Chat.load(folder("qwen3")).turns(Conversation(turns))[0].text == f"<think>\n{reasoning}\n</think>\n\nBelow.<|im_end|>"


def test_a_short_text_beside_a_call_is_not_taken_for_a_part_of_the_call() -> None:
    call = Message("assistant", "}", tool_calls=(ToolCall("find_tree", {"kind": "oak"}, "a1b2c3d4e"),))
    conversation = Conversation((Message("user", "Where?"), call), TOOLS)
    with pytest.raises(TemplateError, match="content beside its tool calls: '}' is not in the rendered turn"):
        Chat.load(folder("llama3_2")).turns(conversation)
    assert Chat.load(folder("qwen2_5")).turns(conversation)[0].text.startswith("}\n<tool_call>")


def test_a_run_tells_what_a_template_spoils() -> None:
    assert Chat.load(folder("qwen2_5")).warnings == ()
    of_system, of_others = Chat.load(folder("qwen2_5", FAULTS["text-changed"] + templates()["qwen2_5"])).warnings
    assert "rewrites the text of system messages" in of_system
    assert "rewrites the text of assistant and user messages" in of_others
    assert "--template FILE" in of_others


REFUSED = {
    "system-dropped": r"drops message 1 \(system\)",
    "message-dropped": r"drops message \d \(user\)|not render this turn as a continuation",
    "text-changed": "drops or rewrites this turn's content",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [name for name in GOOD if name != "deepseek_r1"])
def test_a_row_that_meets_a_planted_fault_is_refused_or_only_trimmed(name: str, fault: str) -> None:
    asked = ("Where does Sapwood grow?", "And what of Heartwood?", "What of a Palm tree?", "And of a Bamboo?")
    told = (" Right below the Bark. ", " Inside of all the Rings. ", " It has None of that. ", " That is a Grass. ")
    messages = [Message("system", "Speak of Trees.")]
    for question, answer in zip(asked, told, strict=True):
        messages += [Message("user", question), Message("assistant", answer)]
    if fault != "system-dropped":
        messages = messages[1:]
    chat = Chat.load(folder(name, FAULTS[fault] + templates()[name]))
    if fault in REFUSED:
        with pytest.raises(TemplateError, match=REFUSED[fault]):
            chat.turns(Conversation(tuple(messages)))
    else:
        turns = chat.turns(Conversation(tuple(messages)))
        assert all(answer.strip() in turn.text and answer not in turn.text for turn, answer in zip(turns, told, strict=True))


@pytest.mark.parametrize("name", ENDS)
def test_a_turn_without_end_is_found(name: str) -> None:
    assert "no-stop" not in kinds(name)
    assert "no-stop" in kinds(name, templates()[name].replace(ENDS[name], "").replace("{{ eos_token }}", ""))


@pytest.mark.parametrize("name", WITH_BOS)
def test_a_doubled_bos_is_found(name: str) -> None:
    assert "bos-doubled" not in kinds(name)
    assert "bos-doubled" in kinds(name, "{{ bos_token }}" + templates()[name])
