"""`SFTTrainer`: TRL's face on Sapwood's own functions.

In: a model, rows, a tokenizer, options, in TRL's words. Out: `train()`, `evaluate()`, `save_model()`, `push_to_hub()`, and `state`.

    names understood → model and chat opened → rows prepared, ledger shown       as the trainer is made
    train: knobs → a run folder below output_dir → sapwood.train.sft → history    as it trains

Every step is a function that `sapwood sft` calls too; there is no second loop. An EarlyStoppingCallback is a knob. Left out on
purpose: other callbacks, collators and whatever else changes a loop from outside (each is refused by name), and several processes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from sapwood.config import did_you_mean, save_yaml, to_dict
from sapwood.errors import CheckpointError, ConfigError, storage
from sapwood.model import Dtype, LanguageModel, learn_tokens, save_adapter
from sapwood.recipes import Screen, TuneConfig
from sapwood.recipes.live import watching
from sapwood.recipes.prepare import Prepared
from sapwood.recipes.track import tracking
from sapwood.records import Example
from sapwood.run import Run, new_run_path, open_run, saved_steps, step_records
from sapwood.train import SftResult, StepReport, sft
from sapwood.train.result import save_whole
from sapwood.train.step import evaluate
from sapwood.trl.config import SFTConfig, known_options, understood
from sapwood.trl.models import chat_of, forest_attention, opened
from sapwood.trl.names import METHODS, RENAMED, TRAINER_REFUSED
from sapwood.trl.rows import Formatting, Staged, WholeTexts, chosen_split, prepared_from, reading_of, staged
from sapwood.trl.settings import Settings, adapter, settings
from sapwood.trl.state import TrainerState, TrainOutput, history

BUDGET = 2048
"""Unique tokens a pass of `evaluate()` where no training has measured a better number."""


class SFTTrainer:
    """Supervised fine-tuning with TRL's arguments. What is wrong with them is said before anything is trained."""

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
        _refuse(given)
        self._patience = _patience_of(callbacks)
        self.args, processing_class, notes = _understood(args, processing_class, outdated)
        if model is None or train_dataset is None:
            raise ConfigError(f"SFTTrainer: `{'model' if model is None else 'train_dataset'}` is missing. Give it.")
        if self.args.output_dir is None:
            self.args = self.args.with_options({"output_dir": f"{_name_of(model)}-SFT"})
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.processing_class = processing_class
        quiet = bool(self.args.disable_tqdm) or self.args.log_level in ("error", "critical")
        self._screen, self._formatting, self._notes = Screen(quiet=quiet), formatting_func, notes
        self.output = Path(str(self.args.output_dir))
        self._open(model, quantization_config, peft_config)
        self.state = TrainerState()
        self.run_path: Path | None = None
        """The folder of the last training: metrics, ledger, checkpoints, result."""
        self._budget = BUDGET
        self._tell()

    def _open(self, model: Any, quantization: Any, peft_config: Any) -> None:
        """Model, chat, and rows of both sides."""
        notes, args = self._notes, self.args
        train, held_out = (
            None if dataset is None else chosen_split(dataset, name, notes)
            for name, dataset in (("train_dataset", self.train_dataset), ("eval_dataset", self.eval_dataset))
        )
        self._model, folder = opened(model, args, quantization, self._screen, notes)
        self._wrapped = hasattr(self._model.module, "peft_config")
        if self._wrapped and peft_config is not None:
            raise ConfigError("The model carries an adapter already, and peft_config asks for another. Leave one of them out.")
        family = str(self._model.base.config.model_type)
        self._lora = None if peft_config is None else adapter(peft_config, family, notes)
        rows = self._train_rows = self._staged(train, "train_dataset")
        self._name = str(model) if isinstance(model, str | Path) else str(getattr(self._model.base.config, "_name_or_path", "") or "")
        others = None if held_out is None else self._staged(held_out, "eval_dataset")
        texts = rows.texts("text" if self._formatting is not None else args.dataset_text_field)
        self.chat, self._beside = chat_of(self._model, folder, self.processing_class, args, self.output / "tokenizer", texts=texts)
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
                self._screen.lines([*prepared.notes, *prepared.ledger.lines_for_people()])
        whole = self._whole
        self._screen.say(f"Trained {'is every token, prompts included' if whole else 'are the answers, each to the token that ends it'}.")

    @property
    def _whole(self) -> bool:
        return self.args.assistant_only_loss is False or self.args.completion_only_loss is False

    def _examples(self, prepared: Prepared | None) -> Sequence[Example]:
        if prepared is None:
            return []
        return WholeTexts(prepared.examples) if self._whole else prepared.examples

    @property
    def model(self) -> Any:
        """The transformers model, or peft's wrapper around it."""
        return self._model.module

    @property
    def tokenizer(self) -> Any:
        """As `processing_class`."""
        return self.processing_class

    def settings(self) -> Settings:
        """What `train()` will do: the knobs of the loop, its number of steps. Raises `ConfigError`."""
        notes: list[str] = []
        full = self._lora is None and not self._wrapped
        found = settings(self.args, len(self._prepared.examples), full=full, lora=self._lora, notes=notes, patience=self._patience)
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
        resume = resume_from_checkpoint if resume_from_checkpoint is not None else self.args.resume_from_checkpoint
        path = _run_to_resume(self.output, resume) if resume else new_run_path(self.output, "run")
        run = open_run(path)
        began = time.perf_counter()
        try:
            self.run_path = path
            self._record(run, plan)
            with forest_attention(self._model):
                result = self._fit(run, plan)
        finally:
            run.close()
            self._remember(path, plan)
        self._wrapped = self._wrapped or self._lora is not None
        output = self._output(result, plan, time.perf_counter() - began)
        self._screen.say(f"{output.global_step} steps, mean loss {output.training_loss:.3f}. Everything about this run lies in {path}.")
        if self.args.push_to_hub:
            self.push_to_hub()
        return output

    def _fit(self, run: Run, plan: Settings) -> SftResult:
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

    def _record(self, run: Run, plan: Settings) -> None:
        """The knobs and the ledger, for later readers: `sapwood chat`, `export` and `runs` take the folder as a run of `sapwood sft`."""
        dtype: Dtype = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}.get(self._model.dtype, "auto")  # type: ignore[assignment]
        data, rows = self._train_rows.file, reading_of(self.args, self._train_rows)
        if self._name:
            named = TuneConfig(data=(data,) if data else (), model=self._name, out=run.path, dtype=dtype, rows=rows, train=plan.train)
            save_yaml(named, run.path / "config.yaml")
        run.write_json("settings", {"train": to_dict(plan.train), "trl": dict(self.args.given), "template": self.chat.fingerprint})
        run.clear("ledger")
        for prepared in (self._prepared, self._held_out):
            if prepared is not None:
                run.append("ledger", *prepared.ledger.records())

    def _remember(self, path: Path, plan: Settings) -> None:
        """The state, from the run's records: whole runs and stopped ones alike."""
        records = step_records(path / "metrics.jsonl")
        share = plan.train.batch / len(self._prepared.examples)
        lines = history(records, every=plan.log_every, first=self.args.logging_first_step, steps=plan.steps, rows_a_step=share)
        done = max((record["step"] for record in records if record.get("kind") == "train"), default=0)
        evals = [line["eval_loss"] for line in lines if "eval_loss" in line]
        self.state = TrainerState(done, plan.steps, plan.train.epochs, done * share, min(evals, default=None), lines)

    def _output(self, result: SftResult, plan: Settings, seconds: float) -> TrainOutput:
        assert self.run_path is not None
        losses = [record["loss"] for record in step_records(self.run_path / "metrics.jsonl") if record.get("kind") == "train"]
        mean = sum(losses) / max(1, len(losses))
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": result.steps * plan.train.batch / seconds,
            "train_steps_per_second": result.steps / seconds,
            "train_loss": mean,
            "epoch": self.state.epoch,
        }
        self.state.log_history.append({**metrics, "step": result.steps})
        return TrainOutput(result.steps, mean, metrics)

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

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, or all weights, with tokenizer, template and stop tokens, into a folder that transformers and peft load."""
        folder = Path(output_dir or self.output)
        with storage(folder, "write the model to"):
            folder.mkdir(parents=True, exist_ok=True)
            if hasattr(self._model.module, "peft_config"):
                save_adapter(self._model, folder)
            else:
                save_whole(self._model, folder)
            for name, content in self._beside.items():
                (folder / name).write_bytes(content)

    def push_to_hub(self, commit_message: str = "Fine-tuned with Sapwood", tags: Any = None, **more: Any) -> str:
        """Send what `save_model` writes to the hub, and nothing else; the address. Raises `ExportError` where the hub refuses."""
        from sapwood.trl.hub import push  # only wanted where somebody asks for the network

        if more:
            raise ConfigError(f"push_to_hub() takes commit_message and tags; {', '.join(more)} cannot be honoured. Leave it out.")
        return push(self, commit_message, [tags] if isinstance(tags, str) else list(tags or ()))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        known = [*METHODS, "train", "evaluate", "save_model", "push_to_hub", "state", "model"]
        hint = f"{METHODS[name]}. docs/from-trl.md says more" if name in METHODS else f"it has none.{did_you_mean(name, known)}"
        raise AttributeError(f"SFTTrainer.{name}: {hint}")


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


def _refuse(given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for what would change the loop from outside."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"SFTTrainer({name}=…) cannot be honoured: {TRAINER_REFUSED[name]}.")


def _understood(args: Any, processing: Any, outdated: Mapping[str, Any]) -> tuple[SFTConfig, Any, list[str]]:
    """The options, with those that former versions took as arguments of the trainer, and the tokenizer by either name."""
    notes: list[str] = []
    options: dict[str, Any] = {}
    for name, value in outdated.items():
        if name == "tokenizer":
            if processing is not None:
                raise ConfigError("SFTTrainer: `tokenizer` and `processing_class` are the same argument. Keep `processing_class`.")
            processing = value
            notes.append(f"tokenizer is called processing_class since {RENAMED['tokenizer'][1]}.")
        elif name in TRAINER_REFUSED:
            _refuse({name: value})
        elif name in known_options():
            options[name] = value
        else:
            own = ["model", "args", "train_dataset", "eval_dataset", "processing_class", "peft_config", "formatting_func"]
            hint = did_you_mean(name, [*own, *known_options()])
            raise ConfigError(f"SFTTrainer: unknown argument `{name}`.{hint} docs/from-trl.md lists what it takes.")
    found = understood(args)
    clashing = [name for name in options if found.given.get(RENAMED.get(name, (name,))[0], options[name]) != options[name]]
    if clashing:
        raise ConfigError(f"SFTTrainer({clashing[0]}={options[clashing[0]]!r}) differs from SFTConfig. Keep it in SFTConfig alone.")
    if options:
        notes.append(f"{', '.join(options)} belong{'s' * (len(options) == 1)} into SFTConfig since TRL 0.13.")
        found = found.with_options(options)
    return found, processing, notes


def _name_of(model: Any) -> str:
    name = str(model) if isinstance(model, str | Path) else str(getattr(model.config, "_name_or_path", "") or "model")
    return Path(name).name


def _run_to_resume(output: Path, resume: str | bool) -> Path:
    """The run folder to go on with. Raises `CheckpointError` where there is none."""
    if isinstance(resume, str | Path):
        for place in (Path(resume), *Path(resume).parents):
            if saved_steps(place):
                return place
        raise CheckpointError(
            f"resume_from_checkpoint is {resume}, where no run of Sapwood lies. Name a run folder, or True for the newest."
        )
    runs = sorted((path for path in output.glob("run-*") if saved_steps(path)), key=lambda path: int(path.name.removeprefix("run-")))
    if not runs:
        raise CheckpointError(f"resume_from_checkpoint=True, but below {output} no run has a checkpoint. Leave it out to begin anew.")
    return runs[-1]
