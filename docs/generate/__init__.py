"""Writes the reference pages from the code: `make docs`. A test compares the committed pages with what this writes."""
