"""Sending a result to the hub, when `push_to_hub()` is called and not before.

In: a trainer. Out: the address. What goes out is the folder that `save_model` writes, with the tags in its README.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from sapwood.errors import ExportError


def push(trainer: Any, message: str, tags: Sequence[str]) -> str:
    """Make the repository where it is missing, and upload. Raises `ExportError` with what the hub said."""
    args = trainer.args
    name = args.hub_model_id or Path(str(args.output_dir)).name
    api = HfApi(token=args.hub_token)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_model(folder)
            if tags:
                (Path(folder) / "README.md").write_text("---\ntags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---\n")
            repository = api.create_repo(name, private=args.hub_private_repo is not False, exist_ok=True)
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=message)
            return str(repository)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ExportError(
            f"{name!r} could not be sent to the hub ({' '.join(str(error).split())[:300]}). The result is safe in {trainer.output}; run "
            "`hf auth login` where a token is missing, then call push_to_hub() again."
        ) from error
