"""Reading and writing of image files with 8 or 16 bits, transparency, colour profile and metadata."""
