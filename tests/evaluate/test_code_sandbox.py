"""Code of a model in the confined child: what a program tries in order to get out, or to pass without being right."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from sapwood.errors import ConfigError
from sapwood.evaluate.sandbox import Barriers, Limits, barriers, require_barriers, run_tests
from sapwood.evaluate.sandbox import running as running_module
from sapwood.evaluate.sandbox.running import Outcome, run_confined

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a program in")
SHORT = Limits(seconds=5)
WRONG = "def f(x):\n    return x"
TESTS = "assert f(1) == 2"


def kernel_alone(program: str) -> Outcome:
    """Without Python's own hook, which is the second line."""
    outcome = run_confined(program, SHORT, hook=False)[1]
    assert outcome is not None
    return outcome


@pytest.fixture(autouse=True, scope="module")
def _held() -> None:
    if not barriers().enough:
        pytest.skip(f"this kernel holds nothing in: {barriers()}")


def test_right_and_wrong_programs() -> None:
    assert run_tests("def f(x):\n    return x + 1", SHORT, tests=TESTS).ended == "passed"
    wrong = run_tests(WRONG, SHORT, tests="assert f(1) == 2, f(1)")
    assert (wrong.ended, wrong.detail, wrong.passed) == ("failed", "AssertionError: 1", False)
    assert run_tests("def f(:", SHORT).ended == "syntax"
    assert run_tests("print('hello')", SHORT).output == "hello\n"


def test_ordinary_libraries_work_inside() -> None:
    program = """
import asyncio, collections, dataclasses, decimal, hashlib, json, math, random, re, sqlite3, tempfile, threading, typing, unittest, zoneinfo
async def answer(): return 42
@dataclasses.dataclass
class Point: x: int
thread = threading.Thread(target=print, args=("hi",)); thread.start(); thread.join()
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("kept"); file.flush(); assert open(file.name).read() == "kept"
assert asyncio.run(answer()) == 42 and Point(1) == Point(1) and zoneinfo.ZoneInfo("Europe/Berlin")
"""
    outcome = run_tests(program, Limits(seconds=20))
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.create_connection(('127.0.0.1', PORT))",
        "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', '/dev/log')",
        "import socket\na, b = socket.socketpair()\na.connect('/run/systemd/notify')",
        "import os\nos.fork()",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nassert os.system('true') == 0",
        "import os, signal\nos.kill(os.getppid(), 0)",
        "import os, signal\nos.kill(-1, 9)",
        "import os\nos.killpg(os.getpgid(os.getppid()), 0)",
        "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "open(SECRET).read()",
        "open('/etc/passwd').read()",
        "import os\nos.listdir(os.path.dirname(SECRET))",
        "open('/proc/self/mem', 'rb')",
        "open(f'/proc/{__import__(\"os\").getppid()}/environ', 'rb')",
        "open(SECRET, 'a').write('x')",
        "import os\nos.unlink(SECRET)",
        "import os\nos.rename(SECRET, 'mine')",
        "import os\nos.chmod(SECRET, 0)",
        "import os\nos.truncate(SECRET, 0)",
        "import os\nos.utime(SECRET)",
        "import os\nos.symlink(SECRET, 'link')\nopen('link').read()",
        "import os\nos.link(SECRET, 'link')",
        "import os\nos.mkfifo(SECRET + '-fifo')",
        "import os\nos.memfd_create('x')",
        "import os\nos.mkdir('/tmp/sapwood-was-here')",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "import ctypes\nctypes.CDLL(None)",
    ],
)  # fmt: skip
def test_the_kernel_lets_nothing_out(program: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        outcome = kernel_alone(f"SECRET, PORT = {str(secret)!r}, {listening.getsockname()[1]}\n{program}")
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert outcome.ended == "failed", outcome
    assert secret.read_text() == "a key"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]
    assert not Path("/tmp/sapwood-was-here").exists()


def test_neither_environment_nor_arguments_nor_open_files_tell_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        program = f"""
import os, sys
assert 'OPENAI_API_KEY' not in os.environ and {os.environ["HOME"]!r} not in os.environ.values()
assert not [word for word in sys.argv if 'token' in word]
try:
    os.fstat({file.fileno()})
except OSError:
    pass
else:
    raise AssertionError('an open file of the parent')
assert os.read(0, 10) == b''
"""
        outcome = run_tests(program, SHORT)
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    ("program", "limits", "ended"),
    [
        ("while True: pass", Limits(seconds=0.6), "timeout"),
        ("import time\ntime.sleep(60)", Limits(seconds=0.6), "timeout"),
        ("import os\nos.closerange(0, 64)\nwhile True: pass", Limits(seconds=0.6), "timeout"),
        ("import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass", Limits(seconds=0.6), "timeout"),
        ("x = bytearray(1 << 30)", SHORT, "memory"),
        ("x = [0]\nwhile True: x += x", SHORT, "memory"),
        ("while True: print('x' * 9999)", SHORT, "output"),
        ("import os\nwhile True: os.write(2, b'x' * 9999)", SHORT, "output"),
        ("for n in range(10**6): open(str(n), 'w').write('x' * 4096)", Limits(seconds=20, scratch_mb=2), "files"),
        ("import signal\nsignal.signal(25, signal.SIG_DFL)\nopen('a', 'wb').write(b'x' * (3 << 20))", Limits(scratch_mb=1), "files"),
        ("import threading as t, time\nwhile 1: t.Thread(target=time.sleep, args=(9,)).start()", Limits(seconds=2), ("failed", "timeout")),
        ("import os\nos.abort()", SHORT, "killed"),
        ("def f(): f()\nf()", SHORT, "failed"),
        ("while True:\n    try: __import__('os').fork()\n    except OSError: raise", SHORT, "failed"),
    ],
)  # fmt: skip
def test_limits(program: str, limits: Limits, ended: str | tuple[str, ...]) -> None:
    outcome = run_tests(program, limits)
    assert outcome.ended in ((ended,) if isinstance(ended, str) else ended), outcome
    assert outcome.seconds < limits.seconds + 3


