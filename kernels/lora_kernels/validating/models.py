"""The base and the adapter as their users load them: transformers and PEFT, nothing fetched, nothing executed.

Both get folders, are told that files are local, and see an adapter only when its structure has passed: without its
weights PEFT would ask a hub for them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_reg.spec.errors import RegistryError


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries say to people: what matters of it is found by comparison."""
    from transformers.utils import logging as talk_of_transformers

    # It looks for a faster kernel on a hub, and says at length that there is none.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    talk: Any = talk_of_transformers
    level = talk.get_verbosity()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talk.enable_progress_bar()
        talk.set_verbosity(level)


def load_base(folder: Path) -> Any:
    """A causal language model in float32, to be evaluated. On a processor sums in bfloat16 depend on the number of
    threads, those in float32 do not."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """Raises RegistryError `unsupported` where the base has no tokenizer: nothing can then be read to it."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise RegistryError(
            "unsupported",
            f"The base has no tokenizer that transformers loads: {str(error)[:200]}",
            way_out="Register the base with its tokenizer.",
        ) from error


def attach(base: Any, adapter: Path) -> Any:
    """The base with the adapter, by PEFT; the base itself is changed. Raises RegistryError `rejected`."""
    from peft import PeftModel

    try:
        with quiet():
            model = PeftModel.from_pretrained(base, adapter, local_files_only=True, is_trainable=False)
    except Exception as error:  # whatever PEFT raises, it is what users would meet
        raise RegistryError(
            "rejected", f"PEFT cannot load the adapter: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return model.eval()
