"""Updates that several types make."""
