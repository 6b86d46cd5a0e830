"""Pushing, against a hub of our own on this machine: what goes out is the folder, private, in one commit; and what a refusal says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import close_session

from sapwood.errors import ConfigError, ExportError
from sapwood.export.push import check_name, push


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload of small files speaks to."""

    def do_POST(self) -> None:
        seen: list[tuple[str, Any]] = self.server.seen  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        seen.append((self.path, lines))
        if self.server.refuses:  # type: ignore[attr-defined]
            return self._answer({"error": "Invalid credentials"}, 401)
        if "preupload" in self.path:
            named = [file["path"] for file in lines[0]["files"]]
            return self._answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]})
        if "/commit/" in self.path:
            return self._answer(
                {"success": True, "commitUrl": "https://huggingface.co/ada/it/commit/1", "commitOid": "1", "hookOutput": ""}
            )
        return self._answer({"url": "https://huggingface.co/ada/it", "errors": [], "warnings": []})

    def do_GET(self) -> None:
        if self.server.refuses:  # type: ignore[attr-defined]
            return self._answer({"error": "Invalid credentials"}, 401)
        return self._answer({"sha": "0", "siblings": [], "id": "ada/it", "private": True})

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.refuses = [], False  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    close_session()


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# it\n")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("private", [True, False])
def test_the_folder_goes_out_in_one_commit(hub: Any, tmp_path: Path, private: bool) -> None:
    address = push(folder_of(tmp_path), "ada/it", private=private, endpoint=f"http://127.0.0.1:{hub.server_port}")
    assert address == "https://huggingface.co/ada/it/commit/1"
    (created,) = (lines[0] for path, lines in hub.seen if path.endswith("/repos/create"))
    assert created["name"] == "it"
    assert (created.get("visibility") == "private" or created.get("private") is True) is private
    (commit,) = (lines for path, lines in hub.seen if "/commit/" in path)
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in commit if line["key"] == "file"}
    assert sent == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def test_a_refusal_says_where_the_export_lies_and_what_to_do(hub: Any, tmp_path: Path) -> None:
    hub.refuses = True
    with pytest.raises(ExportError, match=r"did not take ada/it.*lies whole in .*hf auth login.*hf upload ada/it"):
        push(folder_of(tmp_path), "ada/it", private=True, endpoint=f"http://127.0.0.1:{hub.server_port}")


def test_without_a_network_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="did not take"):
        push(folder_of(tmp_path), "ada/it", private=True, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["it", "a/b/c", "ada/", "/it", "ada/i t"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        check_name(name)
    check_name("ada/my-model.v2")
