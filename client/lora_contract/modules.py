"""The modules of a base model, derived from its fingerprint: what an adapter may target.

Checkpoints name parameters, adapters name modules. The kind of a module follows from the shape of its weight and, for
embeddings and transposed layers, from its name. The model's code is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, TypeVar

import msgspec

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.naming import Naming, naming
from lora_contract.quantized import PACKED, packed_sizes
from lora_contract.sharing import Sharing, sharing

ModuleKind = Literal["linear", "embedding", "norm", "conv", "experts", "mha"]

EMBEDDINGS: Final = frozenset(
    {
        "embed",
        "embed_in",
        "embed_positions",
        "embed_tokens",
        "embedding",
        "embeddings",
        "position_embeddings",
        "shared",
        "tok_embeddings",
        "token_embedding",
        "token_type_embeddings",
        "tokens_embed",
        "word_embedding",
        "word_embeddings",
        "wpe",
        "wte",
    }
)
OUTPUTS: Final = ("lm_head", "embed_out", "output", "output_projection", "score", "classifier")
_CONV1D_TYPES: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_SOLE_PREFIXES: Final = ("model", "transformer", "bert", "roberta", "deberta", "distilbert", "electra", "gpt_neox")


_T = TypeVar("_T")


class BaseModule(msgspec.Struct, frozen=True):
    """A module of the base.

    Args:
        out, in_: sizes as a linear map (embedding: rows, width); None if unknown.
        weight: the tensor of its weight; that of another module if tied, None for quantized weights of unknown layout.
        experts: number of experts, for the kind "experts".
        transposed: the weight is stored as (in, out).
    """

    path: str
    kind: ModuleKind
    out: int | None
    in_: int | None
    has_bias: bool
    weight: BaseTensor | None
    experts: int = 0
    transposed: bool = False


class BaseModules(msgspec.Struct, frozen=True):
    """All modules by path, and all parameters by name.

    Args:
        roots: first components of parameter names.
        containers: paths that contain modules.
        sharing: the parameters that share a tensor.
        aliases: paths and names of the running model by those in the files, and vice versa, if the class defines them.
        naming: the names in the files by those that transformers gives them.
    """

    modules: dict[str, BaseModule]
    parameters: dict[str, BaseTensor]
    roots: frozenset[str]
    containers: frozenset[str]
    sharing: Sharing = Sharing()
    aliases: dict[str, str] = {}
    naming: Naming = Naming()

    def resolve(self, path: str) -> BaseModule | None:
        """The module that an adapter's path refers to; None if the base has none.

        Matches the exact path, any name that transformers has had for it, and a path with a model prefix on one side
        only (`transformer.h.0…` and `h.0…`).
        """
        return self._resolve(path, self.modules, self.naming.module)

    def resolve_parameter(self, name: str) -> BaseTensor | None:
        """The base parameter that a name of the running model refers to; None if there is none."""
        return self._resolve(name, self.parameters, self.naming.parameter)

    def under(self, prefix: str, path: str) -> BaseModule | None:
        """The module that is at a path of a model which the base has under a prefix; None if there is none."""
        rest = path.partition(".")[2] if path.partition(".")[0] in _SOLE_PREFIXES else path
        found = (self.resolve(f"{prefix}.{part}") for part in dict.fromkeys((rest, path)) if part)
        return next((module for module in found if module is not None), None)

    def has_container(self, path: str) -> bool:
        """Whether a path contains modules of the base."""
        return path in self.containers

    def is_output(self, path: str) -> bool:
        """Whether a path is that of the output layer; judged by its name if the class does not define one."""
        output = self.sharing.output
        if output is None:
            return is_output_name(path)
        owner = output.rpartition(".")[0]
        found = self.resolve(owner)
        return path in (owner, owner.rpartition(".")[2], found.path if found is not None else None)

    def holds_vocabulary(self, path: str) -> bool:
        """Whether a path, or its last component alone, is that of an embedding or the output layer."""
        module = self.resolve(path)
        return (module is not None and module.kind == "embedding") or is_embedding_name(path) or self.is_output(path)

    def input_embedding(self) -> BaseModule | None:
        """The token embedding: that of the class, or the first with a usual name; None if there is none."""
        known = self.sharing.embedding
        found = self.resolve(known.rpartition(".")[0]) if known is not None else None
        return found if found is not None else input_embedding(self.modules)

    def attention_of(self, path: str) -> str | None:
        """The packed attention (`nn.MultiheadAttention`) whose output projection a path is; None for other paths."""
        parent, _, leaf = path.rpartition(".")
        block = self.resolve(parent) if leaf == "out_proj" else None
        return parent if block is not None and block.kind == "mha" else None

    def _resolve(self, path: str, table: Mapping[str, _T], names: Callable[[str], Iterable[str]]) -> _T | None:
        for name in self._with_prefix(path):
            if (found := table.get(name)) is not None:
                return found
            if name in self.aliases and (found := table.get(self.aliases[name])) is not None:
                return found
            for other in names(name):
                if (found := table.get(other)) is not None:
                    return found
        return None

    def _with_prefix(self, path: str) -> Iterator[str]:
        """The path, and with the prefix of the model where only one of base and adapter has it."""
        yield path
        prefixes = tuple(dict.fromkeys((*_SOLE_PREFIXES, self.naming.prefix or _SOLE_PREFIXES[0])))
        head, _, rest = path.partition(".")
        if head in prefixes and head not in self.roots:
            yield rest
        sole = [prefix for prefix in prefixes if prefix in self.roots and head != prefix]
        if len(sole) == 1:
            yield f"{sole[0]}.{path}"


def modules_of(fingerprint: BaseFingerprint) -> BaseModules:
    """Derive the modules from the tensors' names and shapes, adding those that have no tensor of their own."""
    parameters = dict(fingerprint.by_name())
    modules: dict[str, BaseModule] = {}
    conv1d = fingerprint.model_type in _CONV1D_TYPES
    for name, tensor in parameters.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight" and path:
            has_bias = f"{path}.bias" in parameters
            # Four bits a weight, two in a byte: of bitsandbytes, or NVFP4.
            nvfp4 = tensor.dtype == "U8" and f"{path}.weight_scale" in parameters
            quantized = f"{path}.weight.absmax" in parameters or nvfp4
            modules[path] = _module(path, tensor, has_bias=has_bias, conv1d=conv1d, quantized=quantized)
        elif leaf in PACKED and path:
            modules[path] = _packed(path, leaf, parameters)
        elif leaf == "in_proj_weight" and len(tensor.shape) == 2:
            rows, columns = tensor.shape
            modules[path] = BaseModule(path, "mha", rows, columns, f"{path}.in_proj_bias" in parameters, tensor)
        elif len(tensor.shape) == 3 and path and path not in modules:
            modules[path] = BaseModule(path, "experts", None, None, False, tensor, experts=tensor.shape[0])
    modules.update(_expert_containers(modules))
    roots = frozenset(name.partition(".")[0] for name in parameters)
    named = naming(fingerprint.architecture, fingerprint.config, modules, parameters)
    for today, name in named.moved():  # legacy experts: `experts.gate_up_proj`, once `input_linear.weight`
        path, tensor = today.rpartition(".")[0], parameters[name]
        if path not in modules and today not in parameters and len(tensor.shape) == 3:
            modules[path] = BaseModule(path, "experts", None, None, False, tensor, experts=tensor.shape[0])
        if path in modules and modules[path].kind == "experts":
            parameters.setdefault(today, tensor)
    plain = BaseModules(modules=modules, parameters=parameters, roots=roots, containers=frozenset(), naming=named)
    shared = sharing(fingerprint, plain.resolve_parameter)
    embedding = plain.resolve(shared.embedding.rpartition(".")[0]) if shared.embedding is not None else None
    if embedding is not None and embedding.kind == "linear":
        modules[embedding.path] = msgspec.structs.replace(embedding, kind="embedding", transposed=False)
    modules.update(_without_tensor(shared, modules) if shared.unknown is None else _tied(fingerprint, modules))
    containers = frozenset(path[:end] for path in modules for end in _dots(path))
    return BaseModules(modules, parameters, roots, containers, shared, _aliases(shared), named)


