"""The course's chapter 11, section 4 (LoRA): its code with one import changed, from the adapter to the merged model.

    python examples/course_sft_lora.py                      # a small model by name, rows written here
    python examples/course_sft_lora.py rows.jsonl base/     # your rows of messages, and a model's folder

The section's exercise trains deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B on HuggingFaceTB/smoltalk; where a hub can be reached, give
that name as the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.trl import SFTConfig, SFTTrainer  # was: from trl import …

QUESTION = "What does the oak bear?"


def main(dataset: dict[str, list[dict[str, Any]]], model_name: str, output_dir: str = "lora_output", epochs: float = 3) -> str:
    """Train an adapter, load it again, merge it, and ask the merged model a question; its answer."""
    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)

    peft_config = LoraConfig(
        r=6,  # the rank: 4 to 32
        lora_alpha=8,  # usually twice the rank
        lora_dropout=0.05,
        bias="none",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    args = SFTConfig(
        output_dir=output_dir,
        num_train_epochs=epochs,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        optim="adamw_torch_fused",
        learning_rate=2e-3,
        max_grad_norm=0.3,
        warmup_steps=0.03,  # a share of all steps; `warmup_ratio` is taken as well
        lr_scheduler_type="constant_with_warmup",
        logging_steps=10,
        save_strategy="epoch",
        bf16=True,
        report_to="none",
        max_length=512,
        packing=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=dataset["train"],
        peft_config=peft_config,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()

    # merge in the type in which it was trained, and save the tokenizer beside it
    adapted = AutoPeftModelForCausalLM.from_pretrained(output_dir, dtype=torch.bfloat16)
    merged = adapted.merge_and_unload()
    merged_dir = str(Path(output_dir) / "merged")
    merged.save_pretrained(merged_dir)
    AutoTokenizer.from_pretrained(output_dir).save_pretrained(merged_dir)

    pipe = pipeline("text-generation", model=merged, tokenizer=AutoTokenizer.from_pretrained(output_dir))
    answer = pipe([{"role": "user", "content": QUESTION}], max_new_tokens=32, do_sample=False)
    said: str = answer[0]["generated_text"][-1]["content"]
    print(QUESTION, "→", said)
    return said


if __name__ == "__main__":
    from course_sft import read, written_here

    arguments = sys.argv[1:]
    rows = read(Path(arguments[0])) if arguments else written_here()
    main(rows, arguments[1] if len(arguments) > 1 else str(resolve_model(DEFAULT_MODEL)))
