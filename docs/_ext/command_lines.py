"""Format the epilogue of a command's help as text and code, and show each default only once."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

WRAP = "sphinx-argparse-cli-wrap"
EMPTY = ("False", "[]", "{}", "inf")
"""Defaults that only mean that the option was not given."""


def tidy(app: Sphinx, doctree: nodes.document) -> None:
    for block in list(doctree.findall(nodes.literal_block)):
        if WRAP in block["classes"] and block.astext().startswith("    "):
            block.replace_self(list(paragraphs(block)))
    for option in doctree.findall(nodes.paragraph):
        if any("--" in name for name in option.get("ids", ())):
            drop_default(option)


def paragraphs(block: nodes.literal_block) -> list[nodes.Element]:
    """Return indented calls as code, and everything else as text."""
    found: list[nodes.Element] = []
    for part in re.split(r"\n\s*\n", block.astext().rstrip()):
        if part.startswith("    "):
            calls = "\n".join(line.removeprefix("    ") for line in part.splitlines())
            found.append(nodes.literal_block(calls, calls, language="bash"))
        else:
            text = " ".join(part.split())
            found.append(nodes.paragraph(text, text))
    return found


def drop_default(option: nodes.paragraph) -> None:
    """Remove ``(default: 4)`` after a help text that ends with ``(4)``, and defaults that carry no information."""
    for before, literal, after in zip(option.children, option.children[1:], option.children[2:], strict=False):
        head, opening, _ = before.astext().rpartition(" (default: ")
        default = literal.astext()
        if opening and isinstance(literal, nodes.literal) and after.astext() == ")":
            if default in EMPTY or option.astext().endswith(f"({default}) (default: {default})"):
                option.replace(before, nodes.Text(head))
                option.remove(literal)
                option.remove(after)
            return


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", tidy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
