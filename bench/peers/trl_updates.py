"""TRL's DPOTrainer and GRPOTrainer, asked for timed updates, and for whole steps of reinforcement learning.

load    the model, and what is trained: `preference`, `policy` (given answers) or `reinforcement` (answers that TRL samples)
train   a fresh adapter with the values that both begin with, the trainer around it, its steps; seconds of those behind the first

The trainers are TRL's own, and so is all that they do in a step. Changed of their defaults, and why: `use_cpu` (where a CPU
is measured), rows in the order of the file, a constant rate and AdamW's numbers (both must take the same steps), a line of the log
for each step, no report, bar or checkpoint. Rows come as token ids, so the two places where TRL makes them of text are overridden. The
adapter is a new one, which TRL wraps itself: its reference is then the model with adapters off. Given answers come through `rollout_func`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset  # type: ignore[import-not-found]
from peft import LoraConfig, PeftConfig, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from bench.contestant import Request, serve, versions_of
from bench.reward import reward_of


class _Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """When each step ended, and what each phase took of it; timed steps that take longer than `give_up` seconds together end a training."""

    def __init__(self, give_up: float | None = None) -> None:
        self.give_up = give_up
        self.ends: list[float] = []
        self.phases: list[Counter[str]] = []
        self.sampled: list[int] = []
        self.trained: list[int] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside counts for `name`, and for nothing around it."""
        begin, inside = time.perf_counter(), sum(self.phases[-1].values())
        yield
        self.phases[-1][name] += time.perf_counter() - begin - (sum(self.phases[-1].values()) - inside)

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.phases.append(Counter())

    def on_pre_optimizer_step(self, *given: Any, **named: Any) -> None:
        self._update = time.perf_counter()

    def on_optimizer_step(self, *given: Any, **named: Any) -> None:
        self.phases[-1]["step"] += time.perf_counter() - self._update

    def on_step_end(self, arguments: Any, state: Any, control: Any, **named: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if self.give_up is not None and self.ends[-1] - self.ends[0] > self.give_up:
            control.should_training_stop = True


class _Preference(DPOTrainer):  # type: ignore[misc]
    """With rows that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *given: Any, **named: Any) -> Any:
        return dataset


class _Policy(GRPOTrainer):  # type: ignore[misc]
    """With prompts that are names of token ids, and a clock around its phases."""

    clock: _Clock
    ids: dict[str, list[int]]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.ids[name] for name in prompts], None, {}

    def _generate(self, *given: Any) -> Any:
        with self.clock.phase("sample"):
            found = super()._generate(*given)
        self.clock.sampled.append(sum(map(len, found[1])))
        return found

    def _calculate_rewards(self, *given: Any) -> Any:
        with self.clock.phase("reward"):
            return super()._calculate_rewards(*given)

    def _generate_and_score_completions(self, *given: Any) -> Any:
        with self.clock.phase("log-probs"):
            found = super()._generate_and_score_completions(*given)
        self.clock.trained.append(int(found["completion_mask"].sum()))
        return found

    def training_step(self, *given: Any, **named: Any) -> Any:
        with self.clock.phase("forward and backward"):
            return super().training_step(*given, **named)


class _Training:
    """What `load` leaves for `train`."""

    def __init__(self, request: Request, base: Any) -> None:
        self.request, self.base = request, base
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.steps = json.loads(Path(request["rows"]).read_text())["steps"]
        self.adapter: Any = PeftConfig.from_pretrained(request["adapter"])
        assert isinstance(self.adapter, LoraConfig)
        self.adapter.inference_mode = False

    def trainer(self, steps: int, clock: _Clock) -> Any:
        """Of the first `steps` steps, around a fresh adapter with the values of the start."""
        asked = self.request
        arguments = {
            "output_dir": asked["out"],
            "max_steps": steps,
            "per_device_train_batch_size": asked["rows_a_pass"],
            "gradient_accumulation_steps": asked["accumulation"],
            "gradient_checkpointing": asked["checkpointing"],
            "bf16": asked["precision"] == "autocast",
            "learning_rate": asked["learning_rate"],
            "lr_scheduler_type": "constant",
            "adam_beta2": asked["beta2"],
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": asked.get("device", "cpu") == "cpu",
            "use_liger_kernel": asked.get("liger", False),
            "report_to": [],
            "disable_tqdm": True,
        }
        chosen = self.steps[:steps]
        trainer = self._preference(chosen, arguments) if asked["objective"] == "preference" else self._policy(chosen, arguments, clock)
        trainer.add_callback(clock)
        set_peft_model_state_dict(trainer.model, load_peft_weights(asked["adapter"], device="cpu"))
        return trainer

    def _preference(self, steps: Any, arguments: dict[str, Any]) -> Any:
        rows = [
            {"prompt_ids": one["prompt"], "chosen_ids": one["completion"], "rejected_ids": other["completion"]}
            for one, other in itertools.chain(*steps)
        ]
        config = DPOConfig(max_length=None, train_sampling_strategy="sequential", **arguments)
        return _Preference(
            model=self.base, args=config, train_dataset=Dataset.from_list(rows), processing_class=self.tokenizer, peft_config=self.adapter
        )

    def _policy(self, steps: Any, arguments: dict[str, Any], clock: _Clock) -> Any:
        groups = {str(place): group for place, group in enumerate(itertools.chain(*steps))}
        longest = len(steps[0][0][0]["completion"])
        config = GRPOConfig(
            shuffle_dataset=False,
            beta=self.request["kl"],
            num_generations=len(steps[0][0]),
            steps_per_generation=self.request["accumulation"],
            max_completion_length=longest,
            generation_kwargs={"min_new_tokens": longest},
            **arguments,
        )
        names = Dataset.from_list([{"prompt": name} for name in groups])
        given = self.request["objective"] == "policy"
        trainer = _Policy(
            model=self.base,
            reward_funcs=[_rewards],
            args=config,
            train_dataset=names,
            processing_class=self.tokenizer,
            peft_config=self.adapter,
            rollout_func=(lambda prompts, _: _answers(groups, prompts)) if given else None,
        )
        trainer.clock, trainer.ids = clock, {name: group[0]["prompt"] for name, group in groups.items()}
        return trainer


def _rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [reward_of(ids) for ids in completion_ids]


def _answers(groups: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
    """The given answers of prompts, each of which comes once for each answer of its group, in a row."""
    rows = [groups[name][place % len(groups[name])] for place, name in enumerate(prompts)]
    return {"prompt_ids": [row["prompt"] for row in rows], "completion_ids": [row["completion"] for row in rows], "logprobs": None}


_now: list[_Training] = []


def load(request: Request) -> dict[str, Any]:
    """Everything in front of the first step."""
    _now.clear()
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    kind = torch.bfloat16 if request["precision"] == "bf16" else torch.float32
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=kind)
    now = _Training(request, base)
    trained = now.trainer(1, _Clock()).model
    adapters = {str(value.dtype).removeprefix("torch.") for value in trained.parameters() if value.requires_grad}
    now.base = trained.unload()
    _now.append(now)
    computes = {"bf16": "bfloat16", "autocast": "bfloat16", "fp32": "float32"}[request["precision"]]
    return {"dtype": computes, "adapters": sorted(adapters), "threads": torch.get_num_threads()}


def train(request: Request) -> dict[str, Any]:
    """All steps from the adapter's start, or as many as `give_up` seconds hold."""
    now, clock = _now[0], _Clock(request.get("give_up"))
    trainer = now.trainer(request["steps"], clock)
    trainer.train()
    now.base = trainer.model.unload()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    timed = len(clock.ends) - 1
    return {
        "seconds": [end - begin for begin, end in itertools.pairwise(clock.ends)],
        "losses": [line["loss"] for line in lines],
        "norms": [float(line["grad_norm"]) for line in lines],
        "phases": [dict(one) for one in clock.phases[-timed:]],
        "sampled_tokens": clock.sampled[-timed:],
        "trained_tokens": clock.trained[-timed:],
    }


if __name__ == "__main__":
    serve({"load": load, "train": train}, versions_of(["trl", "transformers", "peft", "datasets", "accelerate", "torch"]))
