"""The cache on this machine: blobs by digest, snapshots by version, and what references meant when last asked."""
