"""TRL's SFTTrainer, trained for real and asked for its losses.

train   prepare the rows with TRL's own code, write down the ids and the mask that came out, train one epoch in the order of
        the file, evaluate. Everything that is not asked for is TRL's default, but for what equal numbers need: fp32, nothing
        recomputed or cut, a line of the log for every step, rows in order, and all held-out rows in one batch (its
        evaluation means over batches, not over tokens).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import load_dataset  # type: ignore[import-not-found]
from peft import PeftModel
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench.contestant import Request, serve, versions_of

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{- message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""ChatML with the marks that TRL's mask of assistant turns needs, around what it trains: the end of turn and the newline behind it."""


def train(request: Request) -> dict[str, Any]:
    """Train on `train`, evaluate on `held_out`; the rows of tokens go to `rows`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
    tokenizer.chat_template = TEMPLATE
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    if request["adapter"] is not None:
        model = PeftModel.from_pretrained(model, request["adapter"], is_trainable=True)
    data = load_dataset("json", data_files={"train": request["train"], "test": request["held_out"]}, cache_dir=request["cache"])
    arguments = SFTConfig(
        output_dir=str(Path(request["cache"]) / "out"),
        per_device_train_batch_size=request["batch"],
        per_device_eval_batch_size=len(data["test"]),
        num_train_epochs=1,
        learning_rate=request["learning_rate"],
        seed=request["seed"],
        max_length=None,
        assistant_only_loss=request["turns"] > 1,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=data["train"], eval_dataset=data["test"], processing_class=tokenizer)
    prepared = {"train": trainer.train_dataset, "held_out": trainer.eval_dataset}
    Path(request["rows"]).write_text(json.dumps({name: [_row(row) for row in dataset] for name, dataset in prepared.items()}))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "held_out_before": before, "held_out_loss": trainer.evaluate()["eval_loss"]}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {column: row[column] for column in ("input_ids", "labels", "completion_mask", "assistant_masks") if row.get(column) is not None}


if __name__ == "__main__":
    serve({"train": train}, versions_of(["trl", "transformers", "peft", "datasets", "accelerate", "torch"]))
