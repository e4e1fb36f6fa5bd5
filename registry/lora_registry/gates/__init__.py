"""Gates: decide by a policy, from reports, whether a tag may move to a version, and promote the version."""
