"""What all routes share: problems, answers with ETags, streaming of blobs, repeated requests. Knows no domain."""
