"""Training: objectives, the step, checkpoints, the rehearsal, and one file a loop.

In: a `LanguageModel` and examples of (prompt, completion, weights). Out: an adapter (or a whole model) in a run directory.
Every loop is one function that is read from top to bottom; what loops share are functions.
"""

from sapwood.train.dpo import DpoConfig, DpoResult, dpo
from sapwood.train.grpo import GrpoConfig, GrpoResult, grpo
from sapwood.train.optimizer import OptimConfig
from sapwood.train.policy import PolicyConfig
from sapwood.train.rollouts import Asked
from sapwood.train.sft import SftConfig, SftResult, StepReport, sft

__all__ = [
    "Asked",
    "DpoConfig",
    "DpoResult",
    "GrpoConfig",
    "GrpoResult",
    "OptimConfig",
    "PolicyConfig",
    "SftConfig",
    "SftResult",
    "StepReport",
    "dpo",
    "grpo",
    "sft",
]
