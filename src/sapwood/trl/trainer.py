"""`SFTTrainer`: TRL's face on Sapwood's own functions.

In: a model, rows, a tokenizer, options, in TRL's words. Out: `train()`, `evaluate()`, `save_model()`, `push_to_hub()`, and `state`.

    names understood → model and chat opened → rows prepared, ledger shown       as the trainer is made
    train: knobs → a run folder below output_dir → sapwood.train.sft → history    as it trains

Every step is a function that `sapwood sft` calls too; there is no second loop. An EarlyStoppingCallback is a knob. Left out on
purpose: other callbacks, collators and whatever else changes a loop from outside (each is refused by name), and several processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sapwood.config import save_yaml, to_dict
from sapwood.errors import ConfigError
from sapwood.model import LanguageModel, learn_tokens
from sapwood.recipes import TuneConfig
from sapwood.recipes.live import watching
from sapwood.recipes.prepare import Prepared
from sapwood.recipes.track import tracking
from sapwood.records import Example
from sapwood.run import Run
from sapwood.train import SftConfig, SftResult, StepReport, sft
from sapwood.train.step import evaluate
from sapwood.trl.base import Face, refuse
from sapwood.trl.config import SFTConfig
from sapwood.trl.models import chat_of, forest_attention
from sapwood.trl.rows import Formatting, Staged, WholeTexts, chosen_split, prepared_from, reading_of, staged
from sapwood.trl.settings import Settings, settings
from sapwood.trl.state import TrainOutput

BUDGET = 2048
"""Unique tokens a pass of `evaluate()` where no training has measured a better number."""


class SFTTrainer(Face[SFTConfig]):
    """Supervised fine-tuning with TRL's arguments. What is wrong with them is said before anything is trained."""

    kind = SFTConfig
    arguments = (*Face.arguments, "formatting_func")

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Formatting | None = None,
        **outdated: Any,
    ) -> None:
        """Open the model, prepare the rows and show the ledger. Raises a `SapwoodError` that says what to change."""
        given = {
            "data_collator": data_collator,
            "compute_loss_func": compute_loss_func,
            "compute_metrics": compute_metrics,
            "optimizers": None if optimizers is None or not any(optimizers) else optimizers,
            "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        }
        refuse(SFTTrainer, given)
        self._patience = _patience_of(callbacks)
        self._take(model, args, train_dataset, processing_class, outdated)
        self.train_dataset, self.eval_dataset, self._formatting = train_dataset, eval_dataset, formatting_func
        self._open(model, quantization_config, peft_config)
        self._budget = BUDGET
        self._tell()

    def _open(self, model: Any, quantization: Any, peft_config: Any) -> None:
        """Model, chat, and rows of both sides."""
        notes, args = self._notes, self.args
        train, held_out = (
            None if dataset is None else chosen_split(dataset, name, notes)
            for name, dataset in (("train_dataset", self.train_dataset), ("eval_dataset", self.eval_dataset))
        )
        folder = self._load(model, quantization, peft_config)
        rows = self._train_rows = self._staged(train, "train_dataset")
        others = None if held_out is None else self._staged(held_out, "eval_dataset")
        texts = rows.texts("text" if self._formatting is not None else args.dataset_text_field)
        self.chat, self._beside = chat_of(
            self._model, folder, self.processing_class, args, self.output / "tokenizer", texts=texts, longest=args.max_length
        )
        self._prepared = self._rows(rows)
        self._held_out = None if others is None else self._rows(others)
        learned = learn_tokens(self._model, self.chat.new_tokens.values(), self.chat.known_tokens.values())
        notes += [*self._model.notes, *self.chat.notes, *self.chat.warnings, *learned]
        if args.eval_strategy != "no" and self._held_out is None:
            raise ConfigError(f"eval_strategy={args.eval_strategy!r} needs eval_dataset. Give one, or leave eval_strategy out.")

    def _staged(self, dataset: Any, name: str) -> Staged:
        return staged(dataset, name, self.output / "rows", self.args, self._formatting, self._notes)

    def _rows(self, rows: Staged) -> Prepared:
        return prepared_from(rows, self.chat, self.args, self._screen)

    def _tell(self) -> None:
        """Notes and ledgers, once."""
        for line in dict.fromkeys([*self.args.notes, *self._notes]):
            self._screen.say(line)
        for name, prepared in (("Training rows", self._prepared), ("Held-out rows", self._held_out)):
            if prepared is not None:
                self._screen.say(name, "bold")
                ledger = self._taken(prepared.ledger, held_out=prepared is self._held_out)
                self._screen.lines([*prepared.notes, *ledger.lines_for_people()])
        whole = self._whole
        self._screen.say(f"Trained {'is every token, prompts included' if whole else 'are the answers, each to the token that ends it'}.")

    @property
    def _whole(self) -> bool:
        return self.args.assistant_only_loss is False or self.args.completion_only_loss is False

    def _examples(self, prepared: Prepared | None) -> Sequence[Example]:
        if prepared is None:
            return []
        return WholeTexts(prepared.examples) if self._whole else prepared.examples

    def settings(self) -> Settings[SftConfig]:
        """What `train()` will do: the knobs of the loop, its number of steps. Raises `ConfigError`."""
        notes: list[str] = []
        found = settings(self.args, len(self._prepared.examples), full=self._full, lora=self._lora, notes=notes, patience=self._patience)
        for line in notes:
            if line not in self._notes:
                self._notes.append(line)
                self._screen.say(line)
        return found

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train into a run folder of its own below output_dir, or go on with one.

        `resume_from_checkpoint`: True goes on with the newest run below output_dir, a path with the run it lies in.
        Returns (global_step, training_loss, metrics). Raises what `sapwood.train.sft` raises.
        """
        plan = self.settings()
        share, batch = self._share(plan), plan.train.batch
        return self._trained(resume_from_checkpoint, plan, lambda run: self._fit(run, plan), share=share, rows_a_step=batch)

    def _fit(self, run: Run, plan: Settings[SftConfig]) -> SftResult:
        self._record(run, plan)
        screen, since = self._screen, list[float]()
        tracked = tracking(run, plan.track, to_dict(plan.train), screen.say)
        with tracked as tell, watching(screen, run, tell, lines=False) as watch:

            def report(done: StepReport) -> None:
                since.append(done.loss)
                watch.report(done)
                if done.step % plan.log_every == 0 or (self.args.logging_first_step and done.step == 1):
                    mean = sum(since) / len(since)
                    screen.say(f"step {done.step} of {done.num_steps}  loss {mean:.4f}  lr {done.lr:.2e}  gradient {done.grad_norm:.3f}")
                    since.clear()

            def observe(step: int, model: LanguageModel) -> None:
                self._model = model  # with its adapter, also where the training is stopped
                watch.evaluated(step)

            held_out = self._examples(self._held_out) if plan.evaluates else []
            result = sft(
                self._model,
                self._examples(self._prepared),
                held_out,
                plan.train,
                run,
                report=report,
                observe=observe,
                say=screen.say,
                beside=self._beside,
            )
        self._budget = result.rehearsal.budget if result.rehearsal is not None else self._budget
        return result

    def _share(self, plan: Settings[SftConfig]) -> float:
        return plan.train.batch / len(self._prepared.examples)

    def _record(self, run: Run, plan: Settings[SftConfig]) -> None:
        """The knobs and the ledger, for later readers: `sapwood chat`, `export` and `runs` take the folder as a run of `sapwood sft`."""
        data, rows = self._train_rows.file, reading_of(self.args, self._train_rows)
        if self._name:
            named = TuneConfig(data=(data,) if data else (), model=self._name, out=run.path, dtype=self._dtype, rows=rows, train=plan.train)
            save_yaml(named, run.path / "config.yaml")
        run.write_json("settings", {"train": to_dict(plan.train), "trl": self._given, "template": self.chat.fingerprint})
        self._write_ledger(run)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The mean loss on held-out rows, in nats a trained token: of `eval_dataset`, or of that of the trainer."""
        if ignore_keys:
            raise ConfigError(f"evaluate(ignore_keys={ignore_keys!r}): evaluation keeps sums, never outputs. Leave it out.")
        prepared = self._held_out
        if eval_dataset is not None:
            prepared = self._rows(self._staged(chosen_split(eval_dataset, "eval_dataset", self._notes), "eval_dataset"))
        if prepared is None:
            raise ConfigError("evaluate() needs rows. Give eval_dataset to it, or to SFTTrainer.")
        began = time.perf_counter()
        with forest_attention(self._model):
            sums = evaluate(self._model, self._examples(prepared), self._budget)
        seconds = time.perf_counter() - began
        found = {"loss": sums.mean_loss, "runtime": seconds, "samples_per_second": len(prepared.examples) / seconds}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()} | {"epoch": self.state.epoch}
        self.state.log_history.append({**metrics, "step": self.state.global_step})
        return metrics


def _patience_of(callbacks: Any) -> int:
    """The patience of an EarlyStoppingCallback, which is a knob here; 0 without one. Raises `ConfigError` for any other callback."""
    patience = 0
    for callback in callbacks or ():
        callback = callback() if isinstance(callback, type) and callback.__name__ == "EarlyStoppingCallback" else callback
        name = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        if name != "EarlyStoppingCallback":
            raise ConfigError(
                f"SFTTrainer(callbacks=[{name}]) cannot be honoured: Sapwood has no callbacks but EarlyStoppingCallback, which is a knob "
                "here; metrics.jsonl in the run's folder has a record of every step and evaluation. Leave it out."
            )
        if callback.early_stopping_threshold:
            raise ConfigError(
                f"EarlyStoppingCallback(early_stopping_threshold={callback.early_stopping_threshold}) cannot be honoured: every lower "
                "held-out loss counts. Leave the threshold out."
            )
        patience = int(callback.early_stopping_patience)
    return patience
