"""Base fingerprints, built from the files of a base model: config, tensors by name, tokenizer, chat template.

Pure functions over `read(path, offset, length)`; only headers and small JSON files are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from lora_contract import canonical
from lora_contract.adapter.files import AdapterFile, ReadFile, check_files, is_tokenizer
from lora_contract.adapter.report import CheckReport
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.findings import Finding
from lora_contract.modules import BaseModule, input_embedding, modules_of
from lora_contract.pipelines import CLASS, COMPONENTS, FILE, STEMS, SUFFIX, Weights, folders_of, is_pipeline, layout
from lora_contract.remote_code import code_in
from lora_contract.tensors import read_header

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
_MAX_CONFIG: Final = 8 * 1024 * 1024
_MAX_INDEX: Final = 32 * 1024 * 1024
_TEMPLATE_FILES: Final = ("chat_template.jinja", "chat_template.json")


def check_base_files(files: Sequence[AdapterFile], read: ReadFile) -> list[Finding]:
    """Find problems of these files as a base: pickles, code, archives, unexpected names, missing weights."""
    report = CheckReport()
    check_files(files, read, report, base=True)
    names = {file.path for file in files}
    if "config.json" not in names and FILE not in names:
        report.add(
            "file-missing",
            "config.json is missing; a base consists of config.json and safetensors files.",
            file="config.json",
        )
    if not any(name.endswith(".safetensors") for name in names):
        report.add(
            "file-missing",
            "There are no safetensors files; a base consists of config.json and safetensors files.",
            file=SINGLE,
            hint="Save the model with save_pretrained(safe_serialization=True).",
        )
    return report.findings()


def check_side_files(files: Sequence[AdapterFile], read: ReadFile) -> list[Finding]:
    """Find problems of these files of a base, without asking whether they are all."""
    report = CheckReport()
    check_files(files, read, report, base=True)
    return report.findings()


def weights_in_use(files: Mapping[str, int], read: ReadFile) -> frozenset[str]:
    """Return the weight files that transformers and diffusers load, with their index: the single file before the
    shards.

    Raises RegistryError `rejected` for an index that cannot be read.
    """
    used: set[str] = set()
    for weights in layout(files):
        if weights.single in files:
            used.add(weights.single)
        elif weights.index in files:
            shards = _index(weights, {weights.index: (files[weights.index], "")}, read).values()
            used |= {weights.index, *(weights.folder + shard for shard in shards)}
    return frozenset(used)


def read_base_config(files: Mapping[str, tuple[int, str]], read: ReadFile) -> dict[str, Any]:
    """Read config.json, or model_index.json of a pipeline with the configs of its models.

    Raises RegistryError `rejected` if one is missing or lets a loader run code.
    """
    if FILE not in files:
        return _config("config.json", files, read)
    models = {weights.component: _config(f"{weights.folder}config.json", files, read) for weights in layout(files)}
    return {**_config(FILE, files, read), COMPONENTS: models}


def _config(path: str, files: Mapping[str, tuple[int, str]], read: ReadFile) -> dict[str, Any]:
    config = _json(path, files, read, _MAX_CONFIG)
    if not isinstance(config, dict):
        raise _bad(f"{path} is not a JSON object")
    if COMPONENTS in config:
        raise _bad(f"{path} has the key {COMPONENTS!r}, under which fingerprints keep the configs of components")
    if (found := code_in(config)) is not None:
        raise _bad(f"{path} has the key {found[0]!r}: {found[1]}")
    return config


def build_fingerprint(files: Mapping[str, tuple[int, str]], read: ReadFile) -> BaseFingerprint:
    """Build the fingerprint from (size, `sha256:` digest) by path.

    Raises RegistryError `rejected` for a missing config.json, weights other than safetensors, an index that disagrees
    with the shards, and a tensor in two shards.
    """
    config = read_base_config(files, read)
    tensors = _tensors(files, read)
    tied = is_tied(config, tensors)
    fingerprint = BaseFingerprint(
        architecture=architecture_of(config),
        model_type=_string(config, "model_type"),
        config=config,
        tensors=tuple(sorted(tensors.values(), key=lambda tensor: tensor.name)),
        files={path: digest for path, (_, digest) in sorted(files.items())},
        embedding_rows=None,
        tied=tied,
        tokenizer=_tokenizer(files),
        chat_template=_chat_template(files, read),
    )
    if is_pipeline(config):
        return fingerprint
    embedding: BaseModule | None = input_embedding(modules_of(fingerprint).modules)
    if embedding is None or embedding.out is None:
        return fingerprint
    return BaseFingerprint(
        architecture=fingerprint.architecture,
        model_type=fingerprint.model_type,
        config=config,
        tensors=fingerprint.tensors,
        files=fingerprint.files,
        embedding_rows=embedding.out,
        tied=tied,
        tokenizer=fingerprint.tokenizer,
        chat_template=fingerprint.chat_template,
    )


def _tensors(files: Mapping[str, tuple[int, str]], read: ReadFile) -> dict[str, BaseTensor]:
    pickles = [path for path in files if path.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise _bad(f"{pickles[0]} is not a safetensors file and is never opened")
    models = layout(files)
    if FILE in files:
        _check_components(_config(FILE, files, read), {weights.component for weights in models}, files)
    indexes = {weights: _index(weights, files, read) for weights in models if weights.index in files}
    shards = {weights: _shards(weights, indexes.get(weights)) for weights in models}
    known = [shard for each in shards.values() for shard in each]
    unexpected = [path for path in files if path.endswith(SUFFIX) and path not in known]
    if unexpected:
        raise _bad(f"{unexpected[0]} is not a shard of the model: expected {', '.join(known[:4])}")
    tensors: dict[str, BaseTensor] = {}
    for weights, paths in shards.items():
        _add(weights, paths, indexes.get(weights), files, read, tensors)
    if not tensors:
        raise _bad("the model has no tensors")
    return tensors


def _check_components(index: dict[str, Any], models: Set[str], files: Iterable[str]) -> None:
    """Check that every component of a pipeline is there, and that those with a model's config have weights."""
    paths = frozenset(files)
    present = {path.partition("/")[0] for path in paths if "/" in path}
    for name in sorted(folders_of(index)):
        if name not in present:
            raise _bad(f"{FILE} names the component {name}, of which there is no file")
        if f"{name}/config.json" in paths and name not in models:
            raise _bad(
                f"the component {name} has a config and no weights that diffusers loads without a variant, such as "
                f"{name}/{STEMS[1]}{SUFFIX}"
            )


