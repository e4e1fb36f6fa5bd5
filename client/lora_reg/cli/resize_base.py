"""base resize: change the number of tokens of a base, by a job or on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_contract.errors import RegistryError
from lora_contract.tensors import read_header
from lora_contract.vocabulary import NewRows, check_size, given_rows
from lora_reg.cli.derive import Where, by_job, kernels, need_folders
from lora_reg.cli.state import State

if TYPE_CHECKING:
    from lora_contract.base import BaseFingerprint
    from lora_contract.wire.jobs import JobView
    from lora_reg.client import Client


def resize_base(state: State, where: Where, name: str, vocab: int, rows: str | None) -> None:
    output = where.here()
    if output is None:
        _by_job(state, where, name, vocab, rows)
        return
    need_folders(Path(name))
    resizing = kernels("resizing", "Resizing")
    base, _ = kernels("checkpoint.folders", "Resizing").read_base(name)
    report = resizing.resize_vocabulary_folder(name, output, vocabulary=vocab, rows=_rows(rows, base, vocab))
    state.output().result(
        "lora-reg/base-resize-local/1",
        report,
        human=[f"{output}: {report.after} tokens, {report.before} before"],
        quiet=[str(output)],
    )


def _by_job(state: State, where: Where, name: str, vocab: int, rows: str | None) -> None:
    from lora_contract.wire.operations import ResizeBaseRequest
    from lora_reg.transfer.pinning import pin_base

    def submit(client: Client, target: dict[str, Any]) -> JobView:
        pinned = pin_base(client, name)
        given = _rows(rows, pinned.fingerprint, vocab)
        check_size(given)
        return client.resize_base(ResizeBaseRequest(base=str(client.parse(name)), vocab=vocab, rows=given, **target))

    by_job(state, where, submit, schema="lora-reg/base-resize/1")


def _rows(file: str | None, base: BaseFingerprint, vocab: int) -> list[NewRows]:
    if file is None:
        return []
    path = Path(file)
    if not path.is_file():
        raise RegistryError("usage", f"There is no file {file!r}.", hint="Name a safetensors file with the new rows.")

    with path.open("rb") as opened:

        def read(_path: str, offset: int, length: int) -> bytes:
            opened.seek(offset)
            return opened.read(length)

        header = read_header(read, path.name, path.stat().st_size)
        return list(given_rows(header, read, path.name, base, vocab))
