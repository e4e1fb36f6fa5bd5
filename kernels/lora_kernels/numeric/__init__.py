"""Element types, blocks of a matrix, random numbers and control of BLAS: what all other floors stand on."""
