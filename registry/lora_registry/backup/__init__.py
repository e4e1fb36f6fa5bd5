"""Back up the database and the blobs to a folder or a bucket, and restore them elsewhere."""
