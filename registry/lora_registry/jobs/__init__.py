"""Jobs: the engine behind its port (`engine/`), the rows that describe jobs, enqueueing, and the routes of `/jobs`."""
