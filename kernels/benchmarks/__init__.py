"""Benchmarks of the tensor engine: `make bench`, or `python -m benchmarks SUITE` with `kernels` on the path.

Every figure is of a whole process, measured against its peers in the same run. Results are checked against float64
first; the speed of a wrong one is not reported.
"""
