"""How fast the blocks and MREN run, beside others of their kind; ``README.md`` says how it is measured."""
