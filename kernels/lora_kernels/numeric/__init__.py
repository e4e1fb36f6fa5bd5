"""Dtypes, blocks of a matrix, random numbers and BLAS threads: the base of all other layers."""
