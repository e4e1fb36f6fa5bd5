"""Read and write safetensors folders: sources, sinks, and staging of results that appear whole or not at all."""
