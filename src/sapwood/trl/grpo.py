"""`GRPOTrainer`: TRL's face on Sapwood's loop of reinforcement learning.

In: a model, rows of prompts, reward functions, options, in TRL's words. Out: `train()`, `evaluate()`, `save_model()`, `push_to_hub()`,
and `state`.

    names understood → model and chat opened → prompts taken, rewards looked at       as the trainer is made
    train: knobs → a run folder below output_dir → preflight → sapwood.train.grpo → history   as it trains

Every step is a function that `sapwood grpo` calls too; there is no second loop. Left out on purpose: tools, environments and rollout
functions (each is refused by name), and programs beside this one that sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sapwood.config import save_yaml, to_dict
from sapwood.errors import ConfigError, TrainingError
from sapwood.evaluate.rewards import judge_by
from sapwood.generate import Engine
from sapwood.model import LanguageModel, learn_tokens
from sapwood.recipes.beginning import StartConfig
from sapwood.recipes.feed import Feed
from sapwood.recipes.preflight import preflight
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.reinforce import ReinforceConfig, cache_memory, line_of
from sapwood.recipes.track import tracking
from sapwood.records import Judge, SamplingParams
from sapwood.run import Run, saved_steps
from sapwood.train import Asked, GrpoConfig, GrpoResult, grpo
from sapwood.train.grpo_report import GrpoStep
from sapwood.train.rollouts import Rollouts
from sapwood.trl.base import Face, refuse
from sapwood.trl.grpo_options import GRPOConfig, grpo_settings
from sapwood.trl.models import chat_of, device_of, forest_attention
from sapwood.trl.names import METHODS, TRAINER_REFUSED
from sapwood.trl.prompts import Prompts, asked, taken
from sapwood.trl.reward_models import ModelRewards
from sapwood.trl.rewards import rewards_of
from sapwood.trl.rows import chosen_split
from sapwood.trl.settings import Settings
from sapwood.trl.state import TrainOutput

SHOWN = {
    "reward": "reward",
    "spread": "reward_std",
    "rewards": "rewards/{}/mean",
    "dead": "frac_reward_zero_std",
    "length": "completions/mean_length",
    "cut": "completions/clipped_ratio",
    "kl": "kl",
    "entropy": "entropy",
    "clipped": "clip_ratio/region_mean",
}
"""Figures of a step → what TRL calls them. `reward_std` is the mean of the groups' own, and not that of the whole batch."""
EVALUATED = {"reward": "eval_reward", "rewards": "eval_rewards/{}/mean", "length": "eval_completions/mean_length"}
PLAIN = (
    "The loss is near 0 by construction: advantages of a group add up to 0, and the policy is the one that sampled. Its gradient is not. "
    "Only with beta above 0 does it rise with the divergence, as the course describes. Watch reward and reward_std."
)


