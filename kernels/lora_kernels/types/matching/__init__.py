"""Shared matching code of the rooms: adapter and base, target weights, refusals."""
