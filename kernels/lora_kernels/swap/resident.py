"""A running model whose adapters are merged into its weights, exchanged and removed in place."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import torch

from lora_contract.errors import RegistryError
from lora_kernels import ops
from lora_kernels.checkpoint.folders import read_adapter, read_base
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.devices.accelerator import Accelerator
from lora_kernels.merging.device.operands import DTYPES
from lora_kernels.merging.plan import plan_merge
from lora_kernels.merging.stats import MIN_KEPT
from lora_kernels.ops import MergeJob
from lora_kernels.ops.dispatch import Backend
from lora_kernels.quantized.reading import read_quantized
from lora_kernels.swap.installed import Installed, digest_of_base
from lora_kernels.swap.kept import Keep, Kept, Memory
from lora_kernels.swap.parameters import Parameter, match_parameters, same_values
from lora_kernels.swap.prepare import Prepared, SwapAdapter, installed_of, prepare

_CHUNK: Final = 64 << 20


class ResidentModel:
    """The weights of a model in memory, and the adapters that are merged into them.

    A context: it keeps the base's files open. Nobody else may write to the weights, and no forward pass may run on
    another CUDA stream than that of the thread that swaps, or at the same time in another thread.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        parameters: Mapping[str, torch.Tensor],
        *,
        keep: Keep = "host",
        base_digest: str | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Open a model that holds exactly its base. All of its values are compared with the files.

        Args:
            base_dir: folder that the model was loaded from.
            parameters: by name, such as `dict(model.named_parameters())`. The same tensors are written by swaps.
            keep: where the base's bytes of touched tensors are kept; see `Keep`.
            base_digest: digest of the base's version; None to hash its config and weights.
            backend: of `lora_kernels.ops`; None for the device's own.

        Raises RegistryError `base-mismatch` if a shape or a value differs, with the name of the parameter;
        `unsupported` for quantized weights, pipelines and models on several devices; `not-found` and `rejected` for
        files that are missing or damaged.
        """
        self._base, _ = read_base(base_dir)
        self._source = FolderSource(base_dir)
        self._lock = threading.Lock()
        try:
            quantized = read_quantized(self._base, self._source.read)
            if quantized:
                raise RegistryError(
                    "unsupported",
                    f"The base stores {next(iter(sorted(quantized)))} quantized; adapters are swapped in "
                    "floating-point weights.",
                    hint="Dequantize the base once, with a merge in bfloat16, and load that.",
                )
            self._parameters = match_parameters(self._base, parameters)
            self._accelerator = Accelerator(str(self._parameters.device), backend)
            self._kept = Kept(self._source, self._accelerator, keep)
            self._compare()
            digest = base_digest if base_digest is not None else digest_of_base(self._base, self._source)
        except BaseException:
            self.close()
            raise
        self._bare = Installed(digest, dtype=self._parameters.dtype)
        self._installed: Installed | None = self._bare
        # Parameters that may differ from the base, by address.
        self._changed: dict[int, Parameter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the base's files. The weights stay as they are."""
        self._source.__exit__(None, None, None)

    @property
    def installed(self) -> Installed | None:
        """What the weights are; None after a swap that failed while it wrote. They are then neither the old nor the new
        merge; any swap, and `restore`, makes them whole again."""
        return self._installed

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of parameters that the base's files do not have as they are. They are never written."""
        return self._parameters.unknown

    @property
    def memory(self) -> Memory:
        """Bytes of the base that are kept, besides the weights."""
        return self._kept.memory

    def prepare(
        self,
        adapters: Sequence[SwapAdapter | str | os.PathLike[str]],
        *,
        rounding: str = "nearest",
        seed: int = 0,
        min_kept: float | None = MIN_KEPT,
    ) -> Prepared:
        """Read, check and compute adapters for later swaps. Nothing is written.

        Args:
            adapters: merged in this order; a folder alone has the weight 1.
            rounding, seed: see `lora_kernels.merging.plan_merge`.
            min_kept: see `lora_kernels.merging.check_kept`.

        Raises RegistryError `invalid-request` for no adapter; `base-mismatch` for one that is pinned to another base;
        `unsupported` for tensors that the model does not have; `conflict` if the base's files have changed; and as
        `plan_merge`, `check_base_copies`, `check_kept` and a merge do.
        """
        if not adapters:
            raise RegistryError(
                "invalid-request", "No adapter was given; expected at least one.", hint="`restore` removes adapters."
            )
        given = [one if isinstance(one, SwapAdapter) else SwapAdapter(one) for one in adapters]
        with self._lock:
            self._kept.check()
            inputs = [read_adapter(one.folder, one.weight) for one in given]
            plan = plan_merge(self._base, inputs, self._parameters.dtype, rounding=rounding, seed=seed)
            return prepare(
                given,
                plan=plan,
                parameters=self._parameters,
                base=self._source,
                installed=installed_of(given, self._bare, plan, self._accelerator),
                accelerator=self._accelerator,
                kept=self._kept,
                min_kept=min_kept,
                owner=self,
            )

    def swap(self, prepared: Prepared) -> Installed:
        """Make the weights those of a merge of the prepared adapters into the base, whatever they are now.

        Returns when the device has done it. Raises RegistryError `invalid-request`, before anything is written, for
        what another model prepared. If anything else is raised, `installed` says whether something was written.
        """
        if prepared.owner is not self:
            raise RegistryError(
                "invalid-request",
                "The adapters were prepared for another model.",
                hint="Prepare them with the model that they are swapped in.",
            )
        with self._lock:
            return self._become(prepared, prepared.installed)

    def restore(self) -> Installed:
        """Make the weights those of the base again. Raises as `swap`."""
        with self._lock:
            return self._become(None, self._bare)

    def _become(self, prepared: Prepared | None, installed: Installed) -> Installed:
        written = {known.address: known for known in prepared.parameters} if prepared is not None else {}
        stale = [known for address, known in self._changed.items() if address not in written]
        self._installed = None
        self._changed |= written
        with torch.no_grad(), self._accelerator.launching():
            for parameter in stale:
                self._write_base(parameter)
            if prepared is not None:
                for result in prepared.results:
                    result.parameter.values.copy_(result.values, non_blocking=True)
                self._launch(prepared)
            self._accelerator.finish()
        self._changed = written
        self._installed = installed
        return installed

    def _launch(self, prepared: Prepared) -> None:
        jobs = []
        for update in prepared.updates:
            out = update.parameter.values.view(update.shape)
            base = self._base_of(update.parameter).view(update.shape)
            jobs.append(MergeJob(base, update.adapters, out, update.parameter.name))
        if jobs:
            ops.merge_low_rank_grouped(jobs, backend=self._accelerator.backend)

    def _base_of(self, parameter: Parameter) -> torch.Tensor:
        """The base's values of a parameter on the device, as stored: the kept copy; or the parameter itself, made the
        base's again, so that it needs no other memory."""
        raw = self._kept.bytes_of(parameter)
        if self._kept.keep == "device":
            return raw.view(DTYPES[parameter.stored.dtype])
        if parameter.dtype == parameter.stored.dtype:
            self._write_base(parameter)
            return parameter.values
        return raw.to(parameter.values.device).view(DTYPES[parameter.stored.dtype])

    def _write_base(self, parameter: Parameter) -> None:
        stored = self._kept.bytes_of(parameter).view(DTYPES[parameter.stored.dtype]).view(parameter.values.shape)
        parameter.values.copy_(stored, non_blocking=True)

    def _compare(self) -> None:
        for name, parameter in sorted(self._parameters.found.items()):
            stored = parameter.stored
            dtype = DTYPES[stored.dtype]
            for start in range(stored.start, stored.end, _CHUNK):
                raw = self._kept.read(stored.file, start, min(start + _CHUNK, stored.end))
                values = raw.to(self._accelerator.device).view(dtype)
                if not same_values(parameter, values, (start - stored.start) // dtype.itemsize):
                    raise RegistryError(
                        "base-mismatch",
                        f"The values of {parameter.name} in the model are not those of {name} in the base.",
                        hint="Open the model before anything is merged into it or trained, with the folder that it "
                        "was loaded from.",
                        tensor=name,
                    )
        self._accelerator.finish()
