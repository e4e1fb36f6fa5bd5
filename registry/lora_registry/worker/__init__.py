"""What runs in workers. The API never imports it."""
