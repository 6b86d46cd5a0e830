"""The exception tree. Everything Sapwood raises on purpose is one of these:

    SapwoodError
    ├── ConfigError       a knob: unknown, misspelt, out of range, or two that contradict each other
    ├── AssetError        a model or data set that cannot be fetched, checked, unpacked or found
    ├── TemplateError     a chat template that is missing, broken, or cannot express a conversation
    ├── DataError         a file or a row: unreadable, malformed, too long, nothing to train on
    ├── ModelError        a model that cannot be loaded, or has a layer that Sapwood cannot serve exactly
    ├── CheckpointError   a checkpoint that is missing, damaged, or belongs to another run
    ├── TrainingError     a run that must stop: a loss that is not finite, a rehearsal that failed
    ├── ExportError       an export that differs from what was trained, or a format that cannot hold it
    ├── RemoteError       a server that cannot be reached, refuses the key, or lacks the model
    └── StorageError      a disk that is full, a folder that is read-only, a run another process is writing

A message is one paragraph for a person: what was found, where (file:line, row, dotted key), what is
allowed, and the next action. Bugs of Sapwood's own are `assert`s and ordinary exceptions, never these.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SapwoodError(Exception):
    """Base of all errors that a person can act on."""


class ConfigError(SapwoodError, ValueError):
    """A knob is unknown, misspelt, out of range, or contradicts another."""


class AssetError(SapwoodError, OSError):
    """A model or data set cannot be fetched, checked, unpacked or found."""


class TemplateError(SapwoodError, ValueError):
    """A chat template is missing, broken, or cannot express a conversation."""


class DataError(SapwoodError, ValueError):
    """A file or row is unreadable, malformed, too long, or has nothing to train on."""


class ModelError(SapwoodError, ValueError):
    """A model cannot be loaded, or has a layer that Sapwood cannot serve exactly."""


class CheckpointError(SapwoodError, OSError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class TrainingError(SapwoodError, RuntimeError):
    """A run must stop: a loss that is not finite, a rehearsal that failed."""


class ExportError(SapwoodError, RuntimeError):
    """An export differs from what was trained, or the format that was asked for cannot hold it."""


class RemoteError(SapwoodError, OSError):
    """A server cannot be reached, refuses the key, or lacks the model: every request to it would fail."""


class StorageError(SapwoodError, OSError):
    """A disk is full, a folder is read-only, or another process writes the run."""


_OS_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space, or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space, or choose another folder",
    errno.EACCES: "this user has no permission there; change its permissions, or choose another folder",
    errno.EPERM: "this user has no permission there; change its permissions, or choose another folder",
    errno.EROFS: "that file system is read-only; choose another folder",
    errno.EFBIG: "the file would be larger than is allowed here (ulimit -f says how large); choose another folder, or raise the limit",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
    errno.EISDIR: "the path is a folder, not a file; name a file",
}

_RUST = ("safetensors", "tokenizers")
"""Packages whose errors give the operating system's number in words alone: "(os error 28)"."""


@contextmanager
def storage(path: Path | str, doing: str) -> Iterator[None]:
    """Turn the operating system's refusals while `doing` something to `path` into a `StorageError`.

    Only causes that a person can act on are translated; anything else passes through unchanged.
    """
    try:
        yield
    except SapwoodError:
        raise
    except Exception as error:
        cause = _OS_CAUSES.get(_number_of(error))
        if cause is None:
            raise
        raise StorageError(f"Could not {doing} {path}: {cause}. Nothing that was there before has been changed.") from error


def _number_of(error: Exception) -> int:
    """The operating system's number of an error, 0 without one."""
    if isinstance(error, OSError):
        return error.errno or 0
    words = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__module__.startswith(_RUST) else None
    return int(words[1]) if words else 0
