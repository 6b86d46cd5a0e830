"""What a run directory belongs to, so that nothing of another making is ever mixed into it.

`identity.json` holds one hash for each thing that scores, checkpoints and verdict depend on. It is written before anything
else, and compared before anything is written when the directory is named again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from sapwood.errors import CheckpointError, storage
from sapwood.run import Run, version_of

FILE = "identity"


def claim(run: Run, parts: Mapping[str, str]) -> None:
    """Make the directory this run's own. Raises `CheckpointError`, naming what differs, if it belongs to something else."""
    saved = run.path / f"{FILE}.json"
    if saved.exists():
        with storage(saved, "read"):
            before = orjson.loads(saved.read_bytes())
        changed = [name for name in parts if before.get(name) != parts[name]]
        if changed or before.keys() - {"schema"} != set(parts):
            what = " and ".join(f"{'other' if name.endswith('s') else 'another'} {name}" for name in changed) or "another kind of run"
            raise CheckpointError(
                f"{run.path} was begun with {what}, and what it holds must not be mixed with that. Nothing in it was changed. "
                "Put back what it was begun with to go on, or choose another folder with --out."
            )
    elif version_of(run.path) == 0 and any((run.path / name).exists() for name in ("scores.jsonl", "metrics.jsonl")):
        raise CheckpointError(
            f"{run.path} was begun by an earlier Sapwood, which did not write down what it was begun with, so it cannot be gone on with. "
            f"What it trained can be used (sapwood chat, eval, export); train anew with `sapwood sft {run.path / 'config.yaml'}`."
        )
    run.write_json(FILE, parts)


def hash_of(content: Any) -> str:
    """Of anything JSON can hold."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


def hash_of_weights(*folders: Path | None) -> str:
    """Of the size and the first 64 MiB of each safetensors file, which is all of an adapter."""
    found = []
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")) if folder is not None else ():
            with storage(path, "read"), path.open("rb") as file:
                found.append([path.name, path.stat().st_size, hashlib.sha256(file.read(1 << 26)).hexdigest()])
    return hash_of(found)
