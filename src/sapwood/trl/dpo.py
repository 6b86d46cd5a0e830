"""`DPOTrainer` and `KTOTrainer`: TRL's face on Sapwood's loop of preference tuning.

In: a model, rows of pairs (`prompt`, `chosen`, `rejected`) or of answers with a vote (`prompt`, `completion`, `label`), options, in TRL's
words. Out: `train()`, `save_model()`, `push_to_hub()`, and `state`. Every step is a function that `sapwood dpo` calls too; there is no
second loop. Left out on purpose: a second model as the reference, which is the model as it was before step 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
import transformers

from sapwood.config import save_yaml, to_dict
from sapwood.errors import ConfigError, DataError
from sapwood.model import LanguageModel, learn_tokens
from sapwood.recipes.beginning import StartConfig
from sapwood.recipes.feed import Feed
from sapwood.recipes.other_rows import pairs_to_prefer, scan, votes_to_learn
from sapwood.recipes.prefer import PreferConfig, line_of
from sapwood.recipes.prepare import DataConfig
from sapwood.recipes.track import tracking
from sapwood.records import Example
from sapwood.run import Run
from sapwood.train import DpoConfig, DpoResult, dpo
from sapwood.train.preferred import PreferenceStep, vote_examples
from sapwood.trl.base import Face, refuse
from sapwood.trl.dpo_options import DPOConfig, KTOConfig, preference_settings
from sapwood.trl.models import chat_of
from sapwood.trl.names import METHODS, TRAINER_REFUSED
from sapwood.trl.options import Kind
from sapwood.trl.rows import as_many_as_needed, chosen_split, listed, opened_rows, write_rows
from sapwood.trl.settings import Settings
from sapwood.trl.state import TrainOutput

SHOWN = {
    "chosen": "rewards/chosen",
    "rejected": "rewards/rejected",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "kl": "kl",
}
EVALUATED = {"loss": "eval_loss", "accuracy": "eval_rewards/accuracies", "margin": "eval_rewards/margins"}


class _PreferenceTrainer(Face[Kind]):
    """What both trainers have."""

    shown = SHOWN
    evaluated = EVALUATED
    wanted: ClassVar[tuple[str, ...]]
    """Columns that a row must have; of pairs, `prompt` may be missing where both answers begin with it."""
    votes: ClassVar[bool]
    arguments: ClassVar[tuple[str, ...]] = (*Face.arguments, "ref_model")
    refused: ClassVar[Mapping[str, str]] = {
        **TRAINER_REFUSED,
        "callbacks": "Sapwood has no callbacks; metrics.jsonl in the run's folder has a record of every step. Leave it out",
        "data_collator": "rows are never padded, so there is nothing to collate. Leave it out",
        "compute_metrics": "what is judged are held-out pairs, with an interval, in metrics.jsonl. Leave it out",
        "compute_loss_func": "the losses are those of loss_type. Leave it out",
    }
    methods: ClassVar[Mapping[str, str]] = {
        **METHODS,
        "compute_loss": "the losses are in sapwood.train.preferences",
        "training_step": "the loop is sapwood.train.dpo, one function",
    }

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        **outdated: Any,
    ) -> None:
        """Open the model, prepare the rows and show the ledger. Raises a `SapwoodError` that says what to change."""
        given = {"data_collator": data_collator, "compute_metrics": compute_metrics, "callbacks": callbacks or None}
        refuse(type(self), {**given, "optimizers": None if optimizers is None or not any(optimizers) else optimizers})
        self._take(model, args, train_dataset, processing_class, outdated)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self._texts = False
        files = {"train_dataset": self._file(train_dataset, "train_dataset")}
        if eval_dataset is not None:
            files["eval_dataset"] = self._file(eval_dataset, "eval_dataset")
        elif self.args.eval_strategy != "no":
            raise ConfigError(f"eval_strategy={self.args.eval_strategy!r} needs eval_dataset. Give one, or leave eval_strategy out.")
        folder = self._load(model, quantization_config, peft_config)
        _same_reference(ref_model, model, self._model, self._notes)
        longest: int | None = self.args.max_length  # type: ignore[attr-defined]
        place = self.output / "tokenizer"
        self.chat, self._beside = chat_of(self._model, folder, self.processing_class, self.args, place, texts=self._texts, longest=longest)
        self._files = files
        self._examples = self._sides(files["train_dataset"], "Training rows")
        self._held_out = self._sides(files["eval_dataset"], "Held-out rows", held_out=True) if "eval_dataset" in files else []
        learned = learn_tokens(self._model, self.chat.new_tokens.values(), self.chat.known_tokens.values())
        self._notes += [*self._model.notes, *self.chat.notes, *self.chat.warnings, *learned]
        self._plan = self._settings()
        for line in dict.fromkeys([*self.args.notes, *self._notes]):
            self._screen.say(line)

    def _file(self, dataset: Any, name: str) -> str:
        """The rows, written down; a file that people named, as it is. Raises `ConfigError` for rows of another kind."""
        dataset = chosen_split(dataset, name, self._notes)
        if isinstance(dataset, str | Path):
            return str(dataset)
        first, rows = opened_rows(dataset, name)
        missing = [column for column in self.wanted if column not in first]
        if missing:
            what = "answers with a vote" if self.votes else "pairs of answers"
            raise ConfigError(
                f"{name} has no column `{missing[0]}`: it has {listed(first)}. {type(self).__name__} learns from {what}, in the columns "
                f"{', '.join(self.wanted)}; rename yours with dataset.rename_column."
            )
        if name == "train_dataset":
            self._texts = all(isinstance(first[column], str) for column in self.wanted[:2])
            a_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
            rows = as_many_as_needed(dataset, rows, self.args, a_step, self._notes)
        file = self.output / "rows" / f"{name}.jsonl"
        write_rows(rows, file, name, None, nulls=hasattr(dataset, "features"), notes=self._notes)
        return str(file)

    def _sides(self, file: str, title: str, *, held_out: bool = False) -> list[Example]:
        config = DataConfig(held_out=0, max_refused=self.args.max_refused)
        try:
            rows = scan([file], config, self._screen)
            found = votes_to_learn(rows, self.chat, config, "label") if self.votes else pairs_to_prefer(rows, self.chat, config)
        except DataError as error:
            raise DataError(str(error).replace("pass --max-refused", f"give max_refused in {self.kind.__name__}:")) from None
        self._screen.say(title, "bold")
        self._screen.lines([*found.notes, *self._taken(found.ledger, held_out=held_out).lines_for_people()])
        if not self.votes:
            return found.train  # type: ignore[return-value]
        votes: list[tuple[Example, bool]] = found.train  # type: ignore[assignment]
        good = [vote for _, vote in votes]
        if len(set(good)) < 2:
            raise ConfigError(f"All {len(good)} votes of `label` say the same, so there is nothing to tell apart. Give both kinds.")
        return vote_examples([example for example, _ in votes], good, self.args.seed)

    def _settings(self) -> Settings[DpoConfig]:
        args: Any = self.args
        return preference_settings(args, len(self._examples), full=self._full, lora=self._lora, notes=self._notes)

    def settings(self) -> Settings[DpoConfig]:
        """What `train()` will do: the knobs of the loop, its number of steps. Raises `ConfigError`."""
        self._plan = self._settings()
        return self._plan

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train into a run folder of its own below output_dir, or go on with one: as `SFTTrainer.train`."""
        plan = self.settings()
        share, batch = plan.train.batch / len(self._examples), plan.train.batch
        return self._trained(resume_from_checkpoint, plan, lambda run: self._fit(run, plan), share=share, rows_a_step=batch)

    def _fit(self, run: Run, plan: Settings[DpoConfig]) -> DpoResult:
        self._record(run, plan)
        feed = Feed(run.path)
        with tracking(run, plan.track, to_dict(plan.train), self._screen.say) as tell:

            def report(done: PreferenceStep) -> None:
                tell(feed.new())
                if done.step % plan.log_every == 0 or (self.args.logging_first_step and done.step == 1):
                    self._screen.say(line_of(done))

            def observe(step: int, model: LanguageModel) -> None:
                self._model = model  # with its adapter, also where the training is stopped

            held_out = self._held_out if plan.evaluates else []
            return dpo(
                self._model,
                self._examples,
                held_out,
                plan.train,
                run,
                report=report,
                observe=observe,
                say=self._screen.say,
                beside=self._beside,
            )

    def _record(self, run: Run, plan: Settings[DpoConfig]) -> None:
        """The knobs, for later readers: `sapwood chat`, `export` and `runs` take the folder as a run of `sapwood dpo`."""
        if self._name:
            config = PreferConfig(
                data=(self._files["train_dataset"],),
                out=run.path,
                start_from=StartConfig(model=self._name, dtype=self._dtype),
                rows=DataConfig(held_out=0, max_refused=self.args.max_refused),
                votes="label" if self.votes else None,
                train=plan.train,
            )
            save_yaml(config, run.path / "config.yaml")
        self._write_ledger(run)
        run.write_json("settings", {"train": to_dict(plan.train), "trl": self._given, "template": self.chat.fingerprint})

    def evaluate(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a judgement needs what the reference gave the held-out rows, which `train()` asks before step 1."""
        raise ConfigError(
            f"{type(self).__name__}.evaluate() cannot be honoured: held-out rows are judged against the model as it was before step 1. "
            "Give eval_dataset and eval_strategy='steps' (or 'epoch'); train() then judges them before, during and after."
        )


class DPOTrainer(_PreferenceTrainer[DPOConfig]):
    """Direct preference optimisation with TRL's arguments. What is wrong with them is said before anything is trained."""

    kind = DPOConfig
    wanted = ("chosen", "rejected")
    votes = False


class KTOTrainer(_PreferenceTrainer[KTOConfig]):
    """The same from single answers, each with a vote."""

    kind = KTOConfig
    wanted = ("prompt", "completion", "label")
    votes = True


def _same_reference(given: Any, model: Any, ours: LanguageModel, notes: list[str]) -> None:
    """Take a reference that is the model itself. Raises `ConfigError` for any other."""
    if given is None:
        return
    same = given is model or (isinstance(given, str | Path) and str(given) in (str(model), str(ours.base.config._name_or_path)))
    if not same and isinstance(given, transformers.PreTrainedModel) and not hasattr(ours.module, "peft_config"):
        theirs, own = given.state_dict(), ours.base.state_dict()
        same = theirs.keys() == own.keys() and all(torch.equal(theirs[name], own[name].to(theirs[name])) for name in own)
    if not same:
        raise ConfigError(
            "ref_model is another model than the one that is trained. The reference is the model as it was before step 1, asked once: "
            "leave ref_model out. To begin at another point, train from there."
        )
    notes.append("ref_model is the model itself, as it was before step 1; it is asked once, and no second copy is needed.")
