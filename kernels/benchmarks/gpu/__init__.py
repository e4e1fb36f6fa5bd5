"""Triton kernels against the copy bandwidth of the GPU they run on: `python -m benchmarks.gpu`, `… .gpu.tune`."""
