"""Triton kernels against the bandwidth of the GPU they run on: `python -m benchmarks.gpu`.

place.py        where a run happens: a GPU, or Triton's interpreter with small shapes (--dry)
journal.py      the lines of a run, each on disk before the next thing begins; the deadline
monitor.py      clocks, power and temperature from nvidia-smi, while a case runs
ceilings.py     what the device can reach: copies, reads, writes, mixes; how its matrix units sum
rates.py        instructions per second of some kinds
cases.py        each operation: inputs, the bytes it must move, its kernels
choices.py      other launch configurations of a few operations
checks.py       the result of a case against float64, or to the byte
timing.py       a case beside a copy and plain torch, on the GPU's clock
counters.py     hardware counters of a case, by ncu
predictions.py  what was computed before any run: data, without torch
page.py         the table of docs/kernels.md
"""
