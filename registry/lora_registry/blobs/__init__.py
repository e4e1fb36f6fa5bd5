"""Bytes, stored once under their sha256. Knows no database and no HTTP."""
