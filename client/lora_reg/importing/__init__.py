"""Import: adapters from where they lie today (the Hub, S3, MLflow, folders), in the formats that trainers write."""
