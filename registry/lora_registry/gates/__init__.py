"""The gate: whether a version may have a tag, decided from reports by a policy, and the move that rests on it."""
