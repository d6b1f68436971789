"""Networks built from the blocks, to run from the root of the repository."""
