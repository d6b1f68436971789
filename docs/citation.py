"""The BibTeX entry of this software, with the version that the site is built from."""

from __future__ import annotations

from sc_blocks import __version__


def text() -> str:
    """A block of BibTeX."""
    return f"""\
```bibtex
@software{{sc_blocks,
  title   = {{sc_blocks: attention blocks for super-resolution and image restoration}},
  author  = {{{{The sc_blocks authors}}}},
  version = {{{__version__}}},
  license = {{MIT}}
}}
```
"""