def _shards(weights: Weights, indexed: Mapping[str, str] | None) -> list[str]:
    if indexed is None:
        return [weights.single]
    return sorted({weights.folder + shard for shard in indexed.values()})


def _add(
    weights: Weights,
    shards: Sequence[str],
    indexed: Mapping[str, str] | None,
    files: Mapping[str, tuple[int, str]],
    read: ReadFile,
    tensors: dict[str, BaseTensor],
) -> None:
    """Add the tensors of one model."""
    start = len(weights.folder)
    for shard in shards:
        if shard not in files:
            raise _bad(f"{shard} is missing" + (f", which {weights.index} lists" if indexed is not None else ""))
        for tensor in read_header(read, shard, files[shard][0]).tensors:
            name = weights.prefix + tensor.name
            if name in tensors:
                raise _bad(f"the tensor {name} is in both {tensors[name].file} and {shard}")
            if indexed is not None and indexed.get(tensor.name) != shard[start:]:
                place = indexed.get(tensor.name)
                raise _bad(f"{shard} contains the tensor {tensor.name}, which {weights.index} places in {place}")
            tensors[name] = BaseTensor(name, tensor.dtype, tensor.shape, shard, tensor.file_start, tensor.file_end)
    missing = [name for name in indexed or () if weights.prefix + name not in tensors]
    if missing:
        raise _bad(f"{weights.index} lists the tensor {missing[0]}, which is in none of the shards")


def _index(weights: Weights, files: Mapping[str, tuple[int, str]], read: ReadFile) -> dict[str, str]:
    document = _json(weights.index, files, read, _MAX_INDEX)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(f"{weights.index} has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise _bad(
                f"{weights.index} places the tensor {name[:200]} in {str(shard)[:80]!r}, not in a safetensors file "
                "beside it"
            )
    return weight_map


def is_tied(config: Mapping[str, Any], tensors: Iterable[str]) -> bool:
    """Whether the output layer shares the input embedding: the config does not deny it, and the files have no tensor
    of the output layer. Of a pipeline each model has an answer of its own."""
    if is_pipeline(config):
        return False
    tensors = tuple(tensors)
    nested = config.get("text_config")
    configured = config.get(
        "tie_word_embeddings", nested.get("tie_word_embeddings") if isinstance(nested, dict) else None
    )
    has_output = any(name.endswith(("lm_head.weight", "embed_out.weight", "lm_head.qweight")) for name in tensors)
    has_embedding = any(name.endswith(("embed_tokens.weight", "wte.weight", "shared.weight")) for name in tensors)
    return configured is not False and not has_output and has_embedding


def _tokenizer(files: Mapping[str, tuple[int, str]]) -> str | None:
    """The digest of the canonical list of the tokenizer's files, except the chat template; None if there are none."""
    found = [
        [path, digest]
        for path, (_, digest) in sorted(files.items())
        if is_tokenizer(path.rpartition("/")[2]) and path not in _TEMPLATE_FILES
    ]
    return str(canonical.digest(found)) if found else None


def _chat_template(files: Mapping[str, tuple[int, str]], read: ReadFile) -> str | None:
    """The digest of the template as text; None if the base ships none."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"][1]
    for path in ("chat_template.json", "tokenizer_config.json"):
        if path in files:
            document = _json(path, files, read, _MAX_CONFIG)
            template = document.get("chat_template") if isinstance(document, dict) else None
            if isinstance(template, str):
                return str(Digest(hashlib.sha256(template.encode("utf-8")).hexdigest()))
            if template is not None:
                return str(canonical.digest(template))
    return None


def _json(path: str, files: Mapping[str, tuple[int, str]], read: ReadFile, limit: int) -> Any:
    if path not in files:
        raise _bad(f"{path} is missing")
    size = files[path][0]
    if size > limit:
        raise _bad(f"{path} has {size} bytes, expected at most {limit}")
    return canonical.loads_strict(read(path, 0, size), what=path, max_bytes=limit)


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class of a model or pipeline; empty if its config does not say."""
    found = config.get("architectures")
    if found is None:
        return _string(config, CLASS)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _bad("architectures in config.json is not a list of names")
    return found[0] if found else ""


def _string(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key, "")
    if not isinstance(value, str):
        raise _bad(f"{key} in config.json is not a string")
    return value


def _bad(why: str) -> RegistryError:
    return RegistryError("rejected", f"The base is refused: {why}.", hint="Fix the folder and add it again.")
