"""A server whose certificate nobody vouches for is not talked to."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from remote.scripted_server import said, serving
from sapwood.errors import RemoteError
from sapwood.records import Message, Prompt, SamplingParams
from sapwood.remote import Remote, RemoteSampler

KEY = "sk-never-seen"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_of_nobody_is_refused_before_anything_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        *names,
        *files,
    ]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    monkeypatch.setenv("SOME_KEY", KEY)
    with serving(lambda body, _: said("x"), tls=context) as server:
        sampler = RemoteSampler(Remote(url=server.url, model="m", key="SOME_KEY", tries=2, backoff=0.01))
        with pytest.raises(RemoteError, match=r"(?i)certificate"):
            sampler.generate([Prompt((Message("user", "hi"),), (), "")], SamplingParams())
        with pytest.raises(RemoteError, match=r"(?i)certificate"):
            sampler.check()
    assert not server.headers
