"""Write an adapter folder that PEFT, transformers and vLLM load: plain LoRA with scale 1, one module at a time."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.parts import METADATA
from lora_contract.adapter.pipeline_metadata import STATED
from lora_contract.errors import RegistryError
from lora_contract.tensors import write_header
from lora_kernels.adapters.low_rank import SUFFIXES, LowRankModule
from lora_kernels.checkpoint.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kernels.checkpoint.records import FileRecord
from lora_kernels.checkpoint.sinks import Chunk, FolderSink, Hashing, no_space
from lora_kernels.checkpoint.staging import staged_folder
from lora_kernels.numeric.dtypes import F32, encode, storage

_CHUNK: Final = 256 * 1024


@dataclass(frozen=True)
class AdapterIdentity:
    """The settings of an adapter config that do not depend on the factors. modules_to_save: names or paths, as in PEFT.
    bias: which trained biases are stored, as in PEFT. parts: paths begin with a component of a pipeline, and tensors
    have the names of diffusers."""

    base_model: str | None = None
    task_type: str | None = None
    fan_in_fan_out: bool = False
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    parts: bool = False

    @classmethod
    def of(cls, config: AdapterConfig, *, parts: bool = False) -> AdapterIdentity:
        """The identity of an existing adapter, without its modules_to_save."""
        return cls(config.base_model, config.task_type, config.fan_in_fan_out, parts=parts)


class AdapterWriter:
    """Write modules in the order in which they are added. For one thread.

    identity: written to the config at the end; may be replaced until then. files: the written files, after the block of
    `adapter_writer`. ranks: of the modules so far. size: bytes of data so far.
    """

    def __init__(self, spool: BinaryIO, identity: AdapterIdentity, dtype: str) -> None:
        self._spool = spool
        self.identity = identity
        self.files: tuple[FileRecord, ...] = ()
        self._dtype = dtype
        self._storage = storage(dtype)
        self._entries: list[tuple[str, str, tuple[int, ...]]] = []
        self.ranks: dict[str, int] = {}
        self.size = 0

    def add(self, module: LowRankModule) -> None:
        """Store a module, its scale multiplied into B. Raises RegistryError `rejected` if a value is not finite in
        the dtype of the file, `internal` for rank 0, which no loader accepts."""
        if module.rank == 0:
            raise RegistryError("internal", f"{module.module} has rank 0; such a module cannot be stored.")
        b = module.b if module.scale == 1 else module.b * np.float32(module.scale)
        stem = f"{module.module}." if self.identity.parts else f"{PREFIX}{module.module}."
        for suffix, values, shape in zip(SUFFIXES[module.kind], (module.a, b), module.stored_shapes, strict=True):
            self._put(stem + suffix, self._dtype, shape, [self._encoded(stem + suffix, values)])
        self.ranks[module.module] = module.rank

    def add_extra(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes | Iterable[Chunk]) -> None:
        """Store a tensor that is not a factor, such as one of modules_to_save, under its full name. data: all bytes, or
        chunks of them."""
        self._put(name, dtype, shape, [data] if isinstance(data, bytes) else data)

    def _encoded(self, name: str, values: F32) -> memoryview:
        out = np.empty(values.shape, self._storage)
        encode(np.ascontiguousarray(values), self._dtype, out)
        flat = out.view(np.uint8).reshape(-1)
        # bf16 is stored as uint16: NaN and infinity have an exponent of all ones.
        finite = (out & 0x7F80 != 0x7F80).all() if self._dtype == "BF16" else np.isfinite(out).all()
        if not finite:
            raise RegistryError(
                "rejected",
                f"{name} has values that are NaN or exceed the range of {self._dtype}.",
                hint="Choose a dtype with a larger range (bfloat16 or float32), or smaller weights.",
                tensor=name,
            )
        return flat.data

    def _put(self, name: str, dtype: str, shape: tuple[int, ...], data: Iterable[Chunk]) -> None:
        for chunk in data:
            try:
                self._spool.write(chunk)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise no_space(ADAPTER_WEIGHTS, len(chunk)) from error
            self.size += len(chunk)
        self._entries.append((name, dtype, shape))

    def chunks(self) -> Iterator[bytes]:
        """The whole file: header, then the data."""
        yield self.header
        self._spool.seek(0)
        while chunk := self._spool.read(_CHUNK):
            yield chunk

    @property
    def header(self) -> bytes:
        parts = {METADATA: _of_parts(self.ranks, self.identity)} if self.identity.parts else {}
        return write_header(self._entries, {"format": "pt", **parts})


@contextmanager
def adapter_writer(
    out_dir: str | os.PathLike[str], identity: AdapterIdentity, *, dtype: str, needed: int = 0
) -> Iterator[AdapterWriter]:
    """A writer whose complete folder appears under `out_dir` if the block succeeds.

    dtype: of the factors, by its safetensors name. needed: maximum size of the weights in bytes, to detect a lack of
    disk space before the work. Raises RegistryError as `staged_folder` does, and `rejected` if no module was added.
    """
    # Data is spooled until all ranks are known for the header, which takes twice the space.
    with staged_folder(Path(out_dir), needed=2 * needed) as staging:
        with tempfile.TemporaryFile(dir=staging) as spool:
            writer = AdapterWriter(spool, identity, dtype)
            yield writer
            if not writer.ranks:
                raise RegistryError(
                    "rejected",
                    "The result has no module: every module of the inputs has rank 0, or the inputs have none.",
                    hint="Choose inputs for which the method yields at least one module.",
                )
            weights = _write(staging, ADAPTER_WEIGHTS, len(writer.header) + writer.size, writer.chunks())
        config = (json.dumps(adapter_config(writer.ranks, writer.identity), indent=2, sort_keys=True) + "\n").encode()
        writer.files = (_write(staging, ADAPTER_CONFIG, len(config), [config]), weights)


def _write(folder: Path, path: str, size: int, chunks: Iterable[Chunk]) -> FileRecord:
    hashing = Hashing(chunks)
    FolderSink(folder).write(path, size, hashing)
    return FileRecord(path, size, hashing.hexdigest)


def adapter_config(ranks: dict[str, int], identity: AdapterIdentity) -> dict[str, Any]:
    """adapter_config.json of plain LoRA factors with scale 1: alpha equals the rank, globally and for each module, so
    that the scale is right even in engines that ignore patterns. ranks: of all modules by path."""
    rank = max(ranks.values())
    others = {_key(module): ranks[module] for module in sorted(ranks) if ranks[module] != rank}
    return {
        "alpha_pattern": others,
        "base_model_name_or_path": identity.base_model,
        "bias": identity.bias,
        "fan_in_fan_out": identity.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": list(identity.modules_to_save) or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": others,
        "target_modules": sorted(ranks),
        "task_type": identity.task_type,
        "use_dora": False,
        "use_rslora": False,
    }


def _of_parts(ranks: dict[str, int], identity: AdapterIdentity) -> str:
    """PEFT's config of each part of a pipeline, as diffusers keeps them."""
    parts: dict[str, dict[str, int]] = {}
    for module, rank in ranks.items():
        component, _, path = module.partition(".")
        parts.setdefault(component, {})[path] = rank
    stated = {
        f"{component}.{key}": value
        for component, own in parts.items()
        for key, value in adapter_config(own, identity).items()
        if key in STATED
    }
    return json.dumps(stated, indent=2, sort_keys=True)


def write_adapter(
    out_dir: str | os.PathLike[str],
    identity: AdapterIdentity,
    modules: Iterable[LowRankModule],
    *,
    dtype: str,
    needed: int = 0,
    extras: Sequence[tuple[str, str, tuple[int, ...], bytes]] = (),
) -> dict[str, int]:
    """Write modules in their order, except those of rank 0, then extras (name, dtype, shape, bytes).

    Returns the ranks of the written modules. See `adapter_writer`.
    """
    with adapter_writer(out_dir, identity, dtype=dtype, needed=needed) as writer:
        for module in modules:
            if module.rank:
                writer.add(module)
        for extra in extras:
            writer.add_extra(*extra)
    return writer.ranks


def _key(module: str) -> str:
    """A pattern key, a regular expression in PEFT, that matches only this path."""
    plain = (character if character.isalnum() or character in "_-" else f"\\{character}" for character in module)
    return "^" + "".join(plain)
