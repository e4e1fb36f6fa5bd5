"""The Hugging Face Hub dialect, read side: what stock Hub clients ask under `/hf` (`HF_ENDPOINT=http://host/hf`)."""
