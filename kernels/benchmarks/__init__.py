"""Benchmarks of the tensor engine: `make bench`, or `python -m benchmarks SUITE` where `kernels` is on the path.

Every figure is a whole process against its peers in the same run; results are checked against float64 first, and no
speed is told of a wrong one.
"""
