"""The blocks in other networks, the hosts: one short runnable file for each."""
