"""What client, server and kernels agree on.

Standard library and msgspec only; no I/O, no clock, no environment. The server and the kernels import
nothing else of the client. Parsers turn untrusted bytes into frozen values once; inside, types, not strings.
"""
