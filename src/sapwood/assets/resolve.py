"""What a person writes after `--model` or `--data` → a local path: a folder, a catalogue name, or a hub id.

Flows in: a name or path. Flows out: a path that exists. A path wins over a name, a name over a hub id.
Left out on purpose: reading what is there; hub data sets, whose files and splits `sapwood.data.hub` knows.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from sapwood.assets.cache import Report
from sapwood.assets.catalogue import CATALOGUE, find
from sapwood.assets.pulling import pull
from sapwood.errors import AssetError, storage

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"]
_NOT_FROM_HUB = ["consolidated*.safetensors", "*/*.safetensors"]  # the same weights again, in the layouts of other programs
_DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_DESCRIBING = ("config.json", "tokenizer.json")
"""Files by one of which a folder without weights is known."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def resolve_model(name_or_path: str | Path, *, weights: bool = True, report: Report | None = None) -> Path:
    """The local folder of a model: config.json and *.safetensors are there.

    Without `weights` a folder needs none, and none are fetched from the hub: for those who only look at config, template and tokenizer.
    Raises `AssetError` if nothing is found under that name, if the folder is no model, or if its weights are pickled.
    """
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if path.exists():
        return _checked_model(path, weights)
    if name in CATALOGUE:
        return pull(find(name, "model").name, report=report)
    if _is_hub_id(name_or_path):
        folder = _from_hub(name, weights)
        if weights and not any(folder.glob("*.safetensors")):
            raise AssetError(
                f"There are no weights of {name!r} as safetensors here: the hub has none, or could not be reached after a plan or a doctor "
                f"fetched the other files into {folder}. Try again with a network, or name a local folder."
            )
        return _checked_model(folder, weights)
    if _looks_like_path(name_or_path):
        raise AssetError(f"There is no folder {path.absolute()}. Name a folder with config.json and *.safetensors, or a model by name.")
    return pull(find(name, "model").name, report=report)  # raises, naming the nearest


def resolve_data(name_or_path: str | Path, *, report: Report | None = None) -> Path:
    """The local file or folder of a data set. Raises `AssetError` if nothing is found under that name."""
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in CATALOGUE:
        return pull(find(name, "data").name, report=report)
    if _is_hub_id(name_or_path) and path.suffix not in _DATA_SUFFIXES:
        if importlib.util.find_spec("datasets") is None:
            missing = "Sapwood reads hub data sets through the extra `hub`, which is not installed: run `pip install 'sapwood[hub]'`. "
        else:
            missing = ""
        raise AssetError(
            f"There is no file or folder {name!r}; it reads like a data set of the hub. {missing}Save it as JSON Lines and name the file: "
            f"python -c \"import datasets; datasets.load_dataset('{name}', split='train').to_json('train.jsonl')\""
        )
    if _looks_like_path(name_or_path) or path.suffix in _DATA_SUFFIXES:
        raise AssetError(f"There is no file or folder {path.absolute()}. Name one that exists, or a data set by name.")
    return pull(find(name, "data").name, report=report)  # raises, naming the nearest


def _is_hub_id(name: str | Path) -> bool:
    """Whether it can only be meant for the hub: a misspelt path below a folder that is here must not go out over the network."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None and not name.startswith(".") and not Path(name).parent.exists()


def _looks_like_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or os.sep in name or "/" in name


def _checked_model(folder: Path, weights: bool) -> Path:
    with storage(folder, "read"):
        if not folder.is_dir():
            raise AssetError(f"{folder} is a file, where a model's folder is wanted. Name the folder that holds config.json.")
        if not weights and any((folder / name).is_file() for name in _DESCRIBING):
            return folder
        if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
            return folder
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if (folder / "adapter_config.json").is_file():
            found = (
                "an adapter, not a model: name the model that it was trained on. `sapwood eval` takes the adapter beside it, as --adapter; "
                "`sapwood chat` takes the adapter alone"
            )
        elif pickles:
            found = (
                f"weights only as {', '.join(pickles[:3])}: a pickle runs code when it is opened, so Sapwood does not. "
                "Convert them to safetensors, or name a revision that has them"
            )
        else:
            missing = [what for what, there in _wanted(folder, weights) if not there]
            found = f"no {' and no '.join(missing)}; name a folder in transformers' layout{', with weights as safetensors' * weights}"
        raise AssetError(f"{folder} holds {found}.")


def _wanted(folder: Path, weights: bool) -> list[tuple[str, bool]]:
    if not weights:
        return [(name, (folder / name).is_file()) for name in _DESCRIBING]
    return [("config.json", (folder / "config.json").is_file()), ("*.safetensors", any(folder.glob("*.safetensors")))]


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and only wanted here
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        with storage(name, "download"):
            ignored = _NOT_FROM_HUB if weights else ["*.safetensors"]
            return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=ignored))
    except RepositoryNotFoundError as error:
        raise AssetError(
            f"The hub has no model {name!r}, or it is private. Check the spelling; for a private or gated one, run `hf auth login` first."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise AssetError(
            f"{name!r} could not be fetched from the hub ({type(error).__name__}), and this machine has no copy of it. Without a network, "
            f"name a local folder or a model of the catalogue: {', '.join(n for n, a in CATALOGUE.items() if a.kind == 'model')}."
        ) from error