@pytest.mark.parametrize(
    "program",
    [
        "print('passed')\nimport os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'0' * 32 + b' passed ')\n    except OSError: pass\nos._exit(0)",
        "import sys\nsys.audit('sapwood.verdict', 'passed', '')",
        "import sys\nsys.audit('sapwood.verdict', 'passed')",
        "import sys, functools\nsys.audit = functools.partial(sys.audit, 'sapwood.verdict', 'passed')\nraise ValueError",
        "import sys, types\nrunner = sys._getframe()\nwhile runner.f_back: runner = runner.f_back\n"
        "types.FunctionType(runner.f_code, {'_prepare': lambda f: (compile('0', '', 'exec'), {}), 'sys': sys, '_how': repr})()",
        "import sys\nr = sys._getframe()\nwhile r.f_back: r = r.f_back\nsys.settrace(lambda *a: None)\nr.f_lineno = 50",
        "import sys\nrunner = sys._getframe()\nwhile runner.f_back: runner = runner.f_back\n"
        "runner.f_locals['audit'] = max\nrunner.f_globals['exec'] = print\nimport builtins\nbuiltins.exec = print",
        "import gc\ngc.get_objects()",
        "import builtins, sys\nbuiltins.AssertionError = type('Quiet', (Exception,), {})\nsys.excepthook = print",
        'def f(x):\n    return x\nx = """',
        "def f(x):\n    return x\nif 0:",
        "def f(x):\n    return x\nx = (",
        "def f(x):\n    return x\n\\",
    ],
)  # fmt: skip
def test_a_pass_cannot_be_forged(program: str) -> None:
    for hook in (True, False):
        outcome = run_confined(f"{WRONG}\n{program}", SHORT, TESTS + '\n"""no way to swallow this"""\n' + TESTS, hook=hook)[1]
        assert outcome is not None
        assert outcome.ended != "passed", outcome


def test_the_token_is_nowhere_that_a_program_can_look() -> None:
    program = """
import re, sys
seen, waiting = set(), [sys.modules, sys._getframe()]
def look(found):
    if isinstance(found, (bytes, str, bytearray)):
        text = found if isinstance(found, str) else bytes(found).decode('latin-1')
        assert not re.fullmatch('[0-9a-f]{32}', text), text
        return []
    if isinstance(found, dict): return [*found.keys(), *found.values()]
    if isinstance(found, (list, tuple, set, frozenset)): return list(found)
    more = [getattr(found, name, None) for name in ('__dict__', '__closure__', 'cell_contents', 'f_locals', 'f_globals', 'f_back',
            '__defaults__', '__traceback__', 'tb_frame', 'tb_next', '__context__', '__subclasses__', '__func__', '__self__')]
    return more
try:
    import ctypes
except Exception as error:
    waiting.append(error)
while waiting:
    found = waiting.pop()
    if id(found) in seen or found is None: continue
    seen.add(id(found))
    try: waiting += look(found)
    except AssertionError: raise
    except Exception: pass
assert len(seen) > 1000
"""
    outcome = run_tests(program, Limits(seconds=20, memory_mb=1024))
    assert outcome.passed, outcome


def test_barriers_say_what_holds() -> None:
    found = require_barriers()
    assert found.enough
    assert not found.missing
    assert "network, processes, signals, reading, writing, memory" in str(found)
    assert Barriers({"network": False, "reading": True}).missing == ("network", "processes", "signals", "writing", "memory")


def test_nothing_runs_where_a_barrier_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (running_module._HERE / "confine.py").read_text()
    (tmp_path / "inside.py").write_text((running_module._HERE / "inside.py").read_text())
    monkeypatch.setattr(running_module, "_HERE", tmp_path)
    for broken in ('held["calls"] = _filter_calls(libc)', 'held["files"] = _hide_files(libc, Path(limits["scratch"]), command)'):
        assert broken in source
        (tmp_path / "confine.py").write_text(source.replace(broken, broken.split(" = ")[0] + " = False"))
        with pytest.raises(ConfigError, match=r"missing: (calls|files)"):
            run_tests("print(1)", SHORT)
        barriers.cache_clear()
        with pytest.raises(ConfigError, match="could get out"):
            require_barriers()
    barriers.cache_clear()


def test_elsewhere_than_on_linux_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="missing: resources"):
        run_tests("print(1)")


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="seconds is 0"):
        Limits(seconds=0)
    with pytest.raises(ConfigError, match="memory_mb is 1"):
        Limits(memory_mb=1)
