"""The optimizer on the trainable parameters, in fp32 whatever they are stored in; the learning rate is a function of the step.

In: parameters with gradients, and a rate. Out: the parameters moved, and a flat dictionary of tensors from which an exact
continuation starts. Left out on purpose: schedules with a state of their own, paged and sharded optimizers.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from sapwood.errors import ConfigError
from sapwood.model.quantized import import_bitsandbytes


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning rate."""

    optimizer: Literal["adamw", "adafactor", "adamw8bit"] = "adamw"
    """AdamW (arXiv:1711.05101); Adafactor (arXiv:1804.04235), which keeps far less; or AdamW with moments in 8 bits (arXiv:2110.02861)."""
    lr: float = 5e-4
    """Peak learning rate. 2e-4 to 1e-3 suits LoRA on small models, 1e-5 to 5e-5 full training."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the rate falls after the warm-up, to `final` of its peak: along a cosine, a line, not at all, or (`wsd`) late, over `decay`."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0."""
    decay: float = 0.2
    """Share of the steps, at the end, over which the rate of `wsd` falls (arXiv:2404.06395); before, it stays at its peak."""
    final: float = 0.1
    """Share of the peak rate that is left at the last step."""
    weight_decay: float = 0.0
    """Decoupled weight decay, applied to matrices only."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.99
    """Decay of AdamW's mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of AdamW's squared gradients."""
    b_ratio: float = 1.0
    """The rate of an adapter's B over that of its A (LoRA+, arXiv:2402.12354); 16 is what its paper tries."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm; 0 leaves it as it is."""

    def __post_init__(self) -> None:
        # written so that nan, which compares false with everything, is refused too
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"optim.lr is {self.lr}; give a number above 0, such as 5e-4.")
        if not 0 < self.b_ratio < math.inf:
            raise ConfigError(f"optim.b_ratio is {self.b_ratio}; give a number above 0, such as 16.")
        for name in ("warmup", "decay", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it is a share, from 0 to 1.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; give a number from 0 to below 1, such as 0.9.")
        for name in ("weight_decay", "eps", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; give 0 or a number above it.")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ConfigError(f"optim.warmup and optim.decay are {self.warmup} and {self.decay}; together they are at most 1.")
        self._refuse_unread(self.optimizer == "adafactor", ("beta1", "beta2", "eps"), "optim.optimizer adafactor")
        self._refuse_unread(self.schedule == "constant", ("final",), "optim.schedule constant")
        self._refuse_unread(self.schedule != "wsd", ("decay",), f"optim.schedule {self.schedule}")

    def _refuse_unread(self, unread: bool, names: tuple[str, ...], by: str) -> None:
        """An option that nothing reads must not be accepted."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if unread and getattr(self, name) != defaults[name]:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}, but {by} does not read it. Leave optim.{name} out.")


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Rate of step `step` (from 0) of `num_steps`: linear warm-up, then the schedule. Closed form, so that resuming cannot move it."""
    warmup = max(1, round(config.warmup * num_steps)) if config.warmup else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - 1 - warmup)
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            share = 1 - progress
        case "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        case "wsd":
            falling = round(config.decay * num_steps)
            share = min(1.0, (num_steps - 1 - step) / falling) if falling else 1.0
    return config.lr * (config.final + (1 - config.final) * share)


class Optimizer:
    """An optimizer whose state is a flat dictionary of tensors.

    Parameters that are not fp32 get an fp32 master, which is what is updated; the parameter is its rounded copy.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: OptimConfig) -> None:
        """Raises `ConfigError` where the optimizer needs a package that is not there."""
        self.config = config
        self.parameters = parameters
        narrow = [name for name, parameter in parameters.items() if parameter.dtype in (torch.bfloat16, torch.float16)]
        self.masters = {name: parameters[name].detach().float().requires_grad_() for name in narrow}
        self._updated = {name: self.masters.get(name, parameter) for name, parameter in parameters.items()}
        self._inner = _inner(_groups(self._updated, config), config)

    def step(self, lr: float) -> float:
        """Clip, update, and clear the gradients. Returns the norm of the gradient before clipping; not finite: nothing is updated."""
        for name, master in self.masters.items():
            gradient = self.parameters[name].grad
            master.grad = None if gradient is None else gradient.float()
        limit = self.config.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self._updated.values()), limit))
        if math.isfinite(norm):
            for group in self._inner.param_groups:
                group["lr"] = lr * group["ratio"]
            self._inner.step()
            with torch.no_grad():
                for name, master in self.masters.items():
                    self.parameters[name].copy_(master)
        self.clear()
        return norm

    def clear(self) -> None:
        """Forget the gradients."""
        for tensor in (*self.parameters.values(), *self.masters.values()):
            tensor.grad = None

    def forget(self) -> None:
        """Forget the moments, too: what comes next is the first update."""
        self.clear()
        self._inner.state.clear()

    def state(self) -> dict[str, Tensor]:
        """Everything that an exact continuation needs: parameters, masters, moments and the count of updates."""
        tensors: dict[str, Tensor] = {f"parameter.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        tensors |= {f"master.{name}": master.detach() for name, master in self.masters.items()}
        for name, tensor in self._updated.items():
            for key, value in self._inner.state.get(tensor, {}).items():
                value = value if isinstance(value, Tensor) else torch.tensor(value)
                tensors[f"{key}.{name}"] = value.clone() if key in ("qmap1", "qmap2") else value  # one table for all, which files refuse
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
            for name, master in self.masters.items():
                master.copy_(tensors[f"master.{name}"])
        numbers = {"adamw": (), "adafactor": ("step",), "adamw8bit": ("step",)}[self.config.optimizer]  # kept as plain numbers
        for name, tensor in self._updated.items():
            found = {key: tensors[f"{key}.{name}"] for key in STATES if f"{key}.{name}" in tensors}
            # AdamW counts its updates on the CPU, wherever its moments lie
            saved = {key: value.clone() if key == "step" else value.to(tensor.device, copy=True) for key, value in found.items()}
            self._inner.state[tensor] = {key: value.item() if key in numbers else value for key, value in saved.items()}


STATES = (
    "step",
    "exp_avg",
    "exp_avg_sq",
    "exp_avg_sq_row",
    "exp_avg_sq_col",
    "RMS",
    "state1",
    "state2",
    "qmap1",
    "qmap2",
    "absmax1",
    "absmax2",
)
"""What any of the optimizers keeps of a parameter."""


def _groups(tensors: dict[str, Any], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters by what they get: decay for matrices alone, and for an adapter's B a rate of its own."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.ndim > 1, ".lora_B." in name or ".lora_embedding_B." in name), []).append(tensor)
    return [
        {"params": group, "weight_decay": config.weight_decay if matrices else 0.0, "ratio": config.b_ratio if is_b else 1.0}
        for (matrices, is_b), group in groups.items()
    ]


def _inner(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    moments: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, **moments, foreach=True)
        case "adafactor":  # with a given rate, as transformers' Trainer calls it
            found: torch.optim.Optimizer = Adafactor(groups, lr=config.lr, scale_parameter=False, relative_step=False, warmup_init=False)
            return found
        case "adamw8bit":
            eight: torch.optim.Optimizer = import_bitsandbytes("optim.optimizer adamw8bit").optim.AdamW8bit(groups, **moments)
            return eight
