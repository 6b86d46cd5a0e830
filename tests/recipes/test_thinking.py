"""What training needed of the template, a conversation with the trained model sends too."""

from __future__ import annotations

from pathlib import Path

import sapwood
from sapwood.chat import Chat
from sapwood.cli.chat_verb import trained_arguments
from sapwood.data import read
from sapwood.recipes.prepare import DataConfig, prepare
from tiny.folder import TEMPLATE, write_model, write_rows

THOUGHT = "<think>\n\n</think>\n\n"


def test_chat_sends_the_prompt_of_training_where_thinking_was_switched_off(tmp_path: Path) -> None:
    """Such a template writes an empty thought before an answer: training switches thinking off to have it in the prompt."""
    answer = "{{ '<|im_start|>assistant\n' }}"
    template = TEMPLATE.replace(answer, answer + f"{{% if enable_thinking is false %}}{{{{ {THOUGHT!r} }}}}{{% endif %}}")
    template = template.replace(
        "'\n' + message['content']", f"'\n' + ({THOUGHT!r} if message['role'] == 'assistant' else '') + message['content']"
    )
    file, model = write_rows(tmp_path / "my.jsonl", 30), write_model(tmp_path / "model", template=template)
    sapwood.sft(file, model=model, out=tmp_path / "run", dtype="fp32", budget=512, shots=(), max_new_tokens=2, max_steps=1, quiet=True)
    assert trained_arguments(tmp_path / "run") == {"enable_thinking": False}
    assert trained_arguments(model) == {}
    chat = Chat.load(model)
    prepared = prepare(read([file]), chat, DataConfig(held_out=0))
    asked = chat.prompt(prepared.train[0].messages[:-1], (), trained_arguments(tmp_path / "run"))
    assert list(asked.ids) == prepared.examples[0].rows[0].prompt_T.tolist()
