"""Blobs: bytes stored once under their sha256. Independent of database and HTTP."""
