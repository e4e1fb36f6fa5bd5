"""Requests and responses of `/api/v1`, by domain.

Requests forbid unknown fields; responses tolerate them, so that an older client reads a newer server. Times are
RFC 3339 strings in UTC. Digests are `sha256:…` strings. `cursor` is opaque: give it back to get the next page.
"""
