"""Conversions of other formats to PEFT's. Pure: configs and tensors in, configs and tensors out, and no I/O."""
