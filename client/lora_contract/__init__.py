"""What client, service, workers and kernels agree on: references, manifests, adapter checks, recipes, policies, errors.

Standard library and msgspec only; no I/O, no clock, no environment. Parsers turn untrusted bytes into frozen values
once; from there on the code handles types, not strings.
"""

from typing import Final

__version__: Final = "0.1.0"
"""Of the distribution: client, service and kernels are released together."""
