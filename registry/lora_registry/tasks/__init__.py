"""What jobs do: the steps that glue domains together. The top of the worker's side; the API never imports it."""
