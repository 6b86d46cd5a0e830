"""Training: objectives, the step, checkpoints, the rehearsal, and one file a loop.

In: a `LanguageModel` and examples of (prompt, completion, weights). Out: an adapter (or a whole model) in a run directory.
Every loop is one function that is read from top to bottom; what loops share are functions.
"""

from sapwood.train.optimizer import OptimConfig
from sapwood.train.sft import SftConfig, SftResult, StepReport, sft

__all__ = ["OptimConfig", "SftConfig", "SftResult", "StepReport", "sft"]
