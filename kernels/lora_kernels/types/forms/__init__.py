"""Updates that several types use."""
