"""The environment of child processes: what their work needs, by name. All else may be a secret, and stays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_NAMES: Final = frozenset(
    {
        *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "USER", "LOGNAME", "XDG_CACHE_HOME", "SOURCE_DATE_EPOCH"),
        *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONMALLOC"),
        *(
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "CC",
            "CXX",
            "GLIBC_TUNABLES",
            "MALLOC_ARENA_MAX",
            "CUBLAS_WORKSPACE_CONFIG",
        ),
        *("LORA_REG_DATA", "LORA_REG_STORAGE_URL", "LORA_REG_FAULT", "LORA_REG_FAULT_ONCE", "LORA_REG_LOG_LEVEL"),
    }
)
_PREFIXES: Final = (
    *("LC_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "NUMEXPR_", "VECLIB_", "BLIS_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "BNB_"),
)


def for_children(environment: Mapping[str, str]) -> dict[str, str]:
    """Keep the variables that children need, and keep them from asking a hub."""
    kept = {name: value for name, value in environment.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_OFFLINE": "1"}
