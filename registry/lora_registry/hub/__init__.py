"""The Hugging Face Hub dialect, read only: requests of stock Hub clients under `/hf` (`HF_ENDPOINT=http://host/hf`)."""
