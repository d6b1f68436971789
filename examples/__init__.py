"""Networks built from the blocks; run the commands from the root of the repository."""
