"""The line that names the device of an operation."""

from __future__ import annotations

from lora_reg.formatting.devices import device_line, device_lines

GPU = {"device": "cuda", "backend": "triton", "processor": "NVIDIA X", "reason": "requested"}
CPU = {"device": "cpu", "backend": "numpy", "processor": None, "reason": "requested"}


def test_the_line_has_device_backend_and_reason() -> None:
    assert device_line(GPU) == "device: cuda (NVIDIA X), by triton; requested"
    assert device_line(CPU) == "device: cpu, by numpy; requested"


def test_a_job_names_it_unless_it_is_the_cpu() -> None:
    assert device_lines({"execution": GPU}) == [device_line(GPU)]
    assert device_lines({"execution": CPU}) == device_lines({}) == []
