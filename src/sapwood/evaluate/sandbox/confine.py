"""First program of the child process: give up everything that the code must not have, then become `inside`.

In: limits as JSON in the first argument, the file descriptor of the verdict, and what to become. Out: one line of JSON on the
verdict's descriptor that names what the kernel accepted, then `execve`. It is run as `python -I -S -B`, without packages, and
needs ctypes for calls that Python lacks; the program that it becomes starts with a fresh memory in which ctypes was never loaded.

No privilege is needed, and root gets no more: limits of resources (setrlimit), a namespace without devices (unshare), a
list of files that can be seen (Landlock, Linux 5.13) and a filter of system calls (seccomp-BPF, prctl(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 38, 22, 24, 47
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC, _CLONE_NEWUTS, _CLONE_THREAD = 0x10000000, 0x40000000, 0x08000000, 0x04000000, 0x00010000
_ALLOW, _KILL, _REFUSE, _ABSENT = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # the last two: errno EPERM and ENOSYS
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "memfd_secret": 447, "fchmodat2": 452,
}  # fmt: skip
_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
        "accept4": 288, "sendmmsg": 307, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240, "clone": 56,
        "fork": 57, "vfork": 58, "execveat": 322, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129,
        "rt_tgsigqueueinfo": 297, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "fcntl": 72,
        "truncate": 76, "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260,
        "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
        "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "mknod": 133, "mknodat": 259, "mount": 165, "umount2": 166,
        "pivot_root": 155, "chroot": 161, "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170,
        "setdomainname": 171, "init_module": 175, "delete_module": 176, "finit_module": 313, "kexec_load": 246,
        "kexec_file_load": 320, "syslog": 103, "quotactl": 179, "add_key": 248, "request_key": 249, "keyctl": 250,
        "unshare": 272, "setns": 308, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "bpf": 321, "userfaultfd": 323, "memfd_create": 319, "personality": 135, "setrlimit": 160,
        "prlimit64": 302, "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203,
        "sched_setattr": 314, "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "accept": 202, "sendto": 206, "sendmsg": 211, "bind": 200, "listen": 201,
        "accept4": 242, "sendmmsg": 269, "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186,
        "mq_open": 180, "clone": 220, "execveat": 281, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "fcntl": 25,
        "truncate": 45, "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "utimensat": 88, "setxattr": 5,
        "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, "mknodat": 33, "mount": 40,
        "umount2": 39, "pivot_root": 41, "chroot": 51, "swapon": 224, "swapoff": 225, "reboot": 142, "sethostname": 161,
        "setdomainname": 162, "init_module": 105, "delete_module": 106, "finit_module": 273, "kexec_load": 104,
        "kexec_file_load": 294, "syslog": 116, "quotactl": 60, "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97,
        "setns": 268, "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
        "bpf": 280, "userfaultfd": 282, "memfd_create": 279, "personality": 92, "setrlimit": 164, "prlimit64": 261,
        "setpriority": 140, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122, "sched_setattr": 274,
        "ioprio_set": 30, "migrate_pages": 238, "move_pages": 239,
    },
}  # fmt: skip
"""What is refused, by number. A pair of sockets within the process (asyncio needs one) stays, without an address to send to.

`execve` stays: Landlock leaves one file to execute, this very Python, and the filter outlives it.
"""
_OWN_ONLY = ("kill", "tgkill", "rt_sigqueueinfo")
"""Signals to oneself are ordinary (`abort`), to anyone else they are not."""


def main() -> None:
    limits, verdict_fd, command = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)
    held = {
        "resources": _limit_resources(limits),
        "privileges": libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
        "namespace": libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS) == 0,
    }
    libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    _drop_capabilities(libc)
    held["files"] = _hide_files(libc, Path(limits["scratch"]), command)
    held["calls"] = _filter_calls(libc)
    os.write(verdict_fd, json.dumps(held).encode() + b"\n")
    if all(held[name] for name in ("resources", "privileges", "files", "calls")):
        os.execve(command[0], [*command, str(verdict_fd)], {"LANG": "C.UTF-8", "HOME": limits["scratch"], "TMPDIR": limits["scratch"]})


def _limit_resources(limits: dict[str, Any]) -> bool:
    wanted = {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_CPU: limits["cpu"],
        resource.RLIMIT_FSIZE: limits["file"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    try:
        for what, value in wanted.items():
            hard = resource.getrlimit(what)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            soft = max(1, value - 1) if what == resource.RLIMIT_CPU else value  # SIGXCPU, which says what it was, a second before SIGKILL
            resource.setrlimit(what, (soft, value))
    except (OSError, ValueError):
        return False
    return True


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root keeps none either; that the bounding set may not be touched, as for any ordinary user, changes nothing."""
    for number in range(64):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, 4, 0, 0, 0)
    libc.capset(ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0)), ctypes.create_string_buffer(24))


