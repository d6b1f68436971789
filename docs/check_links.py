"""Check a built site: internal links are valid, and images exist and have alternative text.

    sphinx-build docs docs/_build/html && python -m docs.check_links docs/_build/html

Prints one line per fault, and exits with 1 if there are any. Links to other hosts are not followed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Page(HTMLParser):
    """Anchors, links and images of a page."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    """Links of every kind: anchors, images, style sheets, scripts."""
    undescribed: list[str] = field(default_factory=list)
    """Images without alternative text."""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record an element."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src", "data", "poster") if given.get(name)]
        if tag == "img" and "alt" not in given:
            self.undescribed.append(given.get("src", ""))
        # Where no text was written, Sphinx inserts the file's name, which describes nothing.
        elif tag == "img" and given["alt"] and Path(given["alt"]).name == Path(given.get("src", "")).name:
            self.undescribed.append(given["src"])

    handle_startendtag = handle_starttag


def read(path: Path) -> Page:
    """Read a page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def faults(site: Path) -> list[str]:
    """Return the faults of a site, one line each.

    Raises:
        ValueError: If there is no page in the folder.
    """
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise ValueError(f"{site}: no pages; build them with sphinx-build docs {site}.")
    root = site.resolve()
    found: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(root).as_posix()
        found += [f"{name}: image without alternative text, {source}" for source in page.undescribed]
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            # The error page is shown at any address, so its links start from the root of the site.
            folder = root if parts.path.startswith("/") else path.parent
            target = (folder / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            fragment = unquote(parts.fragment)
            if not target.is_relative_to(root):
                found.append(f"{name}: link out of the site, {link}")
            elif not target.is_file():
                found.append(f"{name}: link to a missing file, {link}")
            elif fragment and target in pages and fragment not in pages[target].anchors:
                found.append(f"{name}: link to a missing anchor, {link}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser("python -m docs.check_links", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path, metavar="FOLDER", help="output folder of sphinx-build")
    args = parser.parse_args(argv)
    try:
        found = faults(args.site)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for fault in found:
        print(fault)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
