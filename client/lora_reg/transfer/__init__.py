"""Folders to the registry and back: scan, upload, download, write."""
