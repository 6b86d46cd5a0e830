"""A real PostgreSQL for tests: made in a temporary folder, on loopback and a port that is free, gone with the session.

`postgres_url` gives the URL of a new, empty database. Where the binaries are missing, the tests that need them are skipped and say so.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

BINARIES = Path("/usr/lib/postgresql/15/bin")
_numbers = itertools.count(1)


def postgres_url() -> str:
    """The URL of a database that nobody has used."""
    server = _server()
    name = f"sapwood_{next(_numbers)}"
    server.run("createdb", name)
    return f"postgresql://postgres@127.0.0.1:{server.port}/{name}"


def stop_postgres() -> None:
    """Stop the server as a restart would, until `start_postgres`."""
    _server().control("stop", "-m", "fast")


def start_postgres() -> None:
    """Start it again, on the same port and with the same databases."""
    _server().start()


class _Server:
    def __init__(self) -> None:
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        self.folder = Path(tempfile.mkdtemp(prefix="sapwood-pg-"))
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._call(BINARIES / "initdb", "-D", self.folder / "data", "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off -c max_connections=200"
        self.control("start", "-o", options, "-l", str(self.folder / "log"))

    def control(self, verb: str, *words: str) -> None:
        self._call(BINARIES / "pg_ctl", "-D", self.folder / "data", "-w", "-t", "60", verb, *words)

    def run(self, program: str, *words: str) -> None:
        self._call(BINARIES / program, "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", *words)

    def end(self) -> None:
        stop = [BINARIES / "pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop"]
        subprocess.run([*self._as, *stop], cwd="/", capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, *words: str | Path) -> None:
        # not through pipes: the server would hold them open for as long as it lives
        with tempfile.TemporaryFile() as said:
            done = subprocess.run([*self._as, *words], cwd="/", stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False)
            said.seek(0)
            assert done.returncode == 0, said.read().decode(errors="replace")


@cache
def _server() -> _Server:
    if not (BINARIES / "initdb").exists():
        pytest.skip(f"PostgreSQL is not installed in {BINARIES}: apt-get install postgresql")
    server = _Server()
    atexit.register(server.end)
    return server
