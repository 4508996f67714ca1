"""The key performance matrix: reading and writing its cells, and filling it."""
