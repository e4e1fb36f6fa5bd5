"""Checks of pushed files by name and content. Archives are not unpacked, and pickles are never opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from lora_contract import canonical, pipelines
from lora_contract.adapter.report import CONFIG, WEIGHTS, CheckReport
from lora_contract.errors import RegistryError
from lora_contract.manifest import MAX_FILES, check_path
from lora_contract.remote_code import code_in

ReadFile = Callable[[str, int, int], bytes]
"""read(path, offset, length) -> exactly that many bytes of the file."""

TOKENIZER_FILES: Final = frozenset(
    {
        "added_tokens.json",
        "bpe.codes",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "normalizer.json",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "source.spm",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "target.spm",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_TOKENIZER_OF_MISTRAL: Final = re.compile(r"tokenizer\.model\.v[0-9]{1,3}\Z")
_ADAPTER_FILES: Final = TOKENIZER_FILES | {
    CONFIG,
    WEIGHTS,
    "all_results.json",
    "eval_results.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "train_results.json",
    "trainer_state.json",
    "training_args.json",
}
_BASE_FILES: Final = TOKENIZER_FILES | {
    "config.json",
    "configuration.json",
    "generation_config.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantization_config.json",
    "quantize_config.json",
    "video_preprocessor_config.json",
}
_COMPONENT_FILES: Final = _BASE_FILES | {"feature_extractor_config.json", "scheduler_config.json"}
"""Of a component of a pipeline, besides its weights."""
_DOC_SUFFIXES: Final = (".md", ".txt", ".rst")
_DOC_NAMES: Final = ("license", "licence", "notice", "readme", "use_policy", "copying", "authors")
_CODE_SUFFIXES: Final = (".py", ".pyc", ".so", ".dll", ".sh", ".bat", ".exe", ".js", ".ipynb")
_PICKLE_SUFFIXES: Final = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".npy",
    ".npz",
    ".h5",
    ".msgpack",
    ".joblib",
)
_ARCHIVE_SUFFIXES: Final = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".whl")
_SIGNATURE_SUFFIXES: Final = (".sig", ".sigstore", ".sigstore.json")
_MAX_SIDE_JSON: Final = 64 * 1024 * 1024
_MAX_SIDE_VALUES: Final = 4_000_000
"""The tokenizer of Gemma 3 has 1.8 million."""
MAX_BUILT_JSON: Final = 8 * 1024 * 1024
_NOT_BUILT: Final = frozenset(
    {
        *("tokenizer.json", "tekken.json", "vocab.json", "added_tokens.json"),
        *("trainer_state.json", "all_results.json", "eval_results.json", "train_results.json"),
    }
)
"""JSON that may be large, and in which no loader looks for code: checked, but not built."""
_SNIFF: Final = 512

_MAGIC: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch pickle file is one)"),
    (0, b"PK\x05\x06", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a rar archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"\xcf\xfa\xed\xfe", "a program"),
    (0, b"\xca\xfe\xba\xbe", "a program"),
    (0, b"#!", "a script"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a numpy file"),
    (0, b"GGUF", "a GGUF file"),
)


class AdapterFile(msgspec.Struct, frozen=True):
    """A regular file of a push: relative path and size in bytes. The caller must refuse links."""

    path: str
    size: int


def check_files(files: Sequence[AdapterFile], read: ReadFile, report: CheckReport, *, base: bool = False) -> None:
    """Check paths, the allow-list, content against the name, and small JSON files. base: use the rules of bases."""
    if len(files) > MAX_FILES:
        report.add("too-many-files", f"There are {len(files)} files; the maximum is {MAX_FILES}.", file=None)
        return
    seen: dict[str, str] = {}
    pipeline = base and any(file.path == pipelines.FILE for file in files)
    for file in files:
        folded = file.path.casefold()
        if folded in seen:
            report.add(
                "duplicate-path", f"{file.path} and {seen[folded]} are the same on some file systems.", file=file.path
            )
        seen[folded] = file.path
        if _path_is_bad(file.path, report) or not _allowed(file.path, report, base=base, pipeline=pipeline):
            continue
        kind = sniff(read(file.path, 0, min(file.size, _SNIFF)), weights=file.path.endswith(".safetensors"))
        if kind is not None:
            report.add(
                "content-refused",
                f"{file.path} is {kind}, which does not match its name and is never opened.",
                file=file.path,
                found=kind,
                hint="Save the tensors as safetensors and push only that file and its config.",
            )
        elif file.path.endswith(".json") and file.path not in (CONFIG, "config.json", "model.safetensors.index.json"):
            _check_json(file, read, report)


def sniff(head: bytes, *, weights: bool = False) -> str | None:
    """Identify content that is refused, by its first bytes; None if it may be text, JSON or a model file.

    weights: the name ends in `.safetensors`, whose first bytes are a length and may be anything.
    """
    if weights and len(head) >= 9 and head[8:9] == b"{":
        return None
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if head[:2] == b"MZ" and b"\0" in head:
        return "a program"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 2:
        return "a pickle"
    if not weights and _looks_like_text_pickle(head):
        return "a pickle"
    return None


def _looks_like_text_pickle(head: bytes) -> bool:
    return head[:1] in b"c(" and b"\n" in head[:80] and (b"\n(" in head or b"\ntR" in head or b"\np0" in head)


def _path_is_bad(path: str, report: CheckReport) -> bool:
    try:
        check_path(path)
    except RegistryError as error:
        report.add("bad-path", error.detail, file=path[:255], hint=error.hint)
        return True
    return False


def _allowed(path: str, report: CheckReport, *, base: bool, pipeline: bool) -> bool:
    lower = path.lower()
    what = "A base" if base else "An adapter"
    for suffixes, code, kind in (
        (_PICKLE_SUFFIXES, "pickle", "may hold a pickle"),
        (_CODE_SUFFIXES, "code", "is code"),
        (_ARCHIVE_SUFFIXES, "archive", "is an archive"),
    ):
        if lower.endswith(suffixes):
            report.add(
                code,
                f"{path} {kind}, judging by its name, and is never opened.",
                file=path,
                expected=WEIGHTS,
                hint="Push the safetensors file; leave this file out with `--exclude`.",
            )
            return False
    if _is_known(path, base=base) or (pipeline and is_pipeline_file(path)):
        return True
    report.add(
        "file-not-allowed",
        f"{path} is not an allowed file of {what.lower()}.",
        file=path,
        hint="Leave it out, and add it to the version with `lora-reg signature import`."
        if lower.endswith(_SIGNATURE_SUFFIXES)
        else f"Leave it out with `--exclude`; {what.lower()} consists of its config, weights, tokenizer and "
        "documentation.",
    )
    return False


def is_tokenizer(path: str) -> bool:
    """Whether a file belongs to the tokenizer."""
    return path in TOKENIZER_FILES or _TOKENIZER_OF_MISTRAL.match(path) is not None


def is_adapter_file(path: str) -> bool:
    """Whether a file may be part of an adapter, by its name."""
    return _is_allowed(path, base=False)


def is_base_file(path: str) -> bool:
    """Whether a file may be part of a base, by its name."""
    return _is_allowed(path, base=True)


def is_pipeline_file(path: str) -> bool:
    """Whether a file may be part of a pipeline of diffusers beside what a base has, by its name."""
    folder, _, name = path.rpartition("/")
    if not folder:
        return path == pipelines.FILE
    if "/" in folder:
        return False
    return name in _COMPONENT_FILES or is_tokenizer(name) or name.endswith(pipelines.SUFFIX)


def _is_allowed(path: str, *, base: bool) -> bool:
    refused = (*_PICKLE_SUFFIXES, *_CODE_SUFFIXES, *_ARCHIVE_SUFFIXES)
    return not path.lower().endswith(refused) and _is_known(path, base=base)


def _is_known(path: str, *, base: bool) -> bool:
    if path in (_BASE_FILES if base else _ADAPTER_FILES) or is_tokenizer(path):
        return True
    if "/" in path:
        return False
    lower = path.lower()
    return (base and path.endswith(".safetensors")) or lower.endswith(_DOC_SUFFIXES) or lower.startswith(_DOC_NAMES)


def _check_json(file: AdapterFile, read: ReadFile, report: CheckReport) -> None:
    built = file.path.rpartition("/")[2] not in _NOT_BUILT
    limit = MAX_BUILT_JSON if built else _MAX_SIDE_JSON
    if file.size > limit:
        report.add("file-too-large", f"{file.path} has {file.size} bytes; the maximum is {limit}.", file=file.path)
        return
    try:
        text = read(file.path, 0, file.size)
        if built:
            found = code_in(canonical.loads_strict(text, what=file.path, max_bytes=limit))
        else:
            keys = canonical.check_strict(text, what=file.path, max_bytes=limit, max_values=_MAX_SIDE_VALUES)
            found = None
            if file.path.endswith("tokenizer.json") and "auto_map" in {key.lower() for key in keys}:
                found = "auto_map", "it lets a loader run code that comes with the files"
    except RegistryError as error:
        report.add_error("bad-json", error, file=file.path)
        return
    if found is not None:
        key, why = found
        report.add(
            "auto-map",
            f"{file.path} has the key {key[:80]!r}: {why}.",
            file=file.path,
            where=key[:80],
            hint=f"Remove {key[:80]!r} and push again.",
        )


def paths(files: Collection[AdapterFile]) -> dict[str, int]:
    """Sizes by path."""
    return {file.path: file.size for file in files}
