"""Benchmarks of the blocks and MREN against others of their kind; ``README.md`` describes the method."""
