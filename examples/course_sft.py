"""The course's chapter 11, section 3 (supervised fine-tuning): its code with one import changed.

    python examples/course_sft.py                      # a small model by name, rows written here
    python examples/course_sft.py rows.jsonl base/     # your rows of messages, and a model's folder

The section trains SmolLM2-135M on HuggingFaceTB/smoltalk. Where a hub can be reached, these are its own two lines:

    dataset = load_dataset("HuggingFaceTB/smoltalk", "everyday-conversations")
    model_name = "HuggingFaceTB/SmolLM2-135M"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.trl import SFTConfig, SFTTrainer, setup_chat_format  # was: from trl import …

TREES = {"oak": "acorns", "pine": "cones", "beech": "nuts", "apple tree": "apples", "maple": "keys", "cherry tree": "cherries"}
FORMS = ("What does the {} bear?", "Which fruit has the {}?", "Name what grows on the {}.", "What falls from the {} in autumn?")


def written_here() -> dict[str, list[dict[str, Any]]]:
    """A few conversations, as `load_dataset` would give them: rows with `messages`, in a train and a test split."""
    rows = [
        {"messages": [{"role": "user", "content": form.format(tree)}, {"role": "assistant", "content": f"The {tree} bears {fruit}."}]}
        for form in FORMS
        for tree, fruit in TREES.items()
    ]
    return {"train": rows[:-6], "test": rows[-6:]}


def read(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The same of a file."""
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    held_out = max(1, len(rows) // 10)
    return {"train": rows[held_out:], "test": rows[:held_out]}


def main(dataset: dict[str, list[dict[str, Any]]], model_name: str, output_dir: str = "sft_output", max_steps: int = 20) -> SFTTrainer:
    """Train all weights, and look at the losses as the section asks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(model_name).to(device)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    if tokenizer.chat_template is None:  # a base model: the section puts ChatML onto it
        model, tokenizer = setup_chat_format(model=model, tokenizer=tokenizer)

    training_args = SFTConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        per_device_train_batch_size=4,
        learning_rate=5e-5,
        logging_steps=5,
        save_steps=100,
        eval_strategy="steps",
        eval_steps=10,
    )
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    for line in trainer.state.log_history:
        print({name: round(value, 5) for name, value in line.items()})
    return trainer


if __name__ == "__main__":
    arguments = sys.argv[1:]
    rows = read(Path(arguments[0])) if arguments else written_here()
    main(rows, arguments[1] if len(arguments) > 1 else str(resolve_model(DEFAULT_MODEL)))
