"""A hub of data sets on this machine that speaks the few words that are needed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

SHA = "a" * 40
OTHER = "b" * 40
"""Commit of `v2`; a revision `main` is at `SHA`."""
Sets = Mapping[str, Mapping[str, bytes]]
"""Name → file → content."""


class Hub(BaseHTTPRequestHandler):
    sets: Sets
    asked: list[str]

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.asked.append(path)
        if path.startswith("api/datasets/"):
            _, _, owner, name, *revision = path.split("/")
            self._info(f"{owner}/{name}", revision[1] if revision else "main")
            return
        _, owner, name, _, revision, *file = path.split("/")
        content = self.sets[f"{owner}/{name}"]["/".join(file)]
        self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": revision})

    def _info(self, name: str, revision: str) -> None:
        if name == "owner/gated":
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name not in self.sets:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v2"):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            sha = SHA if revision == "main" else OTHER
            siblings = [{"rfilename": file} for file in self.sets[name]]
            self._send(200, json.dumps({"id": name, "sha": sha, "siblings": siblings}).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def hub_of(sets: Sets, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve the sets, with a cache in `folder / "hub"`; what was asked for comes as paths."""
    told = type("Told", (Hub,), {"sets": sets, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), told)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield told.asked
    server.shutdown()
    server.server_close()
    thread.join()
