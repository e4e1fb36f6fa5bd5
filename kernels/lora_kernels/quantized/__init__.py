"""The number formats of bitsandbytes in numpy: NF4 and FP4 in blocks, and int8 by row (LLM.int8).

Results are bitwise equal to those of bitsandbytes on a CPU, which need not be installed. All functions work on ranges
of elements, so that a tensor of any size can be processed in buffers of the caller's choice. `groups` and `layout`,
which define how a checkpoint stores such a tensor, do not load numpy.
"""
