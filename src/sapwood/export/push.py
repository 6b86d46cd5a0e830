"""A folder, sent to a model hub: only when asked, privately unless asked otherwise, an export only after it was found to be right.

In: a finished folder and `owner/name`. Out: the address of the commit. Signing in is huggingface_hub's own business
(`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import re
from pathlib import Path

from sapwood.errors import ConfigError, ExportError

_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def check_name(name: str) -> None:
    """Raise `ConfigError` for what is no `owner/name`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"push is {name!r}; give owner/name, such as ada/my-model.")


def push(
    folder: Path,
    name: str,
    *,
    private: bool,
    message: str = "Export from Sapwood",
    token: str | None = None,
    otherwise: str = "",
    endpoint: str | None = None,
) -> str:
    """Make the repository where there is none, and add the folder as one commit; the commit's address.

    A name without an owner is the signed-in user's. Raises `ExportError` with what the hub said and where the result lies:
    `otherwise` says that for a folder that is gone afterwards.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    api = HfApi(endpoint=endpoint, token=token, library_name="sapwood")
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(folder_path=folder, repo_id=repository.repo_id, commit_message=message)
    except (HfHubHTTPError, RepositoryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        otherwise = otherwise or f"The export lies whole in {folder}. Sign in with `hf auth login`, then: hf upload {name} {folder}"
        raise ExportError(f"The hub did not take {name} ({' '.join(str(error).split())[:300]}). {otherwise}") from error
    return str(done.commit_url)
