"""The records of a training for TensorBoard and Weights & Biases, for those who ask for them.

In: records of the run's metrics. Out: event files below RUN/tensorboard, or a run of W&B whose files lie in RUN/wandb. Both packages
are optional and loaded when asked for. A step is told once, however often the run was resumed, and a service that is switched on
later is told everything. W&B sends nothing unless the user is logged in there or WANDB_MODE says `online`.
Left out on purpose: rows, answers, code, and facts about the machine. A service that fails ends with a sentence, never the run.
"""

from __future__ import annotations

import os
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from sapwood.errors import ConfigError
from sapwood.run import Run, read_records, write_atomic

Service = Literal["tensorboard", "wandb"]
Key = tuple[str, int]
"""(kind, step) of a record."""
NAMES: Mapping[str, str] = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}
NOT_SHOWN = {"schema", "kind", "step", "parts"}
"""Of a record, what is no number to draw."""


class Tracker(Protocol):
    """A service that draws numbers over steps."""

    told: set[Key]
    """What it knows already."""

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Tell it numbers by name."""

    def close(self) -> None:
        """Tell it that the sitting ends."""


def require_services(names: Sequence[str]) -> None:
    """Raise `ConfigError` where the package of a service is not installed: before anything is read or loaded."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"track names {name}, whose package is not installed. Install it with pip install 'sapwood[track]'.")


@contextmanager
def tracking(
    run: Run, names: Sequence[Service], settings: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """A function that tells records to the services, while the block runs. What one of them refuses is said once, through `say`."""
    open_: dict[str, Tracker] = {}

    def guarded(name: str, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:  # noqa: BLE001  whatever a service of others raises, the training is worth more
            open_.pop(name, None)
            say(f"{NAMES[name]} is told no more ({type(error).__name__}: {error}). Training goes on; metrics.jsonl holds everything.")

    def opened(name: Service) -> None:
        open_[name] = _TensorBoard(run.path) if name == "tensorboard" else _WandB(run.path, settings, say)

    def tell(records: list[dict[str, Any]]) -> None:
        for name, tracker in list(open_.items()):
            guarded(name, lambda tracker=tracker: _told(tracker, records))  # type: ignore[misc]

    for service in dict.fromkeys(names):
        guarded(service, lambda service=service: opened(service))  # type: ignore[misc]
    try:
        yield tell
    finally:
        for name, tracker in list(open_.items()):
            guarded(name, tracker.close)


def _told(tracker: Tracker, records: list[dict[str, Any]]) -> None:
    for record in records:
        key = (record["kind"], record["step"])
        if key not in tracker.told:
            numbers = {name: value for name, value in record.items() if name not in NOT_SHOWN and isinstance(value, int | float)}
            tracker.send(record["step"], {f"{record['kind']}/{name}": float(value) for name, value in numbers.items()})
            tracker.told.add(key)


class _TensorBoard:
    """Event files by the package's own record writer, without torch's: one file a sitting, written and flushed record by record."""

    def __init__(self, run: Path) -> None:
        self._event = import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = import_module("tensorboard.compat.proto.summary_pb2").Summary
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        self.told = {key for file in earlier for key in self._keys(file)}
        # read in order of their names: the count parts sittings of one second
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{len(earlier):04d}.{uuid.uuid4().hex[:8]}.sapwood"
        self._file = (folder / name).open("xb")
        self._writer = import_module("tensorboard.summary.writer.record_writer").RecordWriter(self._file)
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def send(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def _keys(self, file: Path) -> Iterator[Key]:
        """What an earlier sitting wrote; a record that was torn when it was killed ends it."""
        content, place = file.read_bytes(), 0
        while place + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            place += 12 + length + 4  # length and its checksum in front, a checksum behind
            if place > len(content):
                return
            event = self._event.FromString(content[place - 4 - length : place - 4])
            for value in event.summary.value:
                yield value.tag.partition("/")[0], event.step


class _WandB:
    """A run of W&B, offline where nobody said otherwise."""

    def __init__(self, run: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own reports about itself: nobody asked for them
        wandb = import_module("wandb")

        folder = run / "wandb"
        folder.mkdir(exist_ok=True)
        mark = folder / "id.txt"
        again = mark.is_file()
        if not again:
            write_atomic(mark, uuid.uuid4().hex[:12].encode())
        self.told = {(str(record.get("kind")), record["step"]) for record in read_records(run / "metrics.jsonl")} if again else set()
        mode = os.environ.get("WANDB_MODE") or ("online" if _is_logged_in() else "offline")
        private = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sapwood"),
            name=run.resolve().name,
            id=mark.read_text(),
            dir=str(run),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=dict(settings),
            settings=private,
        )
        if mode == "offline":
            say(f"W&B is kept in {folder} and nothing is sent. Send it with `wandb sync`, or log in (`wandb login`) before the run.")

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _is_logged_in() -> bool:
    """Whether a key for W&B lies where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    place = Path(os.environ.get("NETRC") or Path.home() / ("_netrc" if os.name == "nt" else ".netrc"))
    try:
        return "wandb.ai" in place.read_text(encoding="utf-8")
    except OSError:
        return False
