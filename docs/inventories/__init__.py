"""Inventories of other projects, from readable lists.

Sphinx links a name of another project by that project's ``objects.inv``, which it downloads. The documentation is built
where there is no network; so the names that it needs are listed in text files here, and :func:`write` turns a list into
an inventory. A line is

    name role where

with the place below the project's address; ``$`` at its end stands for the name. ``torch.nn.modules.module.Module`` is
what autodoc calls ``torch.nn.Module``, so both are listed.
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
    """Names, roles and places of a list; empty lines and those that begin with # are left out.

    Raises:
        ValueError: If a line does not have three parts, or a name stands there twice.
    """
    entries: list[tuple[str, str, str]] = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 3 or ":" not in parts[1]:
            raise ValueError(f"{listing.name}, line {number}: must be 'name domain:role where', got {line!r}.")
        if any(parts[0] == name for name, _, _ in entries):
            raise ValueError(f"{listing.name}, line {number}: {parts[0]} stands there already.")
        entries.append((parts[0], parts[1], parts[2]))
    return entries


def write(listing: Path, target: Path) -> str:
    """Write the inventory of a list, and return where it is, as ``intersphinx_mapping`` wants it."""
    # Name, role, priority in searches, place, and the text shown: "-" for the name.
    lines = [f"{name} {role} 1 {where} -\n" for name, role, where in read(listing)]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(HEADER.format(project=listing.stem).encode() + zlib.compress("".join(lines).encode(), 9))
    return str(target)
