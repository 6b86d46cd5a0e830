"""What README and examples promise, run or read."""

from __future__ import annotations

import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sapwood
from sapwood.cli.main import VERBS, main
from tiny.folder import write_model, write_rows

ROOT = Path(__file__).parent.parent


def test_the_exported_names_are_there() -> None:
    for name in sapwood.__all__:
        assert callable(getattr(sapwood, name)), name
    with pytest.raises(AttributeError, match="no attribute 'sftt'"):
        sapwood.sftt  # noqa: B018


def test_importing_costs_no_torch() -> None:
    code = "import sys, sapwood; dir(sapwood); assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_rows(tmp_path / "my.jsonl", 60)
    example = runpy.run_path(str(ROOT / "examples" / "fine_tune.py"))
    knobs = {"model": tmp_path / "model", "dtype": "fp32", "budget": 512, "max_new_tokens": 3, "shots": [], "held_out": 24}
    result = example["main"]("my.jsonl", **knobs)
    assert result.verdict is not None
    assert str(result.report) in capsys.readouterr().out


def test_the_wheel_holds_what_runs_need(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        str(tmp_path),
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as box:
        names = set(box.namelist())
        box.extractall(tmp_path / "site")
    package = ROOT / "src" / "sapwood"
    kept = {str(path.relative_to(package.parent)) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kept <= names, f"missing in the wheel: {kept - names}"
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import sapwood; print(sapwood.__file__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "site") in shown


@pytest.mark.parametrize("verb", [*VERBS, ""])
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"] if verb else ["--help"]) == 0
    out = capsys.readouterr()
    assert "sapwood" in (out.out + out.err).lower()
