"""Code that runs in child processes: I/O and computation of jobs, with the blob store but no database or engine."""
