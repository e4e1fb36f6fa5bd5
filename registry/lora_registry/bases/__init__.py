"""Bases: their aliases and fingerprints."""
