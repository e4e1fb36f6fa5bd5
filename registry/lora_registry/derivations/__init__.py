"""Requests that derive a version by a job, or examine one: from the request to the recipe, the row and the job."""
