"""Policies on tags: a document per pattern of tags, the evaluation sets it names, and the guard of tag moves."""
