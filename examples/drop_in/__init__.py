"""The blocks inside networks that are not ours: one short runnable file for each host."""
