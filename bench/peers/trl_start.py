"""What a user of TRL writes: a script that trains a file of conversations with LoRA. It says so when its first step has ended.

python -m bench.peers.trl_start MODEL ROWS.jsonl OUT
"""

from __future__ import annotations

import os
import sys
from typing import Any

import transformers
from datasets import load_dataset  # type: ignore[import-not-found]
from peft import LoraConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # standard output is for the one word below


class _Told(transformers.TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, *given: Any, **named: Any) -> None:
        print("step", file=out, flush=True)


model, rows, folder = sys.argv[1:]
arguments = SFTConfig(
    output_dir=folder, max_steps=4, per_device_train_batch_size=8, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
)
trainer = SFTTrainer(
    model=model,
    args=arguments,
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[_Told()],
)
trainer.train()
