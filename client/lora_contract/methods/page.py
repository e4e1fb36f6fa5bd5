"""The table of methods as a page of the docs.

`python -m lora_contract.methods.page > docs/methods.md` writes the page.
"""

from __future__ import annotations

import sys
from typing import Final

from lora_contract.methods.parameters import Method, Parameter
from lora_contract.methods.table import DEFAULT_METHOD, METHODS

_HEAD: Final = f"""\
# Methods of composing

Written by `python -m lora_contract.methods.page` from the table there; a test compares both.

`compose` makes one adapter of several. D_i = s_i B_i A_i is the update of adapter i in one module, s_i its scale, w_i
the weight asked for (negative ones are fine), c_i = w_i s_i, and n the number of adapters that adapt the module. Every
module is composed for itself, of the adapters that adapt it; targets may differ. The result is plain LoRA of scale 1
(alpha = r). `{DEFAULT_METHOD}` is the default. Try `cat`, `task_arithmetic` and `svd` first: a study of four language
models and sixteen benchmarks found that no more elaborate method gains reliably over the sum (arXiv 2511.21437).

"""

_TAIL: Final = """\
## Where PEFT's methods of the same name differ

Seen with PEFT 0.21.2. Products agree but for these:

- PEFT's result inherits `use_rslora` from the first adapter and is then sqrt(r) too strong
  (huggingface/peft#3449, #3761). Ours has scale 1.
- PEFT drops the magnitudes of DoRA, `lora_bias` and KaSA's diagonal (huggingface/peft#3761), and a module of
  `modules_to_save`. Ours refuses such adapters by name.
- With one adapter PEFT takes `linear` whatever was asked for. Ours does what was asked for.
- `linear`, `ties`, `dare_*` and `magnitude_prune` of PEFT want equal ranks. Ours adds zero rows to A and zero columns
  to B of the smaller ones, which leaves their updates as they are; they are trimmed before.
- PEFT takes `density` of elements even where the last ones are as large as others that it drops, in an order that is
  not defined. Ours keeps all that are as large as the last.
- PEFT draws from torch's global generator. Ours draws by counter, from the seed, the adapter's place in the list, the
  module and the element, so that a recipe has one result.
- `clamp` of PEFT depends on the sign that the decomposition gives to a pair of vectors. Ours makes the largest element
  of each row of A positive.
- PEFT's `cat` pads A and B with zeros where ranks differ between modules. Ours does not.

The `_svd` forms of trimming and dropping, `della`, `breadcrumbs` and `sce` work on whole updates, one module at a
time, whose result has no low rank: the report says how much of it the rank asked for holds. Their leading
triplets come from a Gram matrix or, on large modules, from a block Lanczos iteration that ends at the accuracy of
float32; no whole decomposition is made.
"""


def methods_page() -> str:
    """docs/methods.md."""
    return "\n".join([_HEAD + _overview(), *map(_section, METHODS.values()), _TAIL])


def _overview() -> str:
    rows = [f"| [`{m.name}`](#{m.name}) | {_yes(m.peft)} | {_yes(m.seeded)} | {m.version} |" for m in METHODS.values()]
    return "\n".join(["| method | in PEFT | seeded | version |", "|---|---|---|---|", *rows, ""])


def _yes(flag: bool) -> str:
    return "yes" if flag else ""


def _section(method: Method) -> str:
    lines = [
        f"## {method.name}",
        "",
        f"{method.summary[0].upper()}{method.summary[1:]}.",
        "",
        f"Source: {method.source}.",
    ]
    if method.parameters:
        lines += ["", "| parameter | range | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{p.name}` | {p.range} | {_default(p)} | {p.meaning} |" for p in method.parameters]
    return "\n".join([*lines, ""])


def _default(parameter: Parameter) -> str:
    return parameter.otherwise if parameter.default is None else f"`{parameter.default}`"


if __name__ == "__main__":
    sys.stdout.write(methods_page())
