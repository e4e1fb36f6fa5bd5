"""A copy of an adapter's files with the names that the base has for its modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from lora_contract import canonical
from lora_contract.adapter.config import MAX_CONFIG_BYTES, parse_config
from lora_contract.adapter.moving import moved
from lora_contract.adapter.report import CONFIG, WEIGHTS
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_contract.tensors import MAX_ADAPTER_HEADER_BYTES, read_header, write_header
from lora_reg.transfer.scan import LocalFile, Scan, scan_file

_WRITTEN: Final = (CONFIG, WEIGHTS)


def with_prefix(scan: Scan, base: BaseFingerprint, prefix: str, work: Path) -> Scan:
    """The scan with a config and weights that are written to `work`; the other files stay what they are.

    Raises RegistryError as `moved` does, and `rejected` for files that cannot be read.
    """
    files = {file.path: file for file in scan.files}
    missing = [path for path in _WRITTEN if path not in files]
    if missing:
        raise RegistryError("rejected", f"{missing[0]} is missing; an adapter consists of {CONFIG} and {WEIGHTS}.")
    read = scan.reader()
    config = parse_config(read(CONFIG, 0, min(files[CONFIG].size, MAX_CONFIG_BYTES + 1)))
    header = read_header(read, WEIGHTS, files[WEIGHTS].size, MAX_ADAPTER_HEADER_BYTES)
    new = moved(config, header, modules_of(base), prefix)
    (work / CONFIG).write_bytes(msgspec.json.format(canonical.dumps(new.config.raw), indent=2) + b"\n")
    # Canonical order, so that the same adapter gives the same bytes.
    entries = sorted(new.header.tensors, key=lambda entry: entry.name)
    with (work / WEIGHTS).open("wb") as file:
        file.write(write_header([(each.name, each.dtype, each.shape) for each in entries], header.metadata))
        for entry in entries:
            file.writelines(files[WEIGHTS].chunks(entry.file_start, entry.nbytes))
    for path in _WRITTEN:
        files[path] = _written(work, path)
    return replace(scan, files=tuple(files[path] for path in sorted(files)))


def _written(work: Path, path: str) -> LocalFile:
    (file,) = scan_file(work / path, path).files
    return file
