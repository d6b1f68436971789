"""Give a heading level to the captions of tables of contents: screen readers need it, and Sphinx sets none."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def give_levels(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    for part in ("body", "furo_navigation_tree"):
        if part in context:
            context[part] = context[part].replace('role="heading">', 'role="heading" aria-level="2">')


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", give_levels, priority=900)  # after the theme has made its tree
    return {"parallel_read_safe": True, "parallel_write_safe": True}
