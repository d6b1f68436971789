"""A site that is built without npm, or without the packages that export the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.conftest import ROOT

pytestmark = pytest.mark.browser

CONF = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "docs" / "_ext")!r}]
import try_it
try_it.PACKAGE = Path("nowhere")
def write_network(weights, cache):
    raise RuntimeError("No module named 'onnxscript'")
try_it.write_network = write_network
extensions = ["myst_parser", "try_it"]
"""


def test_the_page_says_what_is_missing_and_how_to_build_it(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(CONF)
    (tmp_path / "index.md").write_text("# Try\n\n```{try-it}\n```\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(tmp_path), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING: the site is built without its demo: the npm package onnxruntime-web is not" in done.stderr
    written = (tmp_path / "html" / "index.html").read_text()
    page = re.sub("<[^>]+>", "", written)  # commands are in colours
    assert "the npm package onnxruntime-web is not installed" in page
    assert "the network could not be exported (No module named ‘onnxscript’)" in page
    assert "npm ci --prefix docs/browser" in page
    assert "app.js" not in written
