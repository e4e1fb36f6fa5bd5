"""The Hugging Face Hub dialect: requests of stock Hub clients under `/hf` (`HF_ENDPOINT=http://host/hf`)."""
