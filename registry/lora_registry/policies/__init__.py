"""Policies on tags: documents for patterns of tags, the evaluation sets that they name, and the guard of tag moves."""
