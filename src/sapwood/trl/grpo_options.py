"""`GRPOConfig`: TRL's options of reinforcement learning → the knobs of Sapwood's own loop.

In: keywords as people write them, of this and of former versions; the number of prompts. Out: `train.GrpoConfig`, and how often progress
is told. Answers are counted as TRL counts them since 0.15: a step takes per_device_train_batch_size × gradient_accumulation_steps of them,
num_generations a prompt. Left out on purpose: a second program that samples; the engine of this process does, on the very weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sapwood.errors import ConfigError
from sapwood.model import LoraConfig
from sapwood.train import GrpoConfig, PolicyConfig
from sapwood.trl.names import MET, REFUSED, REFUSED_BEYOND_SFT, RENAMED
from sapwood.trl.options import Options
from sapwood.trl.settings import NEVER, Settings, intervals, named, optimizer, services

_SAMPLED_HERE = "answers are sampled by the engine of this process, on the very weights that are trained"
_KEPT = "rollouts.jsonl in the run's folder has the best and worst answers of every step, and why a reward failed"
_ONE_LOSS = "the losses are grpo, dr_grpo, dapo (and bnpo, which is the same here), and GSPO by importance_sampling_level='sequence'"

_LOSSES = {"grpo": "grpo", "dr_grpo": "dr_grpo", "dapo": "dapo", "bnpo": "dapo"}
_SCALINGS = {"group": "group", "batch": "batch", "none": "none", True: "group", False: "none"}


@dataclass(init=False, eq=False)
class GRPOConfig(Options):
    """Options of `GRPOTrainer`. Any that TRL 1.16 or transformers 5 knows may be given, and those that the course still uses."""

    renamed: ClassVar[Mapping[str, tuple[str, str]]] = {
        **RENAMED,
        "num_generation": ("num_generations", ""),
        "max_new_tokens": ("max_completion_length", ""),
    }
    met: ClassVar[Mapping[str, str]] = {
        **MET,
        "use_vllm": _SAMPLED_HERE,
        "vllm_mode": _SAMPLED_HERE,
        "vllm_model_impl": _SAMPLED_HERE,
        "vllm_enable_sleep_mode": _SAMPLED_HERE,
        "vllm_server_base_url": _SAMPLED_HERE,
        "vllm_server_host": _SAMPLED_HERE,
        "vllm_server_port": _SAMPLED_HERE,
        "vllm_server_timeout": _SAMPLED_HERE,
        "vllm_group_port": _SAMPLED_HERE,
        "vllm_device": _SAMPLED_HERE,
        "vllm_dtype": _SAMPLED_HERE,
        "vllm_max_model_len": _SAMPLED_HERE,
        "vllm_max_model_length": _SAMPLED_HERE,
        "vllm_gpu_memory_utilization": _SAMPLED_HERE,
        "vllm_tensor_parallel_size": _SAMPLED_HERE,
        "vllm_importance_sampling_correction": f"{_SAMPLED_HERE}, so there is nothing to correct",
        "vllm_importance_sampling_mode": f"{_SAMPLED_HERE}, so there is nothing to correct",
        "vllm_importance_sampling_clip_max": f"{_SAMPLED_HERE}, so there is nothing to correct",
        "vllm_importance_sampling_clip_min": f"{_SAMPLED_HERE}, so there is nothing to correct",
        "vllm_importance_sampling_cap": f"{_SAMPLED_HERE}, so there is nothing to correct",
        "use_transformers_continuous_batching": _SAMPLED_HERE,
        "transformers_continuous_batching_config": _SAMPLED_HERE,
        "use_transformers_paged": _SAMPLED_HERE,
        "cache_implementation": _SAMPLED_HERE,
        "ds3_gather_for_generation": "one process trains",
        "disable_dropout": "the model's own dropout is off while it trains",
        "log_completions": _KEPT,
        "log_multimodal": _KEPT,
        "num_completions_to_print": _KEPT,
        "log_unique_prompts": _KEPT,
        "num_generations_eval": "held-out prompts are answered once each, greedily",
        "use_bias_correction_kl": "the policy that samples is the one that learns, so the divergence needs no correction",
        "max_tool_calling_iterations": "no tools are called",
    }
    refused: ClassVar[Mapping[str, str]] = {
        **REFUSED,
        **REFUSED_BEYOND_SFT,
        "loss_type": f"{_ONE_LOSS}. Choose one of these",
        "label_names": "what is trained are the sampled answers. Leave it out",
        "importance_sampling_level": "it is 'token' or 'sequence'. Choose one of these",
        "generation_batch_size": "a step learns from the answers that it sampled, once for each of num_iterations. Leave it out",
        "steps_per_generation": "a step learns from the answers that it sampled, once for each of num_iterations. Leave it out",
        "min_p": "answers are drawn by temperature, top_k and top_p. Leave it out",
        "repetition_penalty": "what is trained are the model's own probabilities. Leave it at 1",
        "generation_kwargs": "answers are drawn by temperature, top_k and top_p. Leave it out",
        "vllm_structured_outputs_regex": "answers are drawn freely. Leave it out, and reward the form",
        "delta": "ratios are clipped by epsilon and epsilon_high. Leave it out",
        "multi_objective_aggregation": "rewards are weighed, then summed, then scaled. Leave it at 'sum_then_normalize'",
        "top_entropy_quantile": "every token of an answer counts. Leave it at 1",
        "use_adaptive_entropy": "the bonus is constant. Give entropy_coef",
        "off_policy_mask_threshold": "the policy that samples is the one that learns. Leave it out",
        "sync_ref_model": "the reference is the model as it was before step 1. Leave it out",
        "cast_lm_head_to_fp32": "the loss is computed in fp32 from the head's own type. Leave it out",
        "log_completions_hub_repo": "nothing is sent but by push_to_hub(). Leave it out",
        "do_predict": "use `sapwood eval` on the run's adapter to see answers and a verdict",
    }
    others: ClassVar[Mapping[str, Any]] = {
        "save_safetensors": True,
        "shuffle_dataset": True,
        "remove_unused_columns": False,
        "ds3_gather_for_generation": True,
        "pad_to_multiple_of": "auto",
        "repetition_penalty": 1.0,
        "vllm_mode": "colocate",
        "vllm_model_impl": "vllm",
        "vllm_server_host": "0.0.0.0",
        "vllm_server_port": 8000,
        "vllm_server_timeout": 240.0,
        "vllm_group_port": 51216,
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_tensor_parallel_size": 1,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "use_bias_correction_kl": True,
        "importance_sampling_level": "token",
        "multi_objective_aggregation": "sum_then_normalize",
        "top_entropy_quantile": 1.0,
        "log_multimodal": True,
        "sapo_temperature_neg": 1.05,
        "sapo_temperature_pos": 1.0,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 512,
        "entropy_coef_min": 0.0,
        "entropy_coef_max": 1.0,
        "entropy_coef_delta": 0.005,
        "entropy_target": 0.2,
    }

    learning_rate: float = 1e-6
    """Peak learning rate; an adapter wants ten times the default."""
    num_generations: int = 8
    """Answers a prompt, which are compared with each other."""
    max_completion_length: int = 512
    """Longest answer, in tokens."""
    max_prompt_length: int | None = None
    """Most tokens of a prompt; a longer one is refused by name, never cut. None: what the model can attend to."""
    temperature: float = 1.0
    """Of sampling; the log-probabilities that are trained are those at this temperature."""
    top_p: float = 1.0
    """Draw among the most likely tokens that make up this probability."""
    top_k: int | None = 0
    """Draw among so many most likely tokens; 0, -1 or None draws among all."""
    chat_template_kwargs: Mapping[str, Any] | None = None
    """Arguments of the chat template, for every prompt; a column of this name is for its row."""
    beta: float = 0.0
    """Weight of the divergence from the model as it was before step 1."""
    num_iterations: int = 1
    """Updates on the answers of one step (μ); TRL counts each of them as a step."""
    epsilon: float = 0.2
    """How far below 1 a ratio of probabilities still counts, and above it where epsilon_high is not given."""
    epsilon_high: float | None = None
    """How far above 1."""
    importance_sampling_level: str = "token"
    """`sequence` compares answers as wholes, which is GSPO."""
    loss_type: str = "dapo"
    """How tokens count: grpo each answer alike, dapo (and bnpo) each token alike, dr_grpo by the longest answer."""
    scale_rewards: str | bool = "group"
    """What advantages are divided by: the deviation of the `group` (True), that of the `batch`, or `none` (False)."""
    reward_weights: Any = None
    """One weight a reward function; 1 each where not given."""
    mask_truncated_completions: bool = False
    """Leave answers that were cut at the limit out of the loss."""
    entropy_coef: float = 0.0
    """Weight of a bonus for entropy."""
    resample: int = 0
    """Rounds of further prompts in place of groups whose answers were all rewarded alike. Sapwood's own option."""
    preflight: int = 4
    """Prompts that are tried before step 1, to see what the rewards make of the answers; 0 tries none. Sapwood's own option."""

    @property
    def answers(self) -> int:
        """A step's, as TRL counts."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def _comment(self, name: str) -> None:
        if name == "loss_type" and self.loss_type not in _LOSSES:
            raise ConfigError(f"GRPOConfig(loss_type={self.loss_type!r}) cannot be honoured: {self.refused[name]}.")
        if name == "loss_type" and self.loss_type == "bnpo":
            self.notes.append("loss_type='bnpo': how a step is split into passes changes no result here, so it is dapo.")
        if name == "importance_sampling_level" and self.importance_sampling_level not in ("token", "sequence"):
            raise ConfigError(f"GRPOConfig(importance_sampling_level={self.importance_sampling_level!r}): {self.refused[name]}.")
        if name == "scale_rewards" and self.scale_rewards not in _SCALINGS:
            raise ConfigError(f"GRPOConfig(scale_rewards={self.scale_rewards!r}): allowed are 'group', 'batch', 'none', True and False.")

    def _special(self, name: str, value: Any) -> bool:
        if name == "steps_per_generation" and value == self.gradient_accumulation_steps:
            return True
        if name == "generation_batch_size" and value == self.answers:
            return True
        return super()._special(name, value)


def prompts_a_step(args: GRPOConfig, notes: list[str]) -> int:
    """How many prompts a step asks. Raises `ConfigError` where its answers make no whole groups."""
    answers, group = args.answers, args.num_generations
    if answers < 1:
        raise ConfigError("per_device_train_batch_size and gradient_accumulation_steps must be at least 1 each.")
    if group < 2:
        raise ConfigError(f"num_generations is {group}; answers are compared within a group, so give at least 2, better 8.")
    words = f"per_device_train_batch_size × gradient_accumulation_steps is {answers}"
    if answers < group and group % answers == 0:
        notes.append(f"{words}, which is less than one group of num_generations={group}. A step takes one group (TRL stops here).")
        return 1
    if answers % group:
        fitting = max(1, round(answers / group)) * group
        raise ConfigError(
            f"{words}. It counts answers, num_generations={group} a prompt, and {answers} is no multiple of {group}. Give "
            f"per_device_train_batch_size={fitting} and gradient_accumulation_steps=1, or another num_generations."
        )
    prompts = answers // group
    notes.append(f"A step asks {prompts} prompt{'s' * (prompts > 1)} for {group} answers each: {words}, and counts answers since TRL 0.15.")
    return prompts


def grpo_settings(args: GRPOConfig, rows: int, *, full: bool, lora: LoraConfig | None, notes: list[str]) -> Settings[GrpoConfig]:
    """The run that `args` describe, on so many prompts. Raises `ConfigError` by TRL's names."""
    prompts = prompts_a_step(args, notes)
    if not 0 < args.num_train_epochs < math.inf:
        raise ConfigError(f"num_train_epochs is {args.num_train_epochs}; give a number above 0.")
    steps = (
        math.ceil(args.max_steps / args.num_iterations) if args.max_steps > 0 else max(1, math.ceil(args.num_train_epochs * rows / prompts))
    )
    if args.num_iterations > 1 and args.max_steps > 0:
        notes.append(f"max_steps={args.max_steps} counts updates: {steps} steps with num_iterations={args.num_iterations} updates each.")
    every = intervals(args, steps, max(1, round(rows / prompts)))
    train = named(
        GrpoConfig,
        steps=steps,
        prompts=prompts,
        group=args.num_generations,
        inner=args.num_iterations,
        max_new_tokens=args.max_completion_length,
        temperature=float(args.temperature),
        top_k=max(0, args.top_k or 0),
        top_p=float(args.top_p),
        resample=args.resample,
        seed=args.seed,
        eval_every=every["eval"],
        save_every=every["save"],
        keep=args.save_total_limit or NEVER,
        checkpointing=bool(args.gradient_checkpointing or args.activation_checkpointing),
        full=full,
        lora=lora or LoraConfig(),
        policy=_policy(args, notes),
        optim=optimizer(args, steps, notes),
    )
    return Settings(train, steps, every["logging"], args.eval_strategy != "no" or args.eval_on_start, services(args, notes))


def _policy(args: GRPOConfig, notes: list[str]) -> PolicyConfig:
    loss: Any = _LOSSES[args.loss_type]
    if args.importance_sampling_level == "sequence":
        if "loss_type" in args.given and args.loss_type != "grpo":
            raise ConfigError(
                f"importance_sampling_level='sequence' with loss_type={args.loss_type!r} cannot be honoured: answers that are compared as "
                "wholes count alike (GSPO). Give loss_type='grpo', or leave one of them out."
            )
        loss = "gspo"
    if "beta" not in args.given:
        notes.append("beta is not given, so nothing holds the model near its start (TRL's default since 0.19; it was 0.04 before).")
    if "loss_type" not in args.given and loss == "dapo":
        notes.append("loss_type is not given: dapo, TRL's default since 0.22, in which every token counts alike.")
    return named(  # type: ignore[no-any-return]
        PolicyConfig,
        loss=loss,
        scaling=_SCALINGS[args.scale_rewards],
        clip_low=float(args.epsilon),
        clip_high=float(args.epsilon if args.epsilon_high is None else args.epsilon_high),
        kl=float(args.beta),
        entropy=float(args.entropy_coef),
        mask_overlong=bool(args.mask_truncated_completions),
    )