class GRPOTrainer(Face[GRPOConfig]):
    """Reinforcement learning with TRL's arguments. What is wrong with them is said before anything is trained."""

    kind = GRPOConfig
    shown = SHOWN
    evaluated = EVALUATED
    arguments: ClassVar[tuple[str, ...]] = (*Face.arguments, "reward_funcs")
    refused: ClassVar[Mapping[str, str]] = {
        **TRAINER_REFUSED,
        "callbacks": "Sapwood has no callbacks; metrics.jsonl in the run's folder has a record of every step. Leave it out",
        "tools": "its answers have one turn, without tools. Leave it out, or call sapwood.grpo(tools=…)",
        "rollout_func": "answers are sampled by the engine of this process. Leave it out",
        "environment_factory": "its answers have one turn, without an environment. Leave it out, or call sapwood.grpo(environment=…)",
    }
    methods: ClassVar[Mapping[str, str]] = {
        **METHODS,
        "compute_loss": "the loss is sapwood.train.policy.policy",
        "training_step": "the loop is sapwood.train.grpo, one function",
        "get_train_dataloader": "the line of prompts is a function of seed and place, in sapwood.train.grpo",
    }

    def __init__(
        self,
        model: Any = None,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        **outdated: Any,
    ) -> None:
        """Open the model, take the prompts, look at the rewards. Raises a `SapwoodError` that says what to change."""
        given = {"callbacks": callbacks or None, "optimizers": None if optimizers is None or not any(optimizers) else optimizers}
        refuse(GRPOTrainer, given)
        self._take(model, args, train_dataset, processing_class, outdated)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        rows = self._prompts(train_dataset, "train_dataset")
        place = self.output / "tokenizer"
        models = ModelRewards(rows.conversational, reward_processing_classes, place, device_of(self.args))
        self._rewards = rewards_of(
            reward_funcs, self.args.reward_weights, rows.columns, rows.conversational, lambda: self.state, self._notes, models
        )
        count = len(train_dataset) if hasattr(train_dataset, "__len__") else 1
        grpo_settings(self.args, count, full=True, lora=None, notes=self._notes)  # what is wrong is said before a model is loaded
        folder = self._load(model, quantization_config, peft_config)
        self.chat, self._beside = chat_of(self._model, folder, self.processing_class, self.args, place, texts=not rows.conversational)
        self._file = rows.file
        self._asked = self._sides(rows, "Training prompts")
        self._held_out = [] if eval_dataset is None else self._held(eval_dataset)
        if self.args.eval_strategy != "no" and not self._held_out:
            raise ConfigError(f"eval_strategy={self.args.eval_strategy!r} needs eval_dataset. Give one, or leave eval_strategy out.")
        learned = learn_tokens(self._model, self.chat.new_tokens.values(), self.chat.known_tokens.values())
        self._notes += [*self._model.notes, *self.chat.notes, *self.chat.warnings, *learned]
        self._judge: Judge = judge_by(self._rewards, say=self._screen.say)
        self._tell()

    def _prompts(self, dataset: Any, name: str) -> Prompts:
        return taken(chosen_split(dataset, name, self._notes), name, self.output / "rows", self.args, self._notes)

    def _held(self, dataset: Any, *, kept: bool = True) -> list[Asked]:
        return self._sides(self._prompts(dataset, "eval_dataset"), "Held-out prompts", held_out=True, kept=kept)

    def _sides(self, rows: Prompts, title: str, *, held_out: bool = False, kept: bool = True) -> list[Asked]:
        found = asked(rows, self.chat, self.args, self._screen)
        self._screen.say(title, "bold")
        self._screen.lines([*found.notes, *self._taken(found.ledger, held_out=held_out, kept=kept).lines_for_people()])
        return found.train

    def settings(self) -> Settings[GrpoConfig]:
        """What `train()` will do: the knobs of the loop, its number of steps. Raises `ConfigError`."""
        notes: list[str] = []
        return grpo_settings(self.args, len(self._asked), full=self._full, lora=self._lora, notes=notes)

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train into a run folder of its own below output_dir, or go on with one: as `SFTTrainer.train`.

        Raises `TrainingError` where a few prompts show that the rewards teach nothing, and what `sapwood.train.grpo` raises.
        """
        plan = self.settings()
        share, answers = self._share(plan), plan.train.prompts * plan.train.group
        return self._trained(
            resume_from_checkpoint, plan, lambda run: self._fit(run, plan), share=share, rows_a_step=answers, says_loss=False
        )

    def _preflight(self, run: Run, config: GrpoConfig) -> None:
        """A few prompts, before a run begins."""
        if not self.args.preflight or saved_steps(run.path):
            return
        engine = Engine(self._model, self.chat, memory=cache_memory(run))

        def said(line: str) -> None:
            self._screen.say(_in_trl_words(line))

        try:
            found = preflight(self._asked, engine, self._judge, config, prompts=self.args.preflight, say=said)
        except TrainingError as error:
            names = [f"{reward.name}: " for reward in self._rewards]
            hints = [note for note in self._notes if note.startswith(tuple(names))]
            raise TrainingError("\n".join([_in_trl_words(str(error)), *hints])) from None
        run.write_json("preflight", {key: value for key, value in vars(found).items() if key != "example"})

    def _fit(self, run: Run, plan: Settings[GrpoConfig]) -> GrpoResult:
        self._record(run, plan)
        self._preflight(run, plan.train)
        self._screen.say(PLAIN)
        memory, feed = cache_memory(run), Feed(run.path)
        with tracking(run, plan.track, to_dict(plan.train), self._screen.say) as tell:

            def report(done: GrpoStep, rollouts: Rollouts) -> None:
                self.state.global_step = done.step
                tell(feed.new())
                if done.step % plan.log_every == 0 or (self.args.logging_first_step and done.step == 1):
                    self._screen.say(line_of(done))

            def observe(step: int, model: LanguageModel) -> None:
                self._model = model  # with its adapter, also where the training is stopped
                if plan.evaluates:
                    run.append("metrics", {"kind": "eval", "step": step, **self._examined(self._held_out)})

            return grpo(
                self._model,
                self._asked,
                self._judge,
                lambda current: Engine(current, self.chat, memory=memory),
                plan.train,
                run,
                context=self.chat.context_length,
                report=report,
                observe=observe,
                say=self._screen.say,
                beside=self._beside,
            )

    def _examined(self, prompts: Sequence[Asked]) -> dict[str, Any]:
        """What the rewards make of greedy answers: the mean of all together, and of each by its name; lengths in tokens."""
        params = SamplingParams(max_new_tokens=self.args.max_completion_length)
        answers = Engine(self._model, self.chat).generate([one.prompt for one in prompts], params)
        rewarded = self._judge([one.item for one in prompts], answers)
        parts = {reward.name: [one.parts[reward.name] for one in rewarded] for reward in self._rewards}
        return {
            "reward": _mean([one.total for one in rewarded]),
            "rewards": {name: _mean(values) for name, values in parts.items()},
            "length": float(np.mean([len(one.ids) for one in answers])),
        }

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The rewards of greedy answers to held-out prompts: of `eval_dataset`, or of that of the trainer."""
        if ignore_keys:
            raise ConfigError(f"evaluate(ignore_keys={ignore_keys!r}): there are no outputs to leave out. Leave it out.")
        prompts = self._held_out if eval_dataset is None else self._held(eval_dataset, kept=False)
        if not prompts:
            raise ConfigError("evaluate() needs prompts. Give eval_dataset to it, or to GRPOTrainer.")
        with forest_attention(self._model):
            found = self._examined(prompts)
        plan = self.settings()
        lines = self._lines([{"kind": "eval", "step": self.state.global_step, **found}], plan, self._share(plan))
        self.state.log_history += lines
        return {name.replace("eval", metric_key_prefix, 1) if name.startswith("eval") else name: value for name, value in lines[0].items()}

    def _record(self, run: Run, plan: Settings[GrpoConfig]) -> None:
        """The knobs, for later readers: `sapwood chat`, `export` and `runs` take the folder as a run of `sapwood grpo`."""
        if self._name:
            start = StartConfig(model=self._name, dtype=self._dtype)
            rows = DataConfig(held_out=0, max_refused=self.args.max_refused)
            save_yaml(
                ReinforceConfig(data=(self._file,), out=run.path, start_from=start, rows=rows, train=plan.train), run.path / "config.yaml"
            )
        self._write_ledger(run)
        run.write_json("settings", {"train": to_dict(plan.train), "trl": self._given, "template": self.chat.fingerprint})

    def _share(self, plan: Settings[GrpoConfig]) -> float:
        return plan.train.prompts / len(self._asked)

    def _tell(self) -> None:
        """Notes, once."""
        for line in dict.fromkeys([*self.args.notes, *self._notes]):
            self._screen.say(line)


def _in_trl_words(text: str) -> str:
    """Advice of the preflight, by the names that this face has."""
    for ours, theirs in (
        ("--preflight 0 begins", "GRPOConfig(preflight=0) begins"),
        ("--max-new-tokens", "max_completion_length"),
        ("sapwood sft on worked answers, then --start RUN", "SFTTrainer on worked answers, then its model"),
        ("sapwood sft, then --start RUN", "SFTTrainer, then its model"),
    ):
        text = text.replace(ours, theirs)
    return text


def _mean(values: Sequence[float | None]) -> float | None:
    judged = [value for value in values if value is not None]
    return float(np.mean(judged)) if judged else None
