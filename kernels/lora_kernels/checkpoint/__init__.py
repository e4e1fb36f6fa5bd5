"""Read and write safetensors folders: sources, sinks, and staging of results, which are published atomically."""
