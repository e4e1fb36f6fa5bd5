"""Tensor code without a registry: merge adapters into checkpoints.

Notation throughout the package: r rank, i input features, o output features, W base weight (o, i),
A (r, i), B (o, r), dW = s * B @ A the update of one adapter.

Importing the package loads neither numpy nor torch; each function imports what it needs when called.
"""
