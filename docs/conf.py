"""Sphinx configuration of the documentation."""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).parent
# Sphinx runs this file on its own; import and document the modules of this checkout.
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
    "notfound.extension",
    "sphinx_argparse_cli",
    "sphinx_copybutton",
    "sphinx_design",
    # of docs/_ext
    "attributes",
    "command_lines",
    "generated",
    "headings",
    "notebooks",
    "search_words",
    "try_it",
    "sphinx-mathjax-offline",  # formulas without a third-party host
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "browser", "results/*.md", "results/*/*.md"]  # the results are included in pages

html_theme = "furo"
html_title = f"sc_blocks {release}"
pygments_dark_style = "a11y-high-contrast-dark"  # matches the theme's light style; the default underlines modules
html_favicon = html_logo = "images/logo.svg"
templates_path = ["_templates"]
html_static_path = ["_static", "images/mren_sample.png"]
html_css_files = ["site.css", "before_after.css", "try/try.css"]
html_js_files = [("before_after.js", {"defer": "defer"}), ("scrollable.js", {"defer": "defer"})]

# Prompts and outputs are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.highlight-text) > div.highlight > pre"

# Where the site is published: search engines and links in messages need the whole address. Read the Docs sets it.
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL") or os.environ.get("SC_BLOCKS_SITE", "")
html_baseurl = html_baseurl.rstrip("/") + "/" if html_baseurl else ""
notfound_urls_prefix = urlsplit(html_baseurl).path or "/"
notfound_context = {
    "title": "Page not found",
    "body": "<h1>Page not found</h1><p>There is no page at this address. Use the search or the navigation, or go to "
    f'the <a href="{notfound_urls_prefix}index.html">start page</a>.</p>',
}
if html_baseurl:
    extensions += ["sphinx_sitemap", "sphinxext.opengraph"]
    sitemap_url_scheme = "{link}"
    sitemap_excludes = ["404.html", "search.html", "genindex.html"]
    ogp_site_url = html_baseurl
    ogp_image = f"{html_baseurl}_static/mren_sample.png"
    ogp_image_alt = "A coffee cup: low-resolution input, bicubic, MREN and original"
    ogp_social_cards = {"enable": False}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# Shown by name in signatures, with a link to the reference, instead of spelled out.
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

# Names of other projects are linked offline: docs/inventories lists those that are needed.
intersphinx_mapping = {
    project: (address, write_inventory(HERE / "inventories" / f"{project}.txt", HERE / "_build" / f"{project}.inv"))
    for project, address in {
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
    }.items()
}
nitpicky = True
# Not in the reference: a command, whose options have their own page; a class that only fold_mren builds; and type
# variables.
nitpick_ignore = [
    ("py:mod", "examples.mren.train"),
    ("py:class", "examples.mren.fold.FoldedMREN"),
    ("py:class", "sc_blocks.local.Network"),
    ("py:class", "sc_blocks.surgery.Old"),
]

doctest_global_setup = """
import torch
from torch import nn
torch.manual_seed(0)
"""
