"""A base with the head of an adapter's task: the model that PEFT trained, and that a merge gives.

PEFT wraps the model of the task (`AutoModelForSequenceClassification` and others), which transformers loads from any
checkpoint of the same model without a head or with another one. The adapter holds the new head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.saved import OWN_HEADS, is_saved, saved_modules
from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.heads import HeadClass, class_for, head_class
from lora_contract.tensors import TensorEntry

DEFAULT_LABELS: Final = 2
"""Of a config in transformers that does not say."""


class Headed(msgspec.Struct, frozen=True):
    """A base as the class of the task sees it.

    Args:
        architecture: the class.
        base: with the class as its architecture and the parameters that the class has; tensors of a model without a
            prefix have the names of the class.
        head: the names of all parameters of the head.
        new: the adapter's tensors of the head that the base lacks, or has with another number of labels, by their
            names in the class.
        labels: number of labels; None if the head does not depend on it.
        unsaved: parameters and parts of the class that neither the base nor the adapter has.
        lost: those of `unsaved` that PEFT saves in adapters of the task.
    """

    architecture: str
    base: BaseFingerprint
    head: tuple[str, ...]
    new: dict[str, TensorEntry]
    labels: int | None
    unsaved: tuple[str, ...]
    lost: tuple[str, ...]


def headed(base: BaseFingerprint, config: AdapterConfig, tensors: Iterable[TensorEntry]) -> Headed | None:
    """The base with the head of the adapter's task; None if the task has none, or it is unknown for this model."""
    name = _class(base, config)
    known = head_class(name) if name is not None else None
    if name is None or known is None:
        return None
    given = {entry.name.removeprefix(PREFIX): entry for entry in tensors if entry.name.startswith(PREFIX)}
    own = name == base.architecture
    stored = {tensor.name: tensor for tensor in _stored(base, known, own=own)}
    new = {
        part: given[part]
        for part in known.head
        if part in given and (part not in stored or _relabelled(part, known, stored[part], given[part]))
    }
    kept = tuple(sorted((tensor for part, tensor in stored.items() if part not in new), key=lambda tensor: tensor.name))
    parts = {tensor.name.removeprefix(f"{known.prefix}.").partition(".")[0] for tensor in kept}
    missing = [part for part in known.head if part not in new and part not in stored]
    absent = [f"{known.prefix}.{part}" for part in known.body if part not in parts and not own]
    saved = saved_modules(config)
    sizes = [part.shape[0] for part in _labelled(known, given, stored) if part.shape]
    return Headed(
        architecture=name,
        base=msgspec.structs.replace(base, architecture=name, tensors=kept),
        head=known.head,
        new=new,
        labels=sizes[0] if sizes else None,
        unsaved=(*absent, *missing),
        lost=tuple(part for part in missing if is_saved(part.rpartition(".")[0], saved)),
    )


def _class(base: BaseFingerprint, config: AdapterConfig) -> str | None:
    if config.task_type is None:
        return config.model_class
    if config.task_type not in OWN_HEADS:
        return None
    return class_for(config.task_type, base.model_type, base.architecture)


def _stored(base: BaseFingerprint, known: HeadClass, *, own: bool) -> Iterator[BaseTensor]:
    """The base's tensors that the class has, by the names of the class. own: it is the base's own class."""
    if own:
        yield from base.tensors
        return
    prefix = f"{known.prefix}."
    body = frozenset(known.body)
    prefixed = any(tensor.name.startswith(prefix) for tensor in base.tensors)
    for tensor in base.tensors:
        if prefixed and not tensor.name.startswith(prefix):
            if tensor.name in known.head:
                yield tensor
            continue
        rest = tensor.name.removeprefix(prefix)
        if rest.partition(".")[0] in body:
            yield tensor if prefixed else msgspec.structs.replace(tensor, name=prefix + rest)


def _relabelled(part: str, known: HeadClass, stored: BaseTensor, given: TensorEntry) -> bool:
    """Whether a parameter of the head only differs from the base's in the number of labels."""
    return part in known.labels and stored.shape != given.shape and stored.shape[1:] == given.shape[1:]


def _labelled(
    known: HeadClass, given: Mapping[str, TensorEntry], stored: Mapping[str, BaseTensor]
) -> Iterator[TensorEntry | BaseTensor]:
    for part in known.labels:
        found = given.get(part) or stored.get(part)
        if found is not None:
            yield found


def labels_of(config: Mapping[str, object]) -> int:
    """The number of labels of a config.json, as transformers reads it."""
    named, count = config.get("id2label"), config.get("num_labels")
    if isinstance(named, dict):
        return len(named)
    return count if isinstance(count, int) and not isinstance(count, bool) else DEFAULT_LABELS


def labelled_config(config: Mapping[str, object], architecture: str, labels: int | None) -> dict[str, object]:
    """The config.json of the model with its head. Names of labels are kept if their number is the same."""
    made: dict[str, object] = {**config, "architectures": [architecture]}
    if labels is None or labels == labels_of(config):
        return made
    names = [f"LABEL_{number}" for number in range(labels)]
    made.pop("num_labels", None)
    made["id2label"] = {str(number): name for number, name in enumerate(names)}
    made["label2id"] = {name: number for number, name in enumerate(names)}
    return made
