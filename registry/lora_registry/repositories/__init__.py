"""Repositories and their versions: resolve references, insert, show, list, yank and delete versions, lineage."""