def is_embedding_name(path: str) -> bool:
    return path.rpartition(".")[2] in EMBEDDINGS


def is_transposed(model_type: str, path: str) -> bool:
    """Whether a layer of a model is stored as (in, out), like those of GPT-2."""
    return model_type in _CONV1D_TYPES and path.rpartition(".")[2] in _CONV1D


def is_output_name(path: str) -> bool:
    return path.rpartition(".")[2] in OUTPUTS


def _dots(path: str) -> list[int]:
    return [place for place, character in enumerate(path) if character == "."]


def _module(path: str, tensor: BaseTensor, *, has_bias: bool, conv1d: bool, quantized: bool) -> BaseModule:
    shape = tensor.shape
    if quantized:
        return BaseModule(path, "linear", None, None, has_bias, None)
    if len(shape) < 2:
        return BaseModule(path, "norm", shape[0] if shape else None, None, has_bias, tensor)
    if len(shape) > 2:
        return BaseModule(path, "conv", shape[0], shape[1], has_bias, tensor)
    if is_embedding_name(path):
        return BaseModule(path, "embedding", shape[0], shape[1], has_bias, tensor)
    if conv1d and path.rpartition(".")[2] in _CONV1D:
        return BaseModule(path, "linear", shape[1], shape[0], has_bias, tensor, transposed=True)
    return BaseModule(path, "linear", shape[0], shape[1], has_bias, tensor)


