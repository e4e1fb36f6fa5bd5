"""The number formats of bitsandbytes in numpy: NF4 and FP4 in blocks, and int8 by rows (LLM.int8).

Dequantizing and quantizing give the bits that bitsandbytes gives on a CPU, without it. Everything works on ranges of
elements, so that a tensor of any size passes through buffers of the caller's choice. `groups` and `layout`, which say
how a checkpoint holds such a tensor, load no numpy.
"""
