"""Namespaces with their visibility, and tokens with their grants."""
