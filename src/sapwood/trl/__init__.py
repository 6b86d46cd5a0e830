"""The drop-in face: code written for TRL's trainers runs with one import changed.

    from sapwood.trl import SFTConfig, SFTTrainer, DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

In: TRL's names, of this and of former versions. Out: Sapwood's own loops, their ledger, rehearsal and run folder. What
cannot be honoured is refused by name and nothing is accepted and ignored; docs/from-trl.md has the whole list. Left out on
purpose: TRL's other trainers, callbacks, and its command line.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

from sapwood.config import did_you_mean
from sapwood.errors import ConfigError
from sapwood.trl.config import SFTConfig
from sapwood.trl.dpo import DPOTrainer, KTOTrainer
from sapwood.trl.dpo_options import DPOConfig, KTOConfig
from sapwood.trl.grpo import GRPOTrainer
from sapwood.trl.grpo_options import GRPOConfig
from sapwood.trl.models import clone_chat_template, setup_chat_format
from sapwood.trl.names import ELSEWHERE
from sapwood.trl.state import TrainerState, TrainOutput
from sapwood.trl.trainer import SFTTrainer

LoRAConfig = LoraConfig
"""How the course's text spells it."""

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "LoRAConfig",
    "LoraConfig",
    "SFTConfig",
    "SFTTrainer",
    "TrainOutput",
    "TrainerState",
    "clone_chat_template",
    "setup_chat_format",
]


def __getattr__(name: str) -> Any:
    if name in ELSEWHERE:
        raise ConfigError(f"sapwood.trl has no {name}: {ELSEWHERE[name]}.")
    raise AttributeError(f"sapwood.trl has no {name!r}.{did_you_mean(name, [*__all__, *ELSEWHERE])}")
