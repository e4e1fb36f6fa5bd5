"""Shared by all routes: problems, responses with ETags, blob streaming, idempotency keys. Independent of the domain."""
