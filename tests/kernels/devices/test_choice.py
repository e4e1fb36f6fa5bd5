"""The device of an operation: what is asked for, what is there, what is predicted."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from lora_contract.errors import RegistryError
from lora_kernels.devices import Estimate, choose
from lora_kernels.devices.cuda import CudaDevice, find_device

GPU = CudaDevice("NVIDIA X", 80 << 30)


def found() -> CudaDevice | str:
    return GPU


def absent() -> CudaDevice | str:
    return "this machine has no NVIDIA driver (libcuda.so.1)"


def unasked() -> Estimate:
    raise AssertionError("no prediction is needed")


def test_the_cpu_is_taken_when_requested_and_nothing_is_looked_for() -> None:
    def look() -> CudaDevice | str:
        raise AssertionError("the driver is not loaded")

    assert choose("cpu", unasked, find=look).device == "cpu"


def test_cuda_without_a_gpu_is_refused_with_a_hint() -> None:
    with pytest.raises(RegistryError) as caught:
        choose("cuda", unasked, find=absent)
    assert caught.value.code == "unsupported"
    assert "no NVIDIA driver" in caught.value.detail and "--device cpu" in (caught.value.hint or "")


def test_auto_without_a_gpu_says_why_the_cpu() -> None:
    chosen = choose("auto", unasked, find=absent)
    assert (chosen.device, chosen.reason) == ("cpu", "this machine has no NVIDIA driver (libcuda.so.1)")


@pytest.mark.parametrize(
    ("cpu", "cuda", "device"), [(10.0, 5.0, "cuda"), (10.0, 9.0, "cpu"), (10.0, 20.0, "cpu"), (10.0, None, "cpu")]
)
def test_auto_takes_what_is_clearly_faster(cpu: float, cuda: float | None, device: str) -> None:
    chosen = choose("auto", lambda: Estimate(cpu, cuda, "5.0 GB written"), find=found)
    assert chosen.device == device and chosen.reason.startswith("5.0 GB written: ")
    if cuda is not None:
        assert f"{cpu:.1f} s on the CPU and {cuda:.1f} s on NVIDIA X are predicted" in chosen.reason
    assert (chosen.backend, chosen.processor) == (("triton", "NVIDIA X") if device == "cuda" else ("numpy", None))
    assert chosen.versions == (f"torch {version('torch')}, triton {version('triton')}" if device == "cuda" else None)


def test_another_device_is_refused() -> None:
    with pytest.raises(RegistryError, match="expected one of cpu, cuda, auto"):
        choose("gpu", unasked)  # type: ignore[arg-type]


def test_looking_for_a_gpu_loads_no_torch() -> None:
    script = (
        "import sys; from lora_kernels.devices.cuda import find_device; find_device(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert isinstance(find_device(), str | CudaDevice)
