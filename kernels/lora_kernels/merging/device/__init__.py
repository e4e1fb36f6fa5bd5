"""The executor of a merge on a device: the same plan, the same order of bytes and the same report as on the CPU.

    work        what of a plan a device computes, in waves that fit into its memory; pure data
    cost        the predictions that `auto` compares
    channel     queues between the threads of an execution, which end together
    operands    the factors and quantized weights of a tensor, as arguments of `lora_kernels.ops`
    compute     a wave: one launch for its low-rank updates, one call for each other tensor
    stream      the pipeline: read, copy up, compute, copy down, in threads and streams of their own

A GPU sums products otherwise than a CPU: `docs/devices.md` says where the bytes are equal, and gives the bound for the
rest.
"""
