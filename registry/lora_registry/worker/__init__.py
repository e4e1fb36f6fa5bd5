"""Code that runs in workers. The API never imports it."""
