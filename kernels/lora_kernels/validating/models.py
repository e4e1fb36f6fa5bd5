"""Loading of base and adapter as users do, with transformers and PEFT. Nothing is downloaded, no remote code is run.

Both libraries get folders and only local files. They load an adapter only after its structure has passed: PEFT would
request missing weights from a hub.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from lora_contract.errors import RegistryError
from lora_contract.validation import Precision
from lora_kernels.merging.folder import merged_config, plan_folder
from lora_kernels.types.vera import DrawnProduct

if TYPE_CHECKING:
    import torch

    from lora_kernels.devices.accelerator import Accelerator
    from lora_kernels.merging.device.resident import Resident

# Half of the free memory, in sizes of a bfloat16 checkpoint.
_RESIDENT: Final = 2.5
_ROUNDED: Final = {"BF16": "bfloat16", "F16": "float16"}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers, PEFT and bitsandbytes."""
    from transformers.utils import logging as transformers_logging

    # bitsandbytes looks for a faster kernel on a hub, and logs at length if it finds none.
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


def compute_dtype(precision: Precision) -> Precision:
    """The compute dtype. NF4 is computed in float32 on a CPU, where bfloat16 sums depend on the number of threads."""
    if precision == "nf4":
        return "float32" if device().type == "cpu" else "bfloat16"
    return precision


def load_base(folder: Path, precision: Precision = "float32") -> Any:
    """Load a causal language model for evaluation, on `device`. A quantized checkpoint stays quantized; `precision` is
    then its compute dtype. Raises RegistryError `unsupported` if transformers lacks the library of its quantization."""
    import torch
    from transformers import AutoModelForCausalLM

    target = device()
    dtype = getattr(torch, compute_dtype(precision))
    placed = target.type == "cuda" or precision == "nf4"
    # An explicit None would replace the checkpoint's own config.
    quantized = {"quantization_config": _nf4(dtype)} if precision == "nf4" else {}
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": target} if placed else None,
                local_files_only=True,
                trust_remote_code=False,
                **quantized,
            )
    except ImportError as error:
        raise RegistryError(
            "unsupported",
            f"transformers cannot load the base here: {str(error)[:300]}",
            hint="Install what it names in the workers' environment, or merge the adapter, which needs no library, and "
            "evaluate the merged model.",
        ) from error
    return model.eval()


def accelerator(base: Path) -> Accelerator | None:
    """The GPU for merges that stay in its memory; None to merge into a folder: on a CPU, and if the memory may not hold
    a merged model beside the tensors that it is loaded from, both in float32."""
    if device().type == "cpu":
        return None
    from lora_kernels.devices.accelerator import Accelerator

    found = Accelerator("cuda")
    size = sum(path.stat().st_size for path in base.rglob("*.safetensors"))
    return found if _RESIDENT * size <= found.memory() else None


def load_resident(kind: type[Any], merged: Resident, base: Path, precision: Precision) -> Any:
    """Load a merged model from tensors in memory.

    kind: class of the base's model. base: its folder, for the config. precision: compute dtype.
    """
    import torch

    with TemporaryDirectory(prefix="lora-reg-config-") as folder:
        config = json.loads((base / "config.json").read_bytes())
        (Path(folder) / "config.json").write_text(json.dumps(merged_config(config, merged.plan)))
        parsed = kind.config_class.from_pretrained(folder, local_files_only=True)
    with quiet():
        model: Any = kind.from_pretrained(
            None,
            config=parsed,
            state_dict=merged.tensors,
            dtype=getattr(torch, compute_dtype(precision)),
            device_map={"": next(iter(merged.tensors.values())).device},
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
    """Attach the adapter with PEFT. base: from `load_base`; it is modified. Raises RegistryError `rejected`."""
    from peft import PeftModel

    try:
        with quiet():
            model = PeftModel.from_pretrained(base, adapter, local_files_only=True, is_trainable=False)
    except Exception as error:  # users would get the same exception
        raise RegistryError(
            "rejected", f"PEFT cannot load the adapter: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    _round_projections(model, Path(base.name_or_path), adapter)
    return model.eval()


def _round_projections(model: Any, base: Path, adapter: Path) -> None:
    """Round seeded projections (VeRA, PVeRA) to the dtype of the checkpoint, as a merge does.

    PEFT rounds them to the dtype of the weights in memory: in training and serving that is the checkpoint's, here it
    may be float32. For quantized weights PEFT does not round them.
    """
    import torch

    if getattr(model, "is_quantized", False):
        return
    try:
        shards = plan_folder(base, [(adapter, 1.0)]).shards
    except RegistryError:
        return  # types without a merged form have no seeded projections
    updates = [delta.update for shard in shards for tensor in shard.tensors for delta in tensor.deltas]
    for dtype in {update.dtype for update in updates if isinstance(update, DrawnProduct)} & _ROUNDED.keys():
        for name in ("vera_A", "vera_B", "pvera_A", "pvera_B"):
            for drawn in getattr(model.base_model, name, {}).values():
                drawn.copy_(drawn.to(getattr(torch, _ROUNDED[dtype])))
