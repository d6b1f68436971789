"""Keep Napoleon from taking text before a colon in docstrings of attributes and constants for a type.

Napoleon parses the first line of such a docstring as ``type: description``; an empty comment before it prevents that.
"""

from __future__ import annotations

from sphinx.application import Sphinx


def shield(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Put an empty comment before the docstring of an attribute."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", shield, priority=100)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
