"""Inventories of other projects, from readable lists.

Sphinx links a name of another project through that project's ``objects.inv``, which it downloads. So that the
documentation builds offline, text files here list the names that it needs, and :func:`write` turns a list into an
inventory. A line is

    name role where

where ``where`` is relative to the project's address, and ``$`` at its end stands for the name. Autodoc calls
``torch.nn.Module`` ``torch.nn.modules.module.Module``, so both are listed.
"""

from __future__ import annotations

import zlib
from pathlib import Path

HEADER = """# Sphinx inventory version 2
# Project: {project}
# Version:
# The remainder of this file is compressed using zlib.
"""


def read(listing: Path) -> list[tuple[str, str, str]]:
    """Return names, roles and locations of a list; empty lines and those that begin with # are skipped.

    Raises:
        ValueError: If a line does not have three parts, or a name is listed twice.
    """
    entries: list[tuple[str, str, str]] = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 3 or ":" not in parts[1]:
            raise ValueError(f"{listing.name}, line {number}: must be 'name domain:role where', got {line!r}.")
        if any(parts[0] == name for name, _, _ in entries):
            raise ValueError(f"{listing.name}, line {number}: {parts[0]} is listed already.")
        entries.append((parts[0], parts[1], parts[2]))
    return entries


def write(listing: Path, target: Path) -> str:
    """Write the inventory of a list, and return its path as ``intersphinx_mapping`` expects it."""
    # Name, role, search priority, location, and displayed text: "-" for the name.
    lines = [f"{name} {role} 1 {where} -\n" for name, role, where in read(listing)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(HEADER.format(project=listing.stem).encode() + zlib.compress("".join(lines).encode(), 9))
    return str(target)
