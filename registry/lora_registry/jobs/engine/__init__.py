"""The port to the job engine. Knows no kind of work; the only importer of dbos."""
