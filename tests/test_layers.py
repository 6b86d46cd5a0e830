"""The layer table of docs/design.md, read from the imports themselves."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "sapwood"

LAYERS = [
    ["errors", "records", "config", "requirements", "run", "stats", "pages"],
    ["store", "assets"],
    ["chat", "data"],
    ["forest", "remote"],
    ["evaluate", "review", "ab"],
    # ---------------------------------- torch below this line
    ["kernels", "attention", "model"],
    ["generate", "export"],
    ["train", "serve"],
    ["recipes"],
    ["cli", "trl"],
]
WITHOUT_TORCH = [name for layer in LAYERS[:5] for name in layer]
RANK = {name: rank for rank, name in enumerate(name for layer in LAYERS for name in layer)}
FORBIDDEN_PAIRS = {("train", "evaluate"), ("evaluate", "train")}
LOOPS = {"sft.py:sft": 150, "grpo.py:grpo": 150, "dpo.py:dpo": 150}
FILE_LIMIT, FUNCTION_LIMIT = 400, 60
HEAVY = {"torch", "transformers", "peft"}


def modules() -> list[tuple[str, Path]]:
    """(room, file) of every module; the package's own front door is left out."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).parts
        if parts not in {("__init__.py",), ("__main__.py",)}:
            found.append((parts[0].removesuffix(".py"), path))
    return found


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} if node.module != "sapwood" else {f"sapwood.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: str(value).rsplit("/sapwood/", 1)[-1])
def test_imports_point_upwards(room: str, path: Path) -> None:
    assert room in RANK, f"{room} is not in the layer table: find its place in docs/design.md first"
    for name in imported_names(path):
        if not name.startswith("sapwood."):
            continue
        target = name.split(".")[1]
        if target in (room, "__version__"):
            continue
        assert target in RANK, f"{path} imports {name}, which is not in the layer table"
        assert RANK[target] < RANK[room], f"{path} imports {name}: {room} may only import rooms above it, or to its left in its row"
        assert (room, target) not in FORBIDDEN_PAIRS, f"{path} imports {name}: train and evaluate never meet but in recipes"


@pytest.mark.parametrize(("room", "path"), [m for m in modules() if m[0] in WITHOUT_TORCH], ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_rooms_above_the_line_never_name_torch(room: str, path: Path) -> None:
    heavy = {name for name in imported_names(path) if name.split(".")[0] in HEAVY}
    assert not heavy, f"{path} stands above the line and imports {heavy}"


def test_light_rooms_import_without_torch_and_quickly() -> None:
    code = (
        "import sys, sapwood.chat, sapwood.data, sapwood.evaluate, sapwood.review, sapwood.forest\n"
        "loaded = {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: str(value).rsplit("/sapwood/", 1)[-1])
def test_files_and_functions_stay_small(room: str, path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LIMIT, f"{path} has grown over {FILE_LIMIT} lines: a design question"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = LOOPS.get(f"{path.name}:{node.name}", FUNCTION_LIMIT)
            assert length <= limit, f"{path}:{node.lineno} {node.name} has {length} lines, more than {limit}"


def test_no_room_is_called_utils() -> None:
    names = {path.stem for _, path in modules()} | {path.parent.name for _, path in modules()}
    assert not names & {"utils", "helpers", "common", "misc"}
