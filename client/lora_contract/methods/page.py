"""Generator of docs/methods.md from the table of methods; `make docs` writes the file."""

from __future__ import annotations

from typing import Final

from lora_contract.methods.parameters import Method, Parameter
from lora_contract.methods.table import DEFAULT_METHOD, METHODS

_HEAD: Final = f"""\
# Composition methods

<!-- Generated from the code by `make docs`; changes here are overwritten. -->

`compose` combines several adapters into one. D_i = s_i B_i A_i is the update of adapter i in one module, s_i its scale,
w_i the weight given by the user (may be negative), c_i = w_i s_i, and n the number of adapters that adapt the module.
Each module is composed separately, from the adapters that adapt it; targets may differ. The result is plain LoRA with
scale 1 (alpha = r). `{DEFAULT_METHOD}` is the default. Try `cat`, `task_arithmetic` and `svd` first: a study of four
language models and sixteen benchmarks found no more elaborate method that reliably improves on the sum (arXiv
2511.21437).

"""

_TAIL: Final = """\
## Differences from PEFT's methods of the same name

Seen with PEFT 0.21.2. Products agree except for these:

- PEFT's result inherits `use_rslora` from the first adapter, which makes it sqrt(r) too strong
  (huggingface/peft#3449, #3761). Ours has scale 1.
- PEFT drops the magnitudes of DoRA, `lora_bias` and KaSA's diagonal (huggingface/peft#3761), and modules in
  `modules_to_save`. Ours refuses such adapters and names the reason.
- With a single adapter, PEFT uses `linear` whatever method is requested. Ours uses the requested method.
- PEFT's `linear`, `ties`, `dare_*` and `magnitude_prune` require equal ranks. Ours pads the smaller adapters with zero
  rows in A and zero columns in B, which leaves their updates unchanged; trimming happens before padding.
- If elements of equal magnitude lie on both sides of the `density` threshold, PEFT keeps some of them in an undefined
  order. Ours keeps every element as large as the last one kept.
- PEFT draws from torch's global generator. Ours uses a counter-based generator keyed by the seed, the position
  of the adapter in the list, the module and the element, so a recipe has exactly one result.
- PEFT's `clamp` depends on the signs that the decomposition happens to give to a pair of singular vectors. Ours makes
  the largest element of each row of A positive.
- PEFT's `cat` pads A and B with zeros if ranks differ between modules. Ours does not.

The `_svd` variants of trimming and dropping, `della`, `breadcrumbs` and `sce` work on dense updates, one module at a
time. Their result does not have low rank; the report states how much of it fits into the requested rank. The leading
singular triplets come from a Gram matrix or, for large modules, from a block Lanczos iteration that stops at float32
accuracy; no full decomposition is computed.
"""


def methods_page() -> str:
    """The text of docs/methods.md."""
    return "\n".join([_HEAD + _overview(), *map(_section, METHODS.values()), _TAIL])


def _overview() -> str:
    rows = [f"| [`{m.name}`](#{m.name}) | {_yes(m.peft)} | {_yes(m.seeded)} | {m.version} |" for m in METHODS.values()]
    return "\n".join(["| method | in PEFT | seeded | version |", "|---|---|---|---|", *rows, ""])


def _sentence(summary: str) -> str:
    """With a capital, unless the first word is a symbol of a formula."""
    return summary[0].upper() + summary[1:] if summary[1].isalpha() else summary


def _yes(flag: bool) -> str:
    return "yes" if flag else ""


def _section(method: Method) -> str:
    lines = [
        f"## {method.name}",
        "",
        f"{_sentence(method.summary)}.",
        "",
        f"Source: {method.source}.",
    ]
    if method.parameters:
        lines += ["", "| parameter | range | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{p.name}` | {p.range} | {_default(p)} | {p.meaning} |" for p in method.parameters]
    return "\n".join([*lines, ""])


def _default(parameter: Parameter) -> str:
    return parameter.otherwise if parameter.default is None else f"`{parameter.default}`"
