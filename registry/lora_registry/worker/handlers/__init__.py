"""One handler per kind of job: a fixed sequence of steps around the database, run in the worker itself."""
