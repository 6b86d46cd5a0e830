"""Names and paths as a person writes them: which folder they mean, or what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

import sapwood.assets.resolve
from sapwood.assets import DEFAULT_MODEL, resolve_data, resolve_model
from sapwood.errors import AssetError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and nothing goes out: neither to the hub nor to a package index."""

    def refuse(name: str, weights: bool) -> Path:
        raise ConnectionAbortedError(f"went out for {name}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sapwood.assets.resolve, "_from_hub", refuse)
    monkeypatch.setattr(sapwood.assets.resolve, "pull", lambda name, **_: Path("/pulled") / name)
    return tmp_path


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text("{}")
    return path


def test_local_folder_is_taken_as_it_is(here: Path) -> None:
    made = folder(here / "org" / "name", "config.json", "model.safetensors")
    assert resolve_model(made) == made
    assert resolve_model("org/name") == Path("org/name"), "a folder wins over a hub id"


def test_names_of_the_catalogue_are_pulled() -> None:
    assert resolve_model(DEFAULT_MODEL) == Path("/pulled") / DEFAULT_MODEL
    assert resolve_data("bfcl") == Path("/pulled/bfcl")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json"], r"no \*\.safetensors"),
        (["model.safetensors"], r"no config\.json"),
        ([], r"no config\.json and no \*\.safetensors"),
        (["config.json", "pytorch_model.bin"], r"pytorch_model\.bin: a pickle runs code"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter, not a model"),
    ],
)
def test_folder_that_is_no_model_is_refused_by_name(names: list[str], said: str, here: Path) -> None:
    with pytest.raises(AssetError, match=said):
        resolve_model(folder(here / "made", *names))


def test_file_is_not_a_model(here: Path) -> None:
    (here / "model.gguf").write_text("")
    with pytest.raises(AssetError, match="is a file"):
        resolve_model("model.gguf")


def test_misspelt_names_are_told_the_nearest() -> None:
    with pytest.raises(AssetError, match=r"no model called.*Did you mean 'smollm2-135m-instruct'"):
        resolve_model("smollm-135m-instruct")
    with pytest.raises(AssetError, match=r"no data set called.*Did you mean 'sarcasm'"):
        resolve_data("sarcasms")


def test_kinds_are_not_mixed_up() -> None:
    with pytest.raises(AssetError, match="'bfcl' is a data set, where a model is wanted"):
        resolve_model("bfcl")
    with pytest.raises(AssetError, match="is a model, where a data set is wanted"):
        resolve_data(DEFAULT_MODEL)


@pytest.mark.parametrize("name", ["runs/sft-9", "./org/name", "/no/such/folder", "a/b/c", Path("org/name")])
def test_misspelt_paths_never_go_out_over_the_network(name: str | Path, here: Path) -> None:
    (here / "runs").mkdir()
    with pytest.raises(AssetError, match="There is no folder"):
        resolve_model(name)
    with pytest.raises(AssetError, match="There is no file or folder"):
        resolve_data(name)


def test_only_a_hub_id_goes_to_the_hub() -> None:
    with pytest.raises(ConnectionAbortedError, match="went out for org/name"):
        resolve_model("org/name")


def test_data_file_and_hub_data(here: Path) -> None:
    (here / "rows.jsonl").write_text("{}\n")
    assert resolve_data("rows.jsonl") == Path("rows.jsonl")
    with pytest.raises(AssetError, match=r"no file or folder .*rows2\.jsonl"):
        resolve_data("rows2.jsonl")
    with pytest.raises(AssetError, match=r"data set of the hub.*load_dataset\('org/name'"):
        resolve_data("org/name")


def test_no_network_is_an_error_that_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    from sapwood.assets.resolve import CATALOGUE

    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match=f"could not be fetched from the hub.*{next(iter(CATALOGUE))}"):
        resolve_model("org/name")


HUB = ("config.json", "tokenizer.json", "chat_template.jinja", "model-00001-of-00001.safetensors", "sub/other.safetensors", "model.gguf")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub with one model, which knows which files it was asked for."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        for file in filter_repo_objects(HUB, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / "cached" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cached" / file).write_text("{}")
        return str(tmp_path / "cached")

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path / "cached"


def test_weights_are_not_fetched_where_nobody_reads_them(hub: Path) -> None:
    resolve_model("org/name", weights=False)
    assert {file.name for file in hub.iterdir()} == {"config.json", "tokenizer.json", "chat_template.jinja"}
    resolve_model("org/name")
    assert {file.name for file in hub.iterdir()} == {"config.json", "tokenizer.json", "chat_template.jinja", HUB[3]}


def test_weights_that_never_came_are_told_as_such(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model("org/name", weights=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(hub))  # what it gives without a network
    with pytest.raises(AssetError, match=r"no weights of 'org/name' as safetensors here.*Try again with a network"):
        resolve_model("org/name")


def test_a_folder_needs_no_weights_where_nobody_reads_them(here: Path) -> None:
    made = folder(here / "made", "config.json")
    assert resolve_model(made, weights=False) == made
    with pytest.raises(AssetError, match=r"no config\.json and no tokenizer\.json; name a folder in transformers' layout\.$"):
        resolve_model(folder(here / "empty"), weights=False)
