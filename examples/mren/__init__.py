"""MREN, the network of the paper, built from the blocks of ``sc_blocks``: trained, scored and put to use."""
