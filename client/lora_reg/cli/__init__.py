"""The command line: parses, calls the library, prints through `output` alone."""
