"""What the kernel forbids a child process: the network, the memory of other processes, and most files.

A child computes on what strangers sent, with libraries of a million lines. Its parent opens for it what it needs; so
nothing is lost if the rest is forbidden. Each measure is applied if the kernel has it: see `missing`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from lora_registry.processes.syscalls import forbid_forks

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_NO_NEW_PRIVS: Final = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
"""Of a file itself; truncation and control of devices were added by versions 3 and 5 of the interface."""

_SYSTEM: Final = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix", "/sys"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/alternatives"),
    *("/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/os-release", "/etc/OpenCL"),
    *("/run/nvidia-persistenced", "/run/opengl-driver"),
)
"""Programs, libraries and descriptions of the machine; no folder of users, of secrets or of services."""
_PROC: Final = (
    *("self", "sys", "driver", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "devices"),
    *("modules", "cgroups", "vmstat", "cmdline", "misc"),
)
"""Of /proc: this process and the machine. The environment of the parent is there too."""
_DEVICES: Final = (
    *("null", "zero", "full", "random", "urandom", "ptmx", "tty"),
    *("nvidia*", "dri", "kfd", "infiniband", "dxg"),
)
_KILLED_AFTER: Final = 5
"""Seconds after SIGXCPU, which tells that the limit was exceeded, as SIGKILL does not."""
_LIBRARY_VARIABLES: Final = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH")


class Confinement(msgspec.Struct, frozen=True):
    """What a child of one kind may do.

    Args:
        files: forbid all files but programs, libraries, devices and these two lists.
        read, write: paths that it may read, and folders in which it may also create, change and remove files.
        memory: bytes of private memory; None: no limit.
        seconds: of processor time; None: no limit.
        alone: forbid new processes and threads.
    """

    files: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    memory: int | None = None
    seconds: int | None = None
    alone: bool = False


def confine(limits: Confinement) -> None:
    """Confine this process for good. Call it before anything untrusted is read, and with one thread."""
    _measures(limits, on_error=lambda _name: None)


def missing() -> list[str]:
    """Return what this kernel cannot forbid, as noun phrases. Tried in a process that ends afterwards."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        names: list[str] = []
        with suppress(BaseException):
            _measures(Confinement(files=True, alone=True), on_error=names.append)
            os.write(writer, "\n".join(names).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        found = answer.read().split("\n")
    os.waitpid(pid, 0)
    return [name for name in found if name]


def _measures(limits: Confinement, *, on_error: Callable[[str], None]) -> None:
    for limit, value, grace in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_DATA, limits.memory, 0),
        (resource.RLIMIT_CPU, limits.seconds, _KILLED_AFTER),
        (resource.RLIMIT_NPROC, 0 if limits.alone else None, 0),
    ):
        if value is not None:
            _lower(limit, value, grace)
    measures = [
        ("the network (namespaces)", _leave_network),
        ("new privileges", _keep_privileges),
        ("files and other processes (Landlock)", lambda: _landlock(limits)),
    ]
    if limits.alone:
        measures.append(("new processes (seccomp)", forbid_forks))
    for name, measure in measures:
        try:
            measure()
        except OSError:
            on_error(name)


def _lower(limit: int, value: int, grace: int) -> None:
    """grace: how much higher the hard limit is."""
    hard = resource.getrlimit(limit)[1]
    soft, hard = (
        (value, value + grace) if hard == resource.RLIM_INFINITY else (min(value, hard), min(value + grace, hard))
    )
    resource.setrlimit(limit, (soft, hard))


def _leave_network() -> None:
    """Move to an empty network namespace; without the right to, in a user namespace of its own."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET), "unshare")


def _keep_privileges() -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def _landlock(limits: Confinement) -> None:
    """Enter a Landlock domain: https://docs.kernel.org/userspace-api/landlock.html.

    A process in a domain can neither trace processes outside it nor read their memory.
    """
    version = _check(_libc.syscall(_CREATE_RULESET, None, 0, _VERSION), "landlock_create_ruleset")
    rights = (1 << (13 if version == 1 else 14 if version == 2 else 15 if version < 5 else 16)) - 1
    handled = rights if limits.files else _EXECUTE
    network = 0b11 if version >= 4 else 0  # bind and connect of TCP: no rule allows one
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals stay within the domain
    attributes = struct.pack("=QQQ", handled, network, scoped)
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _check(_libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    try:
        if limits.files:
            for path in {*_SYSTEM, *(f"/proc/{name}" for name in _PROC), *_python(), *limits.read}:
                _allow(ruleset, path, _READ & handled)
            devices = (str(path) for name in _DEVICES for path in Path("/dev").glob(name))
            for path in {*devices, *limits.write}:
                _allow(ruleset, path, handled)
        else:
            _allow(ruleset, "/", _EXECUTE)
        _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine
    try:
        if not Path(path).is_dir():
            rights &= _FILE_RIGHTS
        _check(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0), "landlock")
    finally:
        os.close(descriptor)


def _python() -> Iterable[str]:
    """Where this interpreter and all packages are, also linked ones."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, *(path for path in sys.path if path)}
    found |= {os.path.dirname(path) for path in (os.path.realpath(sys.executable), sys.executable)}
    return found | {os.path.realpath(path) for path in found} | set(_variables(_LIBRARY_VARIABLES))


def _variables(names: Iterable[str]) -> list[str]:
    return [path for name in names for path in os.environ.get(name, "").split(os.pathsep) if path]


def _check(result: int, name: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
