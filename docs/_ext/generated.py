"""Parts of pages that are made while the site is built, from files of the repository.

``<!-- made by docs.models -->`` on a page stands for what ``docs.models.text()`` returns, in Markdown. Such a page is
read anew in every build, since what it is made of changes without it.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

MARK = re.compile(r"^<!-- made by (docs\.\w+) -->$", re.MULTILINE)


def insert(app: Sphinx, page: str, content: list[str]) -> None:
    """Replace the marks of a page by what they stand for."""
    content[0] = MARK.sub(lambda found: importlib.import_module(found[1]).text(), content[0])


def outdated(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Pages with marks."""
    return [page for page in env.found_docs if MARK.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", insert)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
