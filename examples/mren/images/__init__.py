"""Image files: reading and writing with colour profile and metadata, 8 and 16 bits, transparency."""
