"""Adapters in PEFT's format: parsing `adapter_config.json`, what each type's tensors are, and the check of a push."""
