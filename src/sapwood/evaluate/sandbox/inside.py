"""Second program of the child process: run the program and its tests, and say how they ended in words that cannot be forged.

In: `{"token", "program", "tests", "hook"}` as JSON on standard input, the verdict's file descriptor as the argument. Out: one line there,
`TOKEN how detail`; nothing if the code ends the process itself, which the parent takes for a failure.

The program shares this interpreter with its tests, so these rules hold the verdict honest:
- Program and tests are parsed apart and run as one code object: an open quote swallows no test, and nothing runs between them.
- The token lies only in the closure of an audit hook, which writes when this file's own frame asks it to, and no other.
- A second hook, which knows no secret, refuses what could look into memory or move a frame (`_refuse`).
What no rule can prevent: an answer whose objects claim to equal everything. Tests that compare types as well are stricter.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from types import CodeType, FrameType, ModuleType
from typing import Any

_REFUSED = {
    "sys.settrace", "sys.setprofile", "sys._current_frames", "sys._current_exceptions", "gc.get_objects", "gc.get_referrers",
    "gc.get_referents", "sys.monitoring.register_callback", "socket.connect", "socket.bind", "socket.sendto",
    "socket.getaddrinfo", "os.fork", "os.forkpty", "os.system",
    "os.exec", "os.posix_spawn", "os.kill", "subprocess.Popen", "pty.spawn",
}  # fmt: skip
"""Audit events (docs.python.org/3/library/audit_events.html) that no program under test needs. The kernel refuses most of them too."""
_DETAIL = 2000
"""Bytes of an exception's words that are kept; a line on a pipe is whole up to 4,096."""


def main() -> None:
    code, module = _prepare(sys._getframe())
    audit = sys.audit
    try:
        exec(code, module)  # noqa: S102  this is what the barriers are for
    except BaseException as error:  # noqa: BLE001  whatever the program raises is its outcome
        audit("sapwood.verdict", *_how(error))
        return
    audit("sapwood.verdict", "passed", "")  # the last line: the hook takes "passed" from no other


def _prepare(runner: FrameType) -> tuple[CodeType, dict[str, Any]]:
    """The code to run and the module to run it in, with the hooks in place. Ends the process where the code cannot be compiled."""
    job = _job()
    fd = int(sys.argv.pop())
    os.set_inheritable(fd, False)
    token = job["token"].encode()
    try:
        parts = [ast.parse(job["program"], "program.py"), ast.parse(job["tests"], "tests.py")]
        code = compile(ast.Module([*parts[0].body, *parts[1].body], []), "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        os.write(fd, b"ready\n" + token + b" syntax " + f"{type(error).__name__}: {error}".encode(errors="replace")[:_DETAIL])
        os._exit(0)
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    _add_hooks(fd, token, runner, job["hook"])
    os.write(fd, b"ready\n")
    return code, module.__dict__


def _job() -> dict[str, Any]:
    """Standard input up to its end; it is closed then, and reads as empty from there on."""
    parts = []
    while part := os.read(0, 1 << 20):
        parts.append(part)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return json.loads(b"".join(parts))  # type: ignore[no-any-return]


def _add_hooks(fd: int, token: bytes, runner: FrameType, refusing: bool) -> None:
    """The hook that speaks, which never raises, so that no traceback shows its frame; and the one that refuses, which knows nothing."""
    write, leave, caller = os.write, os._exit, sys._getframe
    last = max(line for _, _, line in runner.f_code.co_lines() if line)
    ways = ("failed", "memory", "exited")

    def speak(event: str, args: tuple[Any, ...]) -> None:
        if event != "sapwood.verdict":
            return
        right = caller(1) is runner and len(args) == 2 and type(args[0]) is str and type(args[1]) is str
        right = right and (args[0] in ways or (args[0] == "passed" and runner.f_lineno == last))
        how, detail = args if right else ("refused", "the program tried to give its own verdict")
        write(fd, token + b" " + how.encode() + b" " + detail.encode("utf-8", "replace")[:_DETAIL])
        leave(0)

    sys.addaudithook(speak)
    if refusing:
        sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event in _REFUSED or event.startswith("ctypes.") or (event == "import" and args[0] in ("_ctypes", "ctypes")):
        raise PermissionError(f"{event} is not allowed here")


def _how(error: BaseException) -> tuple[str, str]:
    if isinstance(error, MemoryError):
        return "memory", ""
    if isinstance(error, SystemExit):
        return "exited", ""
    try:
        return "failed", f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001  an exception of the program that cannot even be described
        return "failed", "an exception that has no words"


if __name__ == "__main__":
    main()
