"""Keep stored bytes: states of blobs, verified reads, repair, file system check, garbage collection."""
