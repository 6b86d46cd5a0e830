"""Sending a result to the hub, when `push_to_hub()` is called and not before.

In: a trainer. Out: the address of the commit. What goes out is the folder that `save_model` writes, with the tags in its README.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sapwood.export.push import push as send


def push(trainer: Any, message: str, tags: Sequence[str]) -> str:
    """Make the repository where it is missing, and upload. Raises `ExportError` with what the hub said."""
    args = trainer.args
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_model(folder)
        if tags:
            (Path(folder) / "README.md").write_text("---\ntags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---\n")
        return send(
            Path(folder),
            args.hub_model_id or Path(str(args.output_dir)).name,
            private=args.hub_private_repo is not False,
            message=message,
            token=args.hub_token,
            otherwise=f"The result is safe in {trainer.output}. Sign in with `hf auth login`, then call push_to_hub() again.",
        )
