"""How the documentation is built."""

from sc_blocks import __version__

project = "sc_blocks"
author = "The sc_blocks authors"
copyright = "2026, the sc_blocks authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # formulas without a third-party host
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "results/*.md"]  # the latter are parts of results.md

html_theme = "furo"
html_title = "sc_blocks"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Source"]

nitpicky = True
# Names of other projects: their inventories would have to be downloaded.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|collections|typing|fractions)\..*"),
    ("py:.*", r"(Tensor|Callable|Sequence|Literal|optional|Window|Parts|Exchange|Relay|Resample|CommunicationLike)"),
]

doctest_global_setup = """
import torch
from torch import nn
torch.manual_seed(0)
"""
