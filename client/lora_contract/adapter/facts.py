"""Facts of an adapter, stored with its version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.headed import Headed
from lora_contract.adapter.placed import Structure
from lora_contract.adapter.scaling import Scales
from lora_contract.adapter.types import TYPES
from lora_contract.modules import is_embedding_name, is_output_name
from lora_contract.tensors import Header

Training: TypeAlias = dict[str, int | float | str]


class AdapterFacts(msgspec.Struct, frozen=True):
    """Facts of an adapter.

    Args:
        ranks: number of modules by effective rank.
        alpha: of the config.
        targets: number of adapted modules by the last component of their path.
        has_embeddings: an embedding or output layer is adapted or saved.
        base: `base_model_name_or_path` of the config.
        mergeable: the type has a merged form, which this registry may not support.
        architecture: the model class with the head that the adapter brings; None if it brings none.
        labels: number of labels of that head.
        model_class, library: of the model that was trained, as PEFT records them without a task (`auto_mapping`). They
            are never imported.
        copies: number of tensors that equal the base's and change nothing.
        components: number of adapted modules by component of a pipeline.
        training: facts from the trainer's files.
    """

    peft_type: str
    task_type: str | None
    r: int | None
    max_rank: int | None
    ranks: dict[str, int]
    alpha: float | None
    use_rslora: bool
    use_dora: bool
    dtypes: dict[str, int]
    modules: int
    targets: dict[str, int]
    modules_to_save: list[str]
    saved_tensors: int
    has_embeddings: bool
    has_biases: bool
    tensors: int
    parameters: int
    tensor_bytes: int
    base: str | None
    revision: str | None
    peft_version: str | None
    mergeable: bool
    training: Training = {}
    architecture: str | None = None
    labels: int | None = None
    model_class: str | None = None
    library: str | None = None
    copies: int = 0
    components: dict[str, int] = {}


def gather_facts(
    config: AdapterConfig, header: Header, structure: Structure, scale: Scales, head: Headed | None
) -> AdapterFacts:
    """Gather the facts of an adapter from its config, header and structure. head: of its task."""
    new = head if head is not None and head.new else None
    kind = TYPES[config.peft_type]
    paths = sorted({group.path for group in structure.groups.values()})
    ranks: Counter[int] = Counter()
    if not kind.prompt and config.peft_type != "ADALORA":
        ranks.update(scale(path).r for path in paths)
    elif config.peft_type == "ADALORA":
        ranks.update(
            group.tensors["lora_A"].shape[0]
            for group in structure.groups.values()
            if "lora_A" in group.tensors and group.tensors["lora_A"].shape
        )
    ranked = config.r is not None and bool(kind.factors)
    touched = [*paths, *(tensor.name.rpartition(".")[0] for tensor in (*structure.saved, *structure.tokens))]
    return AdapterFacts(
        peft_type=config.peft_type,
        task_type=config.task_type,
        r=config.r if ranked else None,
        max_rank=max(ranks, default=None) if ranked else None,
        ranks={str(rank): count for rank, count in sorted(ranks.items())} if ranked else {},
        alpha=config.alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        dtypes=dict(sorted(Counter(tensor.dtype for tensor in header.tensors).items())),
        modules=len(paths),
        targets=dict(sorted(Counter(path.rpartition(".")[2] for path in paths).items())),
        modules_to_save=config.modules_to_save,
        saved_tensors=len(structure.saved),
        has_embeddings=any(is_embedding_name(path) or is_output_name(path) for path in touched),
        has_biases=bool(structure.biases),
        tensors=len(header.tensors),
        parameters=sum(tensor.elements for tensor in header.tensors),
        tensor_bytes=sum(tensor.nbytes for tensor in header.tensors),
        base=config.base_model,
        revision=config.revision,
        peft_version=config.peft_version,
        mergeable=kind.mergeable and not config.on("alora_invocation_tokens") and not config.on("arrow_config"),
        architecture=new.architecture if new is not None else None,
        labels=new.labels if new is not None else None,
        model_class=config.model_class,
        library=config.library,
        copies=len(structure.copies) + len(structure.twins),
    )


def joined(found: Mapping[str, AdapterFacts], config: AdapterConfig) -> AdapterFacts:
    """The facts of an adapter from those of its parts, by component. config: of the whole."""
    parts = list(found.values())
    first = parts[0]
    counted = {name: facts.modules for name, facts in sorted(found.items()) if name}
    if len(parts) == 1:
        return msgspec.structs.replace(first, components=counted)
    return msgspec.structs.replace(
        first,
        r=config.r if first.r is not None else None,
        max_rank=max((facts.max_rank for facts in parts if facts.max_rank is not None), default=None),
        alpha=config.alpha,
        ranks=_total(facts.ranks for facts in parts),
        dtypes=_total(facts.dtypes for facts in parts),
        targets=_total(facts.targets for facts in parts),
        modules=sum(facts.modules for facts in parts),
        modules_to_save=config.modules_to_save,
        saved_tensors=sum(facts.saved_tensors for facts in parts),
        has_embeddings=any(facts.has_embeddings for facts in parts),
        has_biases=any(facts.has_biases for facts in parts),
        tensors=sum(facts.tensors for facts in parts),
        parameters=sum(facts.parameters for facts in parts),
        tensor_bytes=sum(facts.tensor_bytes for facts in parts),
        mergeable=all(facts.mergeable for facts in parts),
        copies=sum(facts.copies for facts in parts),
        components=counted,
    )


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
