"""Update the printed output of code on pages: ``python -m docs.figures.printed``.

The code of these pages prints numbers of the shipped weights. A text block directly after a Python block is its
output, and is replaced unless it is abbreviated (``...``). Tests compare the pages with their code up to rounding, so
this is needed when the weights have changed.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
PAGES = ("how-to/attention-maps", "how-to/scoring", "how-to/local-statistics")
BLOCKS = re.compile(r"^```python\n(?P<code>.*?)^```\n(?P<between>\n```text\n(?P<shown>.*?)^```\n)?", re.DOTALL | re.M)


def updated(text: str, name: str) -> str:
    """Return the text of a page with the current output of its code."""
    namespace: dict[str, object] = {}

    def run(block: re.Match[str]) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block["code"], name, "exec"), namespace)
        whole, shown = block.group(), block["shown"]
        if shown is None or "..." in shown:
            return whole
        start = block.start("shown") - block.start()
        return whole[:start] + output.getvalue() + whole[start + len(shown) :]

    return BLOCKS.sub(run, text)


def main() -> None:
    for name in PAGES:
        page = DOCS / f"{name}.md"
        page.write_text(updated(page.read_text(encoding="utf-8"), page.name), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
