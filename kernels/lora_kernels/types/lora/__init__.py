"""LORA: pairs, experts and trainable tokens, with all variants of a pair."""

from lora_kernels.types.lora.dora import DoraProduct
from lora_kernels.types.lora.match import match
from lora_kernels.types.lora.stacks import ExpertPart, ExpertStack
from lora_kernels.types.room import Room

ROOM = Room(match, updates=(DoraProduct, ExpertPart, ExpertStack))
