"""One sitting of a run, to be started in a process of its own and killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from sapwood.model import LoraConfig
from sapwood.train import OptimConfig, SftConfig
from train.tiny_training import random_examples, train, trained_steps

STEPS = 36
CONFIG = SftConfig(
    batch=3, max_steps=STEPS, save_every=2, eval_every=7, seed=5, budget=120, lora=LoraConfig(r=4), optim=OptimConfig(lr=2e-3)
)


def sitting(folder: Path, said: Path) -> None:
    """Start or continue the run; what it says is appended to a file."""
    torch.set_num_threads(1)

    def say(sentence: str) -> None:
        with said.open("a") as file:
            file.write(sentence + "\n")

    train(folder, CONFIG, examples=random_examples(20), held_out=random_examples(3, seed=8), say=say)


def start(folder: Path) -> BaseProcess:
    """A process that sits at the run. It forks from one that has imported everything, and has never trained."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=sitting, args=(folder, folder.with_suffix(".said")))
    process.start()
    return process


def kill_after(process: BaseProcess, folder: Path, step: int, pause: float) -> bool:
    """kill -9 once `step` stands in the metrics and `pause` seconds more have gone. False: it had ended by itself."""
    while process.is_alive() and last_step(folder) < step:
        time.sleep(0.004)
    time.sleep(pause)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def last_step(folder: Path) -> int:
    """The latest step that the metrics speak of."""
    return max((record["step"] for record in trained_steps(folder)), default=0)