def _packed(path: str, leaf: str, parameters: Mapping[str, BaseTensor]) -> BaseModule:
    """The module of a weight that is stored under another name. Fingerprints record the rows of embeddings, so those of
    a quantized one, which they never had, stay unknown."""
    embedding = is_embedding_name(path)
    out, in_ = (None, None) if embedding else packed_sizes(path, leaf, parameters)
    return BaseModule(path, "embedding" if embedding else "linear", out, in_, f"{path}.bias" in parameters, None)


def _expert_containers(modules: Mapping[str, BaseModule]) -> dict[str, BaseModule]:
    """Containers `….experts` of checkpoints with one module per expert, which newer models fuse in memory."""
    counts: dict[str, int] = {}
    for path in modules:
        head, found, rest = path.partition(".experts.")
        number = rest.partition(".")[0]
        if found and number.isascii() and number.isdigit() and len(number) < 6:
            container = f"{head}.experts"
            counts[container] = max(counts.get(container, 0), int(number) + 1)
    return {
        path: BaseModule(path, "experts", None, None, False, None, experts=count)
        for path, count in counts.items()
        if path not in modules
    }


def _without_tensor(shared: Sharing, modules: Mapping[str, BaseModule]) -> dict[str, BaseModule]:
    """Modules whose weight is stored under the name of another."""
    added: dict[str, BaseModule] = {}
    for group in shared.groups:
        held = group.held
        owner = modules.get(held.name.rpartition(".")[0])
        for member in group.members:
            path, _, leaf = member.name.rpartition(".")
            if member.tensor is None and leaf == "weight" and owner is not None:
                kind: ModuleKind = "linear" if member.name == shared.output else owner.kind
                if member.name == shared.embedding:
                    kind = "embedding"
                added[path] = BaseModule(path, kind, owner.out, owner.in_, owner.has_bias, held)
    return added


def _aliases(shared: Sharing) -> dict[str, str]:
    """Names of parameters and paths of modules that differ between the running model and its files, both ways."""
    found: dict[str, str] = {}
    for name, stored in shared.aliases.items():
        for here, there in ((name, stored), (name.rpartition(".")[0], stored.rpartition(".")[0])):
            found[here], found[there] = there, here
    return found


def _tied(fingerprint: BaseFingerprint, modules: Mapping[str, BaseModule]) -> dict[str, BaseModule]:
    """Modules that an unknown class most likely ties: the output layer, and the inner embeddings of an
    encoder-decoder."""
    added: dict[str, BaseModule] = {}
    shared = modules.get("shared")
    if shared is not None:
        for path in ("encoder.embed_tokens", "decoder.embed_tokens"):
            if path not in modules:
                added[path] = BaseModule(path, "embedding", shared.out, shared.in_, False, shared.weight)
    embedding = input_embedding(modules)
    has_output = any(path.rpartition(".")[2] in ("lm_head", "embed_out") for path in modules)
    if fingerprint.tied and embedding is not None and not has_output:
        added["lm_head"] = BaseModule("lm_head", "linear", embedding.out, embedding.in_, False, embedding.weight)
    return added


def input_embedding(modules: Mapping[str, BaseModule]) -> BaseModule | None:
    """The token embedding: the first module with a usual name; None if there is none.

    Fingerprints record its rows, so their digests depend on these names; other code uses the class
    (`BaseModules.input_embedding`).
    """
    for leaf in ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared", "tokens_embed"):
        found = [path for path in modules if path == leaf or path.endswith(f".{leaf}")]
        if found:
            return modules[min(found, key=len)]
    return None
