"""Pictures for people, by matplotlib, which comes with the extra `plot`."""
