"""TRL's SFTTrainer, asked for timed steps.

load    the model, the adapter that both begin with, the trainer around them
train   put the adapter back to its start, let the trainer train its steps, give the seconds of those behind the first

The trainer is TRL's own, and so is all that it does in a step. Changed of its defaults, and why: `use_cpu` (where a CPU
is measured), `max_length=None` (nothing may be cut), rows in the order of the file, a constant rate and AdamW's numbers (both
must take the same steps), a line of the log for each step (its loss), no report, bar or checkpoint. Rows come as token ids with
labels, which it takes as they are. What a tuned setting changes besides is in `bench.sweep`.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset  # type: ignore[import-not-found]
from peft import PeftModel
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench.contestant import Request, serve, versions_of


def wait() -> None:
    """Until a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_bytes() -> int:
    """The most that torch has held on a GPU; 0 without one."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0


class _Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """When each step ended; a training whose timed steps take longer than `give_up` seconds together ends there."""

    def __init__(self, give_up: float | None) -> None:
        self.ends: list[float] = []
        self.give_up = give_up

    def on_step_end(self, arguments: Any, state: Any, control: Any, **named: Any) -> None:
        wait()
        self.ends.append(time.perf_counter())
        if self.give_up is not None and self.ends[-1] - self.ends[0] > self.give_up:
            control.should_training_stop = True


class _Training:
    """What `load` leaves for `train`."""

    def __init__(self, request: Request, model: Any) -> None:
        self.request, self.model = request, model
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(request["model"])
        self.steps = json.loads(Path(request["rows"]).read_text())["peer"]
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.start = {name: value.detach().clone() for name, value in self.trained.items()}

    def trainer(self, steps: int, clock: _Clock) -> SFTTrainer:
        asked = self.request
        arguments = SFTConfig(
            output_dir=asked["out"],
            max_steps=steps,
            per_device_train_batch_size=asked["rows_a_pass"],
            gradient_accumulation_steps=asked["accumulation"],
            gradient_checkpointing=asked["checkpointing"],
            bf16=asked["precision"] == "autocast",
            padding_free=asked["flat"],
            max_length=None,
            train_sampling_strategy="sequential",
            learning_rate=asked["learning_rate"],
            lr_scheduler_type="constant",
            adam_beta2=asked["beta2"],
            logging_steps=1,
            save_strategy="no",
            use_cpu=asked["device"] == "cpu",
            use_liger_kernel=asked["liger"],
            report_to=[],
            disable_tqdm=True,
        )
        rows = Dataset.from_list(list(itertools.chain(*self.steps[:steps])))
        return SFTTrainer(model=self.model, args=arguments, train_dataset=rows, processing_class=self.tokenizer, callbacks=[clock])


_now: list[_Training] = []


def load(request: Request) -> dict[str, Any]:
    """Everything in front of the first step."""
    _now.clear()
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    kind = torch.bfloat16 if request["precision"] == "bf16" else torch.float32
    attention = {"attn_implementation": request["attention"]} if request["attention"] else {}
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(request["model"], dtype=kind, **attention).to(request["device"])
    _now.append(_Training(request, PeftModel.from_pretrained(base, request["adapter"], is_trainable=True)))
    adapters = {str(value.dtype).removeprefix("torch.") for value in _now[0].trained.values()}
    computes = {"bf16": "bfloat16", "autocast": "bfloat16", "fp32": "float32"}[request["precision"]]
    return {"dtype": computes, "adapters": sorted(adapters), "threads": torch.get_num_threads()}


def train(request: Request) -> dict[str, Any]:
    """All steps from the adapter's start, or as many as `give_up` seconds hold."""
    now, clock = _now[0], _Clock(request.get("give_up"))
    with torch.no_grad():
        for name, value in now.trained.items():
            value.copy_(now.start[name])
    trainer = now.trainer(request["steps"], clock)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = [end - begin for begin, end in itertools.pairwise(clock.ends)]
    return {"seconds": seconds, "losses": losses, "gpu_bytes": gpu_bytes()}


if __name__ == "__main__":
    serve({"load": load, "train": train}, versions_of(["trl", "transformers", "peft", "datasets", "accelerate", "torch"]))
