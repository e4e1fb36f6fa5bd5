"""Jobs: the engine behind its port (`engine/`), what a job is about (rows), enqueueing, and the routes of `/jobs`."""
