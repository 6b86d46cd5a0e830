"""The run directory: one folder, one writer, files that every later step reads.

    run.json           the version of the directory, and when it was begun; a folder without it is of version 0
    config.yaml        the resolved config; `sapwood sft RUN/config.yaml` runs it again
    environment.json   versions, machine, seeds, hashes
    ledger.jsonl       every row of the input: trained, held out or refused, with file:line and reason
    trained.keys       hashes of the questions that are trained, so that no copy of them is asked later
    metrics.jsonl      one record a step; a resumed run appends, and the last record of a step counts
    samples.jsonl      questions answered before, during and after
    scores.jsonl       one record for each arm and item
    checkpoints/       step-N/, written whole or not at all
    adapter/           the result, in peft's format
    report.html        the verdict

Directory and records carry `schema`, so that a later version can open them or say what to do. What has changed since:

    1   run.json and identity.json are written first, checkpoints are sealed
    0   before that; what it holds opens, but a training is not gone on with where nobody can tell what it was begun with
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

import orjson

from sapwood.errors import CheckpointError, DataError, StorageError, storage

SCHEMA = 1
"""Version of run directories and of the records in them."""

MARK = "run.json"
"""What makes a folder a run directory of ours."""
LOCK = ".lock"


def version_of(path: Path) -> int:
    """The version of a run directory; 0 where it does not say. Raises `CheckpointError` where run.json is damaged."""
    mark = path / MARK
    if not mark.is_file():
        return 0
    try:
        with storage(mark, "read"):
            version = orjson.loads(mark.read_bytes())["schema"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        version = None
    if not isinstance(version, int):
        raise CheckpointError(f'{mark}: damaged, so nobody can tell the version of {path}. Write {{"schema": {SCHEMA}}} into it to go on.')
    return version


def require_known(path: Path) -> None:
    """Raise `CheckpointError` for a run directory of a later version, before anything in it is misread."""
    if (version := version_of(path)) > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer Sapwood: it is a run directory of version {version}, and this one opens up to {SCHEMA}. "
            "Update Sapwood to open it; nothing in it was changed."
        )


def saved_steps(run: Path) -> list[int]:
    """Steps of which a checkpoint stands in the run directory, ascending."""
    names = (path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in names if name.isdigit())


def new_run_path(root: Path, name: str) -> Path:
    """The first of root/name-1, root/name-2, … that does not exist. Of the name, what a folder should not be called is left out."""
    name = re.sub(r"[^\w.]+", "-", name).strip("-.") or "run"
    return next(path for n in itertools.count(1) if not (path := root / f"{name}-{n}").exists())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even after a power cut.

    Raises `StorageError` if the disk refuses; the old content is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage(path, "write"):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except FileNotFoundError as error:
            raise StorageError(f"Could not write {path}: there is no folder {path.parent}. Make it, or name another file.") from error
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file of ours holds, such as environment.json; empty where there is no file. Damage raises `DataError`."""
    if not path.is_file():
        return {}
    with storage(path, "read"):
        content = path.read_bytes()
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: damaged ({error}). Put the file back, or train anew into another folder.") from None
    return found if isinstance(found, dict) else {}


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a JSONL file of ours. A torn last line (a killed writer) is left out; other damage raises `DataError`."""
    if not path.exists():
        return []
    with storage(path, "read"):
        lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            if number == len(lines):
                break
            raise DataError(f"{path}:{number}: a damaged record. Delete the line to go on without it.") from None
        if record.get("schema", 0) > SCHEMA:
            raise DataError(
                f"{path}:{number}: written by a newer Sapwood (records of version {record['schema']}, this one reads up to {SCHEMA}). "
                "Update Sapwood to open it."
            )
        records.append(record)
    return records


def step_records(path: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics in order of step, the last one of each (step, kind): what a resumed run repeated counts once."""
    latest = {(record["step"], record.get("kind")): record for record in read_records(path)}
    return [latest[key] for key in sorted(latest, key=lambda key: (key[0], str(key[1])))]


def training_seconds(run: Path, until: int | None = None) -> float:
    """Seconds of a run's steps, up to one of them or all."""
    records = [one for one in step_records(run / "metrics.jsonl") if one.get("kind", "train") == "train"]
    return float(sum(float(one.get("seconds") or 0) for one in records if until is None or int(one["step"]) <= until))


