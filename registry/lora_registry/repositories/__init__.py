"""Repositories and their versions: resolve a reference, insert a version, show, list, yank, delete, lineage."""
