"""What the trainers of this face share: arguments understood, the model opened, the result written and sent.

In: a model, options and a tokenizer, in TRL's words. Out: the parts with which each trainer calls the loop that is Sapwood's own.
Left out on purpose: whatever depends on what is learned from; that is each trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NoReturn

import torch

from sapwood.config import did_you_mean
from sapwood.data.ledger import Ledger, records_of
from sapwood.errors import CheckpointError, ConfigError, storage
from sapwood.model import Dtype, LanguageModel, LoraConfig, save_adapter
from sapwood.recipes import Screen
from sapwood.recipes.reporting import page_kept
from sapwood.run import Run, new_run_path, open_run, saved_steps, step_records
from sapwood.train.result import save_whole
from sapwood.trl.models import forest_attention, opened
from sapwood.trl.names import METHODS, TRAINER_REFUSED
from sapwood.trl.options import Kind, known_options, understood
from sapwood.trl.settings import Settings, adapter
from sapwood.trl.state import Shown, TrainerState, TrainOutput, history

DTYPES: Mapping[torch.dtype, Dtype] = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


class Face(Generic[Kind]):
    """A trainer with TRL's arguments. What is wrong with them is said before anything is trained."""

    kind: ClassVar[type[Any]]
    """Its options."""
    arguments: ClassVar[tuple[str, ...]] = ("model", "args", "train_dataset", "eval_dataset", "processing_class", "peft_config")
    """What its constructor takes, for those who misspell it."""
    refused: ClassVar[Mapping[str, str]] = TRAINER_REFUSED
    """Arguments that are taken only as None → why, and what to do."""
    methods: ClassVar[Mapping[str, str]] = METHODS
    """Methods of TRL's trainer that this one does not have → what to use."""

    shown: ClassVar[Shown] = MappingProxyType({})
    """Figures of a step, beside its loss → what TRL calls them."""
    evaluated: ClassVar[Shown] = MappingProxyType({"loss": "eval_loss"})
    """Figures of an evaluation → what TRL calls them."""

    args: Kind
    _model: LanguageModel
    _lora: LoraConfig | None
    _wrapped: bool
    _name: str
    _beside: Mapping[str, bytes]

    def _take(self, model: Any, args: Any, dataset: Any, processing: Any, outdated: Mapping[str, Any]) -> None:
        """Options and arguments, by the names of any version. Raises `ConfigError`."""
        self.args, self.processing_class, self._notes = _understood(type(self), args, processing, outdated)
        if model is None or dataset is None:
            raise ConfigError(f"{type(self).__name__}: `{'model' if model is None else 'train_dataset'}` is missing. Give it.")
        if self.args.output_dir is None:
            method = type(self).__name__.removesuffix("Trainer")
            self.args = self.args.with_options({"output_dir": f"{_name_of(model)}-{method}"})
        quiet = bool(self.args.disable_tqdm) or self.args.log_level in ("error", "critical")
        self._screen = Screen(quiet=quiet)
        self.output = Path(str(self.args.output_dir))
        self.state = TrainerState()
        self._ledgers: list[Ledger] = []
        """Of the rows that are trained on, and of those that are held out."""
        self.run_path: Path | None = None
        """The folder of the last training: metrics, ledger, checkpoints, result."""

    def _load(self, model: Any, quantization: Any, peft_config: Any) -> Path | None:
        """The model and its adapter; the folder it was loaded from. Raises `ConfigError` and `ModelError`."""
        self._model, folder = opened(model, self.args, quantization, self._screen, self._notes)
        self._wrapped = hasattr(self._model.module, "peft_config")
        if self._wrapped and peft_config is not None:
            raise ConfigError("The model carries an adapter already, and peft_config asks for another. Leave one of them out.")
        family = str(self._model.base.config.model_type)
        self._lora = None if peft_config is None else adapter(peft_config, family, self._notes)
        self._name = str(model) if isinstance(model, str | Path) else str(getattr(self._model.base.config, "_name_or_path", "") or "")
        return folder

    @property
    def _full(self) -> bool:
        """Whether all weights are trained."""
        return self._lora is None and not self._wrapped

    @property
    def _dtype(self) -> Dtype:
        """Of the weights, in the words of a run's config."""
        return DTYPES.get(self._model.dtype, "auto")

    @contextmanager
    def _run(self, resume_from_checkpoint: str | bool | None) -> Iterator[Run]:
        """A run folder of its own below output_dir, or the one to go on with."""
        resume = resume_from_checkpoint if resume_from_checkpoint is not None else self.args.resume_from_checkpoint
        self.run_path = run_to_resume(self.output, resume) if resume else new_run_path(self.output, "run")
        with open_run(self.run_path) as run:
            yield run

    def _trained(
        self,
        resume: str | bool | None,
        plan: Settings[Any],
        fit: Callable[[Run], Any],
        *,
        share: float,
        rows_a_step: int,
        says_loss: bool = True,
    ) -> TrainOutput:
        """From a run's folder to what `train()` returns: `fit` writes the knobs down and calls the loop. What is in the folder is
        remembered where the loop is stopped, too. `share` is how many epochs a step takes."""
        began = time.perf_counter()
        with self._run(resume) as run:
            try:
                with forest_attention(self._model), page_kept(run, self._screen) if self._name else nullcontext():
                    result = fit(run)
            finally:
                self._remember(plan, share)
        self._wrapped = self._wrapped or self._lora is not None
        output = self._output(result.steps, rows_a_step, time.perf_counter() - began)
        loss = f", mean loss {output.training_loss:.3f}" if says_loss else ""
        self._screen.say(f"{output.global_step} steps{loss}. Everything about this run lies in {self.run_path}.")
        if self._name and self.run_path is not None:
            self._screen.say(f"Its page, with curves and what they say: {self.run_path / 'report.html'}")
        if self.args.push_to_hub:
            self.push_to_hub()
        return output

    def _taken(self, ledger: Ledger, *, held_out: bool, kept: bool = True) -> Ledger:
        """The ledger of one side; `kept` for the run's folder."""
        found = ledger.as_held_out() if held_out else ledger
        self._ledgers += [found] * kept
        return found

    def _write_ledger(self, run: Run) -> None:
        run.clear("ledger")
        run.append("ledger", *records_of(*self._ledgers))

    @property
    def _given(self) -> dict[str, Any]:
        """The options that were given, for the run's records; never a token."""
        return {name: value for name, value in self.args.given.items() if name != "hub_token"}

    def _lines(self, records: Iterable[Mapping[str, Any]], plan: Settings[Any], share: float) -> list[dict[str, float]]:
        """Lines of the history; `share` is how many epochs a step takes."""
        first = self.args.logging_first_step
        return history(
            records, every=plan.log_every, first=first, steps=plan.steps, rows_a_step=share, shown=self.shown, evaluated=self.evaluated
        )

    def _remember(self, plan: Settings[Any], share: float) -> None:
        """The state, from the run's records: whole runs and stopped ones alike."""
        assert self.run_path is not None
        records = step_records(self.run_path / "metrics.jsonl")
        lines = self._lines(records, plan, share)
        done = max((record["step"] for record in records if record.get("kind") == "train"), default=0)
        evals = [line["eval_loss"] for line in lines if "eval_loss" in line]
        epochs = float(self.args.num_train_epochs)
        self.state = TrainerState(done, plan.steps, epochs, done * share, min(evals, default=None), lines)

    def _output(self, steps: int, rows_a_step: int, seconds: float) -> TrainOutput:
        """What `train()` returns; its figures are the last line of the history."""
        assert self.run_path is not None
        losses = [record["loss"] for record in step_records(self.run_path / "metrics.jsonl") if record.get("kind") == "train"]
        mean = sum(losses) / max(1, len(losses))
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": steps * rows_a_step / seconds,
            "train_steps_per_second": steps / seconds,
            "train_loss": mean,
            "epoch": self.state.epoch,
        }
        self.state.log_history.append({**metrics, "step": steps})
        return TrainOutput(steps, mean, metrics)

    @property
    def model(self) -> Any:
        """The transformers model, or peft's wrapper around it."""
        return self._model.module

    @property
    def tokenizer(self) -> Any:
        """As `processing_class`."""
        return self.processing_class

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
        known = [*self.methods, "train", "evaluate", "save_model", "push_to_hub", "state", "model"]
        hint = f"{self.methods[name]}. docs/from-trl.md says more" if name in self.methods else f"it has none.{did_you_mean(name, known)}"
        raise AttributeError(f"{type(self).__name__}.{name}: {hint}")


