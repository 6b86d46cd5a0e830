"""Sapwood's training behind TRL's face, asked for its losses.

adapter   draw an adapter's initial values and save them, for both contestants to begin with
train     train the rows of tokens that TRL made, with the mask that TRL made, through `sapwood.trl`; evaluate
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from bench.contestant import Request, serve, versions_of
from sapwood.model import LoraConfig, add_lora, load_model, save_adapter
from sapwood.train.order import step_examples
from sapwood.trl import SFTConfig, SFTTrainer


def adapter(request: Request) -> dict[str, Any]:
    """Save a fresh adapter into `adapter`."""
    save_adapter(
        add_lora(load_model(Path(request["model"]), "fp32", device="cpu"), LoraConfig(), request["seed"]), Path(request["adapter"])
    )
    return {}


def order(request: Request) -> dict[str, Any]:
    """The order in which the epoch's `rows` rows are trained."""
    steps = range(-(-request["rows"] // request["batch"]))
    places = [
        int(place)
        for step in steps
        for place in step_examples(step, num_examples=request["rows"], batch=request["batch"], epochs=1, seed=request["seed"])
    ]
    return {"order": places}


def train(request: Request) -> dict[str, Any]:
    """Train the rows of tokens in `rows` in the order in which they stand there, whatever the seed would make of them."""
    given = json.loads(Path(request["rows"]).read_text())
    asked = order({**request, "rows": len(given["train"])})["order"]
    shuffled: list[Any] = [None] * len(asked)
    for row, place in zip(given["train"], asked, strict=True):
        shuffled[place] = row
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    if request["adapter"] is not None:
        model = peft.PeftModel.from_pretrained(model, request["adapter"], is_trainable=True)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=request["out"],
            per_device_train_batch_size=request["batch"],
            num_train_epochs=1,
            learning_rate=request["learning_rate"],
            seed=request["seed"],
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=shuffled,
        eval_dataset=given["held_out"],
        processing_class=transformers.AutoTokenizer.from_pretrained(request["model"]),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "held_out_before": before, "held_out_loss": trainer.evaluate()["eval_loss"]}


if __name__ == "__main__":
    serve({"adapter": adapter, "train": train}, versions_of(["sapwood", "transformers", "peft", "torch"]))
