"""How the documentation is built."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
# Sphinx runs this file by itself; what is imported here and documented is that of this checkout.
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from sphinx.util.inspect import TypeAliasForwardRef  # noqa: E402

from docs.inventories import write as write_inventory  # noqa: E402
from sc_blocks import __version__  # noqa: E402

project = "sc_blocks"
author = "The sc_blocks authors"
copyright = "2026, the sc_blocks authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_argparse_cli",
    "headings",  # docs/_ext, as is the next
    "try_it",
    "sphinx-mathjax-offline",  # formulas without a third-party host
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "browser", "results/*.md", "results/*/*.md"]  # the latter are parts of pages

html_theme = "furo"
html_title = "sc_blocks"
html_favicon = html_logo = "images/logo.svg"
html_static_path = ["_static"]
html_css_files = ["before_after.css", "try/try.css"]
html_js_files = [("before_after.js", {"defer": "defer"}), ("scrollable.js", {"defer": "defer"})]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# By name in signatures, with a place in the reference, and not spelled out.
autodoc_type_aliases = {
    "CommunicationLike": "sc_blocks.communication.CommunicationLike",
    "Exchange": "sc_blocks.scacb.Exchange",
    "InputSize": "sc_blocks.introspect.InputSize",
    "Parts": "sc_blocks.scacb.Parts",
    "Relay": "sc_blocks.dracb.Relay",
    "Resample": "sc_blocks.communication.Resample",
    "Where": "sc_blocks.surgery.Where",
    "Window": "sc_blocks.wsilb.Window",
}
# Sphinx 9 prints an alias in a union, `Exchange | None`, as this class's repr, and not by its name.
TypeAliasForwardRef.__repr__ = lambda self: self.name
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Number of parameters", "Shape", "Source"]

# Names of other projects are linked without a network: docs/inventories lists those that are needed.
intersphinx_mapping = {
    project: (address, write_inventory(HERE / "inventories" / f"{project}.txt", HERE / "_build" / f"{project}.inv"))
    for project, address in {
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
    }.items()
}
nitpicky = True
nitpick_ignore_regex: list[tuple[str, str]] = []

doctest_global_setup = """
import torch
from torch import nn
torch.manual_seed(0)
"""
