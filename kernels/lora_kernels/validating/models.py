"""The base and the adapter as their users load them: transformers and PEFT, nothing fetched, nothing executed.

Both get folders, are progress that files are local, and see an adapter only when its structure has passed: without its
weights PEFT would ask a hub for them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_contract.errors import RegistryError
from lora_contract.validation import Precision
from lora_kernels.merging.folder import plan_folder
from lora_kernels.types.vera import DrawnProduct

if TYPE_CHECKING:
    import torch

_ROUNDED: Final = {"BF16": "bfloat16", "F16": "float16"}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers, PEFT and bitsandbytes."""
    from transformers.utils import logging as transformers_logging

    # It looks for a faster kernel on a hub, and logs at length that there is none.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    library: Any = transformers_logging
    level = library.get_verbosity()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.enable_progress_bar()
        library.set_verbosity(level)


def device() -> torch.device:
    """The device that models run on: the GPU if there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computed_in(precision: Precision) -> Precision:
    """The compute dtype. On a CPU, sums in bfloat16 depend on the number of threads and those in float32 do not, so NF4
    is computed in float32 there."""
    if precision == "nf4":
        return "float32" if device().type == "cpu" else "bfloat16"
    return precision


def load_base(folder: Path, precision: Precision = "float32") -> Any:
    """Load a causal language model for evaluation, on `device`. A quantized checkpoint stays quantized; `precision` is
    then its compute dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    where = device()
    wide = getattr(torch, computed_in(precision))
    placed = where.type == "cuda" or precision == "nf4"
    # An explicit None would replace the checkpoint's own config.
    quantized = {"quantization_config": _nf4(wide)} if precision == "nf4" else {}
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=wide,
            device_map={"": where} if placed else None,
            local_files_only=True,
            trust_remote_code=False,
            **quantized,
        )
    return model.eval()


def _nf4(compute: torch.dtype) -> Any:
    import transformers

    config: Any = transformers.BitsAndBytesConfig
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def load_tokenizer(folder: Path) -> Any:
    """Load the base's tokenizer. Raises RegistryError `unsupported` if there is none."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise RegistryError(
            "unsupported",
            f"The base has no tokenizer that transformers loads: {str(error)[:200]}",
            hint="Register the base with its tokenizer.",
        ) from error


def attach(base: Any, adapter: Path) -> Any:
    """The base, of `load_base`, with the adapter, by PEFT; the base itself is changed. Raises RegistryError
    `rejected`."""
    from peft import PeftModel

    try:
        with quiet():
            model = PeftModel.from_pretrained(base, adapter, local_files_only=True, is_trainable=False)
    except Exception as error:  # whatever PEFT raises, it is what users would meet
        raise RegistryError(
            "rejected", f"PEFT cannot load the adapter: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    _round_projections(model, Path(base.name_or_path), adapter)
    return model.eval()


def _round_projections(model: Any, base: Path, adapter: Path) -> None:
    """PEFT rounds the projections that it draws by a seed (VeRA, PVeRA) to the type of the weights in memory: trained
    and served, that is the one that the checkpoint stores, which a merge takes too. Here it may be float32. Beside
    quantized weights PEFT leaves them as they are."""
    import torch

    if getattr(model, "is_quantized", False):
        return
    try:
        shards = plan_folder(base, [(adapter, 1.0)]).shards
    except RegistryError:
        return  # what has no merged form has no projections by a seed either
    updates = [delta.update for shard in shards for tensor in shard.tensors for delta in tensor.deltas]
    for dtype in {update.dtype for update in updates if isinstance(update, DrawnProduct)} & _ROUNDED.keys():
        for name in ("vera_A", "vera_B", "pvera_A", "pvera_B"):
            for drawn in getattr(model.base_model, name, {}).values():
                drawn.copy_(drawn.to(getattr(torch, _ROUNDED[dtype])))
