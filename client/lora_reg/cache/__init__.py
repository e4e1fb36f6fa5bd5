"""The local cache: blobs by digest, snapshots by version, and the last resolved version of each reference."""
