"""A filter of system calls (seccomp) that forbids new processes and threads.

RLIMIT_NPROC alone does not: the kernel exempts root, and counts what other processes of the user have started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final, NamedTuple

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
"""Offsets in `struct seccomp_data`."""
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EPERM


class _Calls(NamedTuple):
    """audit: the architecture by its name in the kernel. forks: numbers of the calls. end: of all calls it has."""

    audit: int
    forks: tuple[int, ...]
    end: int


_CALLS: Final = {
    "x86_64": _Calls(0xC000003E, (56, 57, 58, 435), 0x40000000),  # clone, fork, vfork, clone3; above: the x32 interface
    "aarch64": _Calls(0xC00000B7, (220, 435), 0x40000000),
}


def forbid_forks() -> None:
    """Have every further process and thread fail with EPERM. Needs no_new_privs. Raises OSError if it cannot."""
    calls = _CALLS.get(platform.machine())
    if calls is None:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {platform.machine()}")
    program = _program(calls)
    code = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filters, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_SECCOMP): {os.strerror(error)}")


def _program(calls: _Calls) -> bytes:
    """The filter in classic BPF. Jumps count the instructions that they leave out."""
    rest = len(calls.forks) + 1  # to the last instruction, which denies
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, rest + 2, calls.audit),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, rest, 0, calls.end),
        *((_EQUAL, rest - 1 - index, 0, number) for index, number in enumerate(calls.forks)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


_libc: Final = ctypes.CDLL(None, use_errno=True)
