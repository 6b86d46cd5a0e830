"""The course's preference tuning (DPO): its code with one import changed.

    python examples/course_dpo.py             # a small model by name, pairs written here
    python examples/course_dpo.py base/       # a model's folder

Rows hold a prompt, the answer that people preferred, and the one that they did not; trl-lib/ultrafeedback_binarized has this form.
"""

from __future__ import annotations

import sys
from typing import Any

from peft import LoraConfig

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.trl import DPOConfig, DPOTrainer  # was: from trl import …


def pairs(count: int = 40) -> list[dict[str, Any]]:
    """Short answers are preferred to talkative ones."""
    trees = ("oak", "beech", "birch", "lime")
    return [
        {
            "prompt": [{"role": "user", "content": f"Is the {trees[n % 4]} of row {n} a tree?"}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": f"What a question! One could say a lot about the {trees[n % 4]}."}],
        }
        for n in range(count)
    ]


def main(dataset: list[dict[str, Any]], model_name: str, output_dir: str = "dpo_output", **more: Any) -> Any:
    """Train an adapter on pairs; the trainer, whose state has the history."""
    held_out = max(1, len(dataset) // 5)
    training_args = DPOConfig(
        output_dir=output_dir,
        beta=0.1,  # 0.1 to 0.5: larger stays nearer to the reference
        learning_rate=5e-6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_length=1024,
        max_prompt_length=512,  # a former option, which is answered with a line
        num_train_epochs=1,
        logging_steps=1,
        eval_strategy="epoch",
        report_to="none",
        **more,
    )
    trainer = DPOTrainer(
        model=model_name,
        ref_model=None,  # the reference is the model as it was before step 1
        args=training_args,
        train_dataset=dataset[held_out:],
        eval_dataset=dataset[:held_out],
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    for line in trainer.state.log_history:
        if "eval_loss" in line:
            print(f"step {line['step']}: held-out loss {line['eval_loss']:.3f}, right {line['eval_rewards/accuracies']:.0%}")
    return trainer


if __name__ == "__main__":
    main(pairs(), sys.argv[1] if len(sys.argv) > 1 else str(resolve_model(DEFAULT_MODEL)))
