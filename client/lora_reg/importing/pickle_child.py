"""The child process that opens a PyTorch file: weights only, without a network, and with limits.

    python pickle_child.py IN OUT

It writes the tensors of IN as safetensors to OUT, or one sentence to stderr and exits with 1. It is a program and not
imported: nothing else of the client loads torch.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Any, BinaryIO, NoReturn

from lora_contract.tensors import DTYPE_BYTES, write_header

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
MEMORY = 4 << 30
"""Bytes of private memory beside three copies of the file."""
SECONDS = 900
_DTYPES = {
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def main(source: str, target: str) -> None:
    with open(source, "rb") as file, open(target, "xb") as out:
        _confine(os.fstat(file.fileno()).st_size)
        tensors = _tensors(file)
        _write(tensors, out)


def _confine(size: int) -> None:
    """Before anything of the file is read, and while there is one thread."""
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, MEMORY + 3 * size),
        (resource.RLIMIT_CPU, SECONDS),
    ):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value, value) if hard == resource.RLIM_INFINITY else (min(value, hard), hard))
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        cut = libc.unshare(_CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
        reason = os.strerror(ctypes.get_errno())
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    except (OSError, AttributeError) as error:
        cut, reason = False, str(error)
    if not cut:
        _fail(f"this system cannot take the network from a process ({reason}), and the file is not opened with one")


def _tensors(file: BinaryIO) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        _fail("PyTorch is not installed")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's pickle makes the loader raise
        _fail(f"PyTorch's weights-only loader refuses it: {str(error).splitlines()[0][:300]}")
    if isinstance(loaded, dict) and set(loaded) == {"state_dict"}:
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        _fail(f"it holds a {type(loaded).__name__}, expected tensors by name")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            _fail(f"{str(name)[:200]!r} is a {type(value).__name__}, expected a tensor")
        if str(value.dtype) not in _DTYPES or value.layout != torch.strided:
            _fail(f"{name[:200]} is a {value.layout} tensor of {value.dtype}, which an adapter has not")
    return loaded


def _write(tensors: dict[str, Any], out: BinaryIO) -> None:
    import torch

    names = sorted(tensors)
    shapes = [(name, _DTYPES[str(tensors[name].dtype)], tuple(tensors[name].shape)) for name in names]
    out.write(write_header(shapes, {"format": "pt"}))
    for name, dtype, _ in shapes:
        flat = tensors[name].detach().contiguous().reshape(-1)
        data = bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""
        if len(data) != flat.numel() * DTYPE_BYTES[dtype]:
            _fail(f"{name[:200]} has {len(data)} bytes")
        out.write(data)


def _fail(why: str) -> NoReturn:
    sys.stderr.write(f"{why}\n")
    raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