def _hide_files(libc: ctypes.CDLL, scratch: Path, command: list[str]) -> bool:
    """Landlock: the scratch folder to write in, Python's library and the system's shared ones to read, one file to execute."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    network, scoped = 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0
    attributes = struct.pack("QQQ", every, network, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(444, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    if ruleset < 0:
        return False
    execute, write, read, read_folder, truncate = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14
    on_files = execute | write | read | truncate

    def allow(path: Path, rights: int) -> None:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        rights &= every if path.is_dir() else every & on_files
        libc.syscall(445, ruleset, 1, ctypes.create_string_buffer(struct.pack("<Qi", rights, place), 12), 0)
        os.close(place)

    for path in _readable():
        allow(path, read | read_folder)
    allow(Path(os.__file__).parent, read_folder)  # names alone: an import lists the folder before it opens a file
    allow(Path("/dev/null"), read | write)
    allow(Path(command[-1]), read)
    for path in (Path(command[0]), *_loaders()):
        allow(path.resolve(), read | execute)
    socket_and_devices = 1 << 6 | 1 << 9 | 1 << 11 | 1 << 15
    allow(scratch, every & ~socket_and_devices & ~execute)
    done = bool(libc.syscall(446, ruleset, 0) == 0)
    os.close(ruleset)
    return done


def _readable() -> list[Path]:
    """Python's library without ctypes and packages, entry by entry, the system's shared libraries, and the time zones."""
    found = [
        Path(name) for name in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache")
    ]
    library = Path(os.__file__).parent
    for folder in {library, library / "lib-dynload"}:
        left_out = ("site-packages", "dist-packages", "lib-dynload", "ctypes", "_ctypes")
        found += [entry for entry in folder.iterdir() if not entry.name.startswith(left_out)] if folder.is_dir() else []
    return found + [path for path in _mapped() if ".so" in path.name]


def _mapped() -> set[Path]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split(None, 5)[5]) for line in lines if line.count("/") and "[" not in line}


def _loaders() -> list[Path]:
    return [path for path in _mapped() if path.name.startswith(("ld-linux", "ld-musl", "ld.so", "ld-2"))]


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """seccomp: a list of refusals. A call by another architecture's numbers kills the process: the list would not fit it."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES or sys.maxsize < 1 << 32:
        return False
    numbers = {**_NUMBERS[machine], **_COMMON}
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, _ARCHITECTURES[machine]), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    if machine == "x86_64":
        program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, _KILL)]

    def where(name: str, *checks: tuple[int, int, int, int]) -> None:
        """If the call is `name`, run `checks`, which end in an answer; else go on behind them."""
        program.extend([(equal, 0, len(checks), numbers.pop(name)), *checks])

    for name in _OWN_ONLY:
        where(name, (load, 0, 0, 16), (equal, 0, 1, os.getpid()), (give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE))
    where("clone", (load, 0, 0, 16), (any_bit, 0, 1, _CLONE_THREAD), (give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE))
    where("clone3", (give, 0, 0, _ABSENT))  # its flags lie in memory, out of the filter's sight; C libraries fall back to clone
    where("prlimit64", (load, 0, 0, 32), (equal, 0, 3, 0), (load, 0, 0, 36), (equal, 0, 1, 0), (give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE))
    where("sendto", (load, 0, 0, 48), (equal, 0, 3, 0), (load, 0, 0, 52), (equal, 0, 1, 0), (give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE))
    set_owner = ((equal, 0, 1, 8), (give, 0, 0, _REFUSE), (equal, 0, 1, 15), (give, 0, 0, _REFUSE))
    where("fcntl", (load, 0, 0, 24), *set_owner, (give, 0, 0, _ALLOW))
    for name in list(numbers):
        where(name, (give, 0, 0, _REFUSE))
    program.append((give, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    return bool(libc.prctl(_PR_SET_SECCOMP, 2, head, 0, 0) == 0)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
