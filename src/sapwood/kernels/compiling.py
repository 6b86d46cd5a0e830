"""Compiling the kernels: both sources at the same time, by processes that end their work even where whoever began it does not wait.

In: the sources beside this file and a C++ compiler. Out: one library in the cache, under a name made from all that it depends on: the
sources, torch's version, the processor, the compiler and its flags.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import torch

from sapwood.assets import cache_root

FOLDER = Path(__file__).parent
SOURCES = ("training", "generation")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp")


@dataclass(frozen=True)
class _Work:
    """A compilation that was begun, and what the compiler says."""

    process: subprocess.Popen[bytes]
    words: IO[bytes]


_begun: dict[Path, _Work] = {}


def may_serve() -> bool:
    """Whether this machine can compile the kernels and run them, and nobody has turned them off."""
    wanted = os.environ.get("SAPWOOD_KERNELS", "1") != "0"
    return wanted and platform.system() == "Linux" and torch.backends.cpu.get_cpu_capability() == "AVX512" and compiler() is not None


def compiler() -> str | None:
    """The path of a C++ compiler; `CXX` names another one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def target() -> Path:
    """Where the library lies, or will."""
    files = sorted(file for file in FOLDER.iterdir() if file.suffix in (".cpp", ".h"))
    facts = (*(file.read_text() for file in files), torch.__version__, _processor(), compiler(), FLAGS)
    return cache_root() / "kernels" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.so"


@cache
def _processor() -> str:
    """What decides which instructions `-march=native` takes: a cache may lie on a disk that several machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def begin(*, niceness: int = 0) -> None:
    """Start the compilers where the library is missing; `compiled` waits for them. They go on where this process ends first.

    Raises `OSError` where the cache cannot be written.
    """
    library = target()
    if library.is_file() or library in _begun:
        return
    library.parent.mkdir(parents=True, exist_ok=True)
    part = library.with_suffix(f".{os.getpid()}.part")
    words = tempfile.TemporaryFile()  # noqa: SIM115 (`compiled` closes it)
    command = ["nice", "-n", str(niceness), "sh", "-c", _script(part, library)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words, start_new_session=True)
    _begun[library] = _Work(process, words)


def _script(part: Path, library: Path) -> str:
    """Everything goes into a folder of this process and is moved into place, so that no other process sees a half."""
    root = Path(torch.__file__).parent
    program = shlex.join([compiler() or "c++", *FLAGS])
    extra = ["-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    extra += [f"-I{root / 'include'}", f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    objects = [part / f"{name}.o" for name in SOURCES]
    compiled = "\n".join(
        f"{program} {shlex.join([*extra, '-c', str(FOLDER / f'{name}.cpp'), '-o', str(made)])} & {name}=$!"
        for name, made in zip(SOURCES, objects, strict=True)
    )
    waited = " && ".join(f"wait ${name}" for name in SOURCES)
    linked = shlex.join(["-shared", *map(str, objects), "-o", str(part / "whole.so"), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"])
    here, whole, there = (shlex.quote(str(path)) for path in (part, part / "whole.so", library))
    return f"mkdir -p {here}\n{compiled}\n{waited} && {program} {linked} && mv {whole} {there}\nstatus=$?\nrm -rf {here}\nexit $status"


def compiled() -> str:
    """Wait for the library, which is compiled now where that was not begun: the compiler's words where it fails, else nothing."""
    library = target()
    try:
        begin()
    except OSError as error:
        return str(error)
    work = _begun.pop(library, None)
    if work is None:
        return ""
    with work.words:
        code = work.process.wait()
        if not code:
            return ""
        work.words.seek(0)
        said = work.words.read().decode(errors="replace").splitlines()
    return next((line for line in said if "error" in line), f"exit code {code}")
