"""What `lora-registry backup` and `restore` import, for the process that they are forked from."""

import lora_registry.admin
import lora_registry.backup.restore
import lora_registry.blobs.s3  # noqa: F401
