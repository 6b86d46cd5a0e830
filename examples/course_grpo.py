"""The course's chapter 12, sections 4 and 5 (GRPO): its code with one import changed, and rewards that read what the model writes.

    python examples/course_grpo.py            # a small model by name, questions written here
    python examples/course_grpo.py base/      # a model's folder

The section's exercise shortens summaries of mlabonne/smoltldr with HuggingFaceTB/SmolLM-135M-Instruct; where a hub can be reached, give
`load_dataset("mlabonne/smoltldr")["train"]` as the rows and that name as the model.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from peft import LoraConfig

from sapwood.assets import DEFAULT_MODEL, resolve_model
from sapwood.trl import GRPOConfig, GRPOTrainer  # was: from trl import …

IDEAL = 12
"""Words of an answer that earns most."""


def length_reward(completions: list[Any], **columns: Any) -> list[float]:
    """Nearer to the ideal length is better: 1 at it, 0 where it is missed by its own length."""
    return [max(0.0, 1 - abs(len(text_of(one).split()) - IDEAL) / IDEAL) for one in completions]


def answer_reward(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """1 for an answer whose last number is that of the column `answer`; commas of thousands do not count."""
    numbers = [re.findall(r"-?\d+(?:\.\d+)?", text_of(one).replace(",", "")) for one in completions]
    return [float(bool(found) and found[-1] == right) for found, right in zip(numbers, answer, strict=True)]


def format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """1 for a thought and an answer in their tags; DOTALL, because both have line breaks; a half for one of the two."""
    whole = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
    texts = [text_of(one) for one in completions]
    return [1.0 if whole.search(text) else 0.5 if "</think>" in text or "</answer>" in text else 0.0 for text in texts]


def text_of(completion: Any) -> str:
    """A completion's text: it is a list of one message where the prompts are messages, as in TRL."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def questions(count: int = 32) -> list[dict[str, Any]]:
    """Sums to ask, each with what is right in a column of its own."""
    return [
        {"prompt": [{"role": "user", "content": f"What is {n} + {2 * n + 1}? Think first."}], "answer": str(3 * n + 1)}
        for n in range(count)
    ]


def main(dataset: list[dict[str, Any]], model_name: str, output_dir: str = "grpo_output", **more: Any) -> Any:
    """Train an adapter on three rewards; the trainer, whose state has the history."""
    training_args = GRPOConfig(
        output_dir=output_dir,
        learning_rate=1e-5,
        per_device_train_batch_size=8,  # answers, not prompts
        gradient_accumulation_steps=2,
        num_generations=8,
        max_prompt_length=512,
        max_completion_length=96,
        num_train_epochs=1,
        logging_steps=1,
        report_to="none",
        reward_weights=[0.2, 1.0, 0.2],
        **more,
    )
    trainer = GRPOTrainer(
        model=model_name,
        reward_funcs=[length_reward, answer_reward, format_reward],
        args=training_args,
        train_dataset=dataset,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    for line in trainer.state.log_history:
        if "reward" in line:
            print(f"step {line['step']}: reward {line['reward']:.3f}, spread {line['reward_std']:.3f}")
    return trainer


if __name__ == "__main__":
    main(questions(), sys.argv[1] if len(sys.argv) > 1 else str(resolve_model(DEFAULT_MODEL)))
