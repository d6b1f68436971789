"""Offer tutorials as notebooks: jupytext converts each page while the site is built, and the page links to it."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
FOLDER = "docs/_build/notebooks"
HEADER = "---\njupyter:\n  kernelspec:\n    name: python3\n    display_name: Python 3\n    language: python\n---\n\n"
START = "Run this notebook in the root of a clone of the repository.\n"
IMAGE = re.compile(r"^```\{image\}.*?^```\n+|^!\[.*?\]\(.*?\)\n+", re.DOTALL | re.MULTILINE)
OUTPUT = re.compile(r"^```text\n.*?^```\n+", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r"\{\w+\}`(?:~?([^`<]*?)(?: <[^`]*>)?)`")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")


def as_notebook(page: str) -> str:
    """Convert a Markdown page to a notebook with cells of code and text, without images and outputs.

    Shell commands are cells with ``%%bash``. Links to other pages are replaced by their text.
    """
    text = OUTPUT.sub("", IMAGE.sub("", page)).replace("```sh\n", "```bash\n")
    title, _, rest = text.partition("\n")
    notebook = jupytext.reads(f"{HEADER}{title}\n\n{START}{rest}", fmt="md")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            text = ROLE.sub(r"`\1`", cell.source)
            cell.source = LINK.sub(lambda link: link[1] or "the documentation", text)
        cell["id"] = f"cell-{number}"  # the same in every build
    return jupytext.writes(notebook, fmt="ipynb")


def offer(app: Sphinx, page: str, content: list[str]) -> None:
    """Write the notebook of a tutorial, and put a link below the title of the page."""
    if not page.startswith("tutorials/") or page.endswith("/index"):
        return
    file = ROOT / FOLDER / f"{page.partition('/')[2]}.ipynb"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_notebook(content[0]), encoding="utf-8")
    title, _, rest = content[0].partition("\n")
    content[0] = f"{title}\n\n{{download}}`Download as a notebook </_build/notebooks/{file.name}>`\n{rest}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", offer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
