"""Insert parts of pages that are generated from files of the repository while the site is built.

``<!-- made by docs.models -->`` on a page is replaced with the Markdown that ``docs.models.text()`` returns. Such a
page is read again in every build, because its sources change independently of it.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

MARK = re.compile(r"^<!-- made by (docs\.\w+) -->$", re.MULTILINE)


def insert(app: Sphinx, page: str, content: list[str]) -> None:
    """Replace the markers in a page with the generated text."""
    content[0] = MARK.sub(lambda found: importlib.import_module(found[1]).text(), content[0])


def outdated(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Return the pages with markers."""
    return [page for page in env.found_docs if MARK.search(Path(env.doc2path(page)).read_text(encoding="utf-8"))]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", insert)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
