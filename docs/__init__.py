"""The documentation, and the scripts that write and check parts of it."""