@dataclass(frozen=True)
class Run:
    """An open run directory. At most one process writes it: the lock is held until it is closed, or the `with` ends, or the process."""

    path: Path
    _lock: IO[bytes]

    def append(self, name: str, *records: Mapping[str, Any]) -> None:
        """Append records to `NAME.jsonl`, one write for all of them."""
        data = _lines(records)
        path = self.path / f"{name}.jsonl"
        with storage(path, "write"), path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a writer was killed in the middle of a line: keep it apart from ours
                    _mend_last_line(file)
            file.write(data)

    def replace(self, name: str, *records: Mapping[str, Any]) -> None:
        """Write `NAME.jsonl` anew, whole or not at all: who comes after a power cut finds the old records or the new."""
        write_atomic(self.path / f"{name}.jsonl", _lines(records))

    def read(self, name: str) -> list[dict[str, Any]]:
        """All records of `NAME.jsonl`."""
        return read_records(self.path / f"{name}.jsonl")

    def clear(self, name: str) -> None:
        """Start `NAME.jsonl` anew: for records that a later start of the same run makes again."""
        with storage(self.path / f"{name}.jsonl", "write"):
            (self.path / f"{name}.jsonl").unlink(missing_ok=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write `NAME.json` whole or not at all."""
        data = {"schema": SCHEMA, **content}
        write_atomic(self.path / f"{name}.json", orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str))

    def close(self) -> None:
        """Give the lock back, so that another process (or a later call in this one) may write."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Closes; who stops the program (Ctrl-C) finds the directory among the exception's notes."""
        self.close()
        if isinstance(error, KeyboardInterrupt):
            error.add_note(str(self.path))


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    dumped = (orjson.dumps({"schema": SCHEMA, **record}, option=orjson.OPT_SERIALIZE_NUMPY, default=str) for record in records)
    return b"".join(line + b"\n" for line in dumped)


def _mend_last_line(file: IO[bytes]) -> None:
    """A line without an end: cut it where it is torn, end it where it is whole (a reader has counted it already)."""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        orjson.loads(content[start:])
    except orjson.JSONDecodeError:
        file.truncate(start)
    else:
        file.write(b"\n")
    file.seek(0, os.SEEK_END)


def open_run(path: Path) -> Run:
    """Create the folder if needed and take its lock. Raises `StorageError` if it cannot be written, is in use, or holds runs."""
    try:
        with storage(path, "create the run folder"):
            path.mkdir(parents=True, exist_ok=True)
            require_known(path)
            _refuse_home(path)
            lock = (path / LOCK).open("ab")
    except FileExistsError as error:
        raise StorageError(f"Could not create the run folder {path}: a file has that name. Choose another folder with --out.") from error
    except FileNotFoundError as error:  # a place like /proc, where folders cannot be made
        raise StorageError(
            f"Could not create the run folder {path}: nothing can be made there. Choose another folder with --out."
        ) from error
    if not take_lock(lock):
        lock.close()
        raise StorageError(f"{path} is being written by another process. Wait until it ends, or choose another folder with --out.")
    run = Run(path, lock)
    if not (path / MARK).exists() and not (path / "config.yaml").exists():
        run.write_json(MARK.removesuffix(".json"), {"begun": datetime.now(UTC).isoformat(timespec="seconds")})
    return run


def _refuse_home(path: Path) -> None:
    """Raise `StorageError` for a folder that holds runs and is none: whoever names it means it as their home."""
    if (path / MARK).exists() or (path / "config.yaml").exists():
        return
    if inside := sorted(mark.parent.name for mark in path.glob(f"*/{MARK}")):
        there = ", ".join(inside[:3]) + (", …" if len(inside) > 3 else "")
        raise StorageError(
            f"{path} holds runs ({there}), and a run's files would lie among them. Name a folder of its own, such as --out {path / 'mine'}."
        )


def run_named(names: Sequence[str]) -> Path | None:
    """The directory of a run, where it is all that is named; None for files, and for a folder of files."""
    return Path(names[0]) if len(names) == 1 and (Path(names[0]) / "config.yaml").is_file() else None


def is_being_written(path: Path) -> bool:
    """Whether a process holds the lock of a run directory now. Nothing is written, and two who ask do not see each other."""
    try:
        with (path / LOCK).open("rb") as lock:
            return not take_lock(lock, shared=True)
    except OSError:  # none, or not ours to read
        return False


def take_lock(file: IO[bytes], *, shared: bool = False) -> bool:
    """Take the lock of an open file; False if another process holds it. The system gives it back when the file is closed."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            return True  # a network disk without locks: files still appear whole
        raise
    return True
