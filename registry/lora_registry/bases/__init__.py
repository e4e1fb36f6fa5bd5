"""What only bases have: aliases and fingerprints."""
