"""AdamW on the trainable parameters, in fp32 whatever they are stored in; the learning rate is a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sapwood.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer: AdamW (arXiv:1711.05101)."""

    lr: float = 5e-4
    """Peak learning rate. 2e-4 to 1e-3 suits LoRA on small models, 1e-5 to 5e-5 full training."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up: to `final` of its peak along a cosine or a line, or not at all."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0."""
    final: float = 0.1
    """Share of the peak rate that is left at the last step."""
    weight_decay: float = 0.0
    """Decoupled weight decay, applied to matrices only."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.99
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the squared gradients."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        # written so that nan, which compares false with everything, is refused too
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"optim.lr is {self.lr}; give a number above 0, such as 5e-4.")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it is a share, from 0 to 1.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; give a number from 0 to below 1, such as 0.9.")
        for name in ("weight_decay", "eps", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; give 0 or a number above it.")


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Rate of step `step` (from 0) of `num_steps`: linear warm-up, then the schedule. Closed form, so that resuming cannot move it."""
    warmup = max(1, round(config.warmup * num_steps)) if config.warmup else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - 1 - warmup)
    match config.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - progress
        case "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.final + (1 - config.final) * share) if config.schedule != "constant" else config.lr


class Optimizer:
    """AdamW whose state is a flat dictionary of tensors.

    Parameters that are not fp32 get an fp32 master, which is what is updated; the parameter is its rounded copy.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: OptimConfig) -> None:
        self.config = config
        self.parameters = parameters
        narrow = [name for name, parameter in parameters.items() if parameter.dtype in (torch.bfloat16, torch.float16)]
        self.masters = {name: parameters[name].detach().float().requires_grad_() for name in narrow}
        self._updated = {name: self.masters.get(name, parameter) for name, parameter in parameters.items()}
        matrices = [tensor for tensor in self._updated.values() if tensor.ndim > 1]
        others = [tensor for tensor in self._updated.values() if tensor.ndim <= 1]
        self._adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            foreach=True,
        )

    def step(self, lr: float) -> float:
        """Clip, update, and clear the gradients. Returns the norm of the gradient before clipping; not finite: nothing is updated."""
        for name, master in self.masters.items():
            gradient = self.parameters[name].grad
            master.grad = None if gradient is None else gradient.float()
        limit = self.config.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self._updated.values()), limit))
        if math.isfinite(norm):
            for group in self._adamw.param_groups:
                group["lr"] = lr
            self._adamw.step()
            with torch.no_grad():
                for name, master in self.masters.items():
                    self.parameters[name].copy_(master)
        self.clear()
        return norm

    def clear(self) -> None:
        """Forget the gradients."""
        for tensor in (*self.parameters.values(), *self.masters.values()):
            tensor.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything that an exact continuation needs: parameters, masters, both moments and the count of updates."""
        tensors: dict[str, Tensor] = {f"parameter.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        tensors |= {f"master.{name}": master.detach() for name, master in self.masters.items()}
        for name, tensor in self._updated.items():
            for key, value in self._adamw.state.get(tensor, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
            for name, master in self.masters.items():
                master.copy_(tensors[f"master.{name}"])
        for name, tensor in self._updated.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            self._adamw.state[tensor] = {key: tensors[f"{key}.{name}"].clone() for key in keys}
