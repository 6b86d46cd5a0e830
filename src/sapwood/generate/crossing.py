"""What crosses between host and device: numbers of a step over, and back in one read.

On a GPU a copy from ordinary memory makes the host wait until all that was asked for before is done. From pinned memory it does not,
and torch keeps such memory until the copy was made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def onto(device: torch.device, numbers: NDArray[Any]) -> Tensor:
    """The numbers on a device, without waiting for it. On a CPU they share their memory."""
    here = torch.from_numpy(np.ascontiguousarray(numbers))
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)
