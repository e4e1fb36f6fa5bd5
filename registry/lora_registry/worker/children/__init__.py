"""What runs in child processes: the reading and computing of a job. Holds the blob store, no database and no engine."""
