"""Requests for jobs that derive or examine versions: from the request to the recipe, the row and the job."""
