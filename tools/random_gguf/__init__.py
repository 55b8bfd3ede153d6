"""GGUF files of random weights: shapes, blocks of random numbers, and the file."""
