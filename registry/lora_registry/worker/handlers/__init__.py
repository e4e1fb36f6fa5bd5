"""One handler per kind of job: a fixed sequence of steps, run in the worker itself, with database access."""