def _understood(trainer: type[Face[Kind]], args: Any, processing: Any, outdated: Mapping[str, Any]) -> tuple[Kind, Any, list[str]]:
    """The options, with those that former versions took as arguments of the trainer, and the tokenizer by either name."""
    kind = trainer.kind
    notes: list[str] = []
    options: dict[str, Any] = {}
    for name, value in outdated.items():
        if name == "tokenizer":
            if processing is not None:
                raise ConfigError(f"{trainer.__name__}: `tokenizer` and `processing_class` are the same argument. Keep `processing_class`.")
            processing = value
            notes.append(f"tokenizer is called processing_class since {kind.renamed['tokenizer'][1]}.")
        elif name in trainer.refused:
            refuse(trainer, {name: value})
        elif name in known_options(kind):
            options[name] = value
        else:
            hint = did_you_mean(name, [*trainer.arguments, *known_options(kind)])
            raise ConfigError(f"{trainer.__name__}: unknown argument `{name}`.{hint} docs/from-trl.md lists what it takes.")
    found = understood(args, kind)
    clashing = [name for name in options if found.given.get(kind.renamed.get(name, (name,))[0], options[name]) != options[name]]
    if clashing:
        raise ConfigError(
            f"{trainer.__name__}({clashing[0]}={options[clashing[0]]!r}) differs from {kind.__name__}. Keep it in {kind.__name__} alone."
        )
    if options:
        notes.append(f"{', '.join(options)} belong{'s' * (len(options) == 1)} into {kind.__name__} since TRL 0.13.")
        found = found.with_options(options)
    return found, processing, notes


def refuse(trainer: type[Face[Any]], given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for what would change the loop from outside."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{trainer.__name__}({name}=…) cannot be honoured: {trainer.refused[name]}.")


def _name_of(model: Any) -> str:
    name = str(model) if isinstance(model, str | Path) else str(getattr(model.config, "_name_or_path", "") or "model")
    return Path(name).name


def run_to_resume(output: Path, resume: str | bool) -> Path:
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
