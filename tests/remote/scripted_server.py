"""A server on loopback that does what a test tells it, down to the bytes: the seam at which faults are planted."""

from __future__ import annotations

import json
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Script = Callable[[dict[str, Any], int], bytes | None]
"""(the request's body, how many requests came before) → the response's bytes; None hangs until the server closes."""


def response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole response; what is no bytes is JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *(f"{key}: {value}" for key, value in (headers or {}).items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def said(*texts: str, reason: str | None = "stop", usage: tuple[int, int] | None = (7, 3), **message: Any) -> bytes:
    """A response with these answers."""
    choices = [
        {"index": place, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
        for place, text in enumerate(texts)
    ]
    counts = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    return response({"id": "x", "object": "chat.completion", "choices": choices, **counts})


@dataclass
class Scripted:
    """A running server."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serving(script: Script, models: bytes | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Serve until the block ends. `models` answers every GET."""
    closing, lock = threading.Event(), threading.Lock()
    now = 0

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            nonlocal now
            if tls is not None:
                with suppress(OSError):  # a client that does not trust us leaves
                    self.request.do_handshake()
            while (line := self.rfile.readline()) and not closing.is_set():
                pairs = (header.decode().partition(":") for header in iter(self.rfile.readline, b"\r\n"))
                headers = {key.lower(): value.strip() for key, _, value in pairs}
                data = self.rfile.read(int(headers.get("content-length", 0)))
                if line.startswith(b"GET"):
                    self.wfile.write(models or response({"error": "nothing here"}, 404))
                    continue
                with lock:
                    now += 1
                    server.most_at_once = max(server.most_at_once, now)
                    before = len(server.bodies)
                    server.bodies.append(json.loads(data))
                    server.headers.append(headers)
                try:
                    answer = script(server.bodies[before], before)
                finally:
                    with lock:
                        now -= 1
                if answer is None:
                    closing.wait(20)
                    return
                self.wfile.write(answer)
                length = answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                if not length or int(length) > len(answer.partition(b"\r\n\r\n")[2]):
                    return  # no length, or more promised than given: the connection is cut

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as tcp:
        tcp.daemon_threads = True
        if tls is not None:
            tcp.socket = tls.wrap_socket(tcp.socket, server_side=True, do_handshake_on_connect=False)
        tcp.block_on_close = False
        server = Scripted(f"{'https' if tls else 'http'}://127.0.0.1:{tcp.server_address[1]}/v1")
        thread = threading.Thread(target=tcp.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            closing.set()
            tcp.shutdown()
            thread.join()
