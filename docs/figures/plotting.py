"""Matplotlib plots in the style of the drawings: the same colours, fonts and file names.

The measuring scripts in this folder use it, and write to ``measured/``.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from docs.figures.theme import FONT, SMALL, THEMES
from examples.mren.data import imresize, mod_crop, photograph

MEASURED = Path(__file__).parent / "measured"
WIDTH = 5.5  # inches of 96 px: text stays legible on a phone that shows a figure at two thirds of its size
DPI = 96

#: Colours of lines, in order, as kinds of boxes in the drawings.
KINDS = ("conv", "gate", "depthwise", "exchange", "block", "quiet")
LINESTYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))

#: Photographs that come with scikit-image, whose documentation states their origin.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def pair(name: str, scale: int) -> tuple[Tensor, Tensor]:
    """A bicubically downscaled photograph, float32 in [0, 1], of shape (1, 3, H, W), and the original in uint8."""
    original = mod_crop(photograph(name), scale)
    return imresize(original, 1 / scale)[None].float() / 255, original


def line(theme: str, kind: str) -> str:
    """The line colour of a kind of element."""
    return THEMES[theme][kind][1]


@contextmanager
def style(theme: str) -> Iterator[None]:
    """Draw matplotlib figures in a theme's colours on a transparent page, with text as text and deterministically."""
    text, quiet = line(theme, "text"), line(theme, "quiet")
    with rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "sc_blocks",
            "font.family": "DejaVu Sans",  # wide, so that the layout fits in the reader's font
            "font.size": 0.72 * SMALL,  # pt at 96 px per inch
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "text.color": text,
            "axes.labelcolor": text,
            "axes.edgecolor": quiet,
            "axes.titlesize": "medium",
            "xtick.color": quiet,
            "ytick.color": quiet,
            "xtick.labelcolor": text,
            "ytick.labelcolor": text,
            "grid.color": quiet,
            "grid.alpha": 0.25,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    ):
        yield


def write(name: str, title: str, description: str, draw: Callable[[str], Figure], folder: Path = MEASURED) -> None:
    """Draw a plot in both themes and write it as ``NAME.light.svg`` and ``NAME.dark.svg``.

    Args:
        name: Base name of the files.
        title: What the plot shows, in a few words.
        description: Text alternative, for those who cannot see it.
        draw: Draws the plot for a theme.
        folder: Existing folder to write to.
    """
    for theme in THEMES:
        with style(theme):
            target = io.StringIO()
            draw(theme).savefig(target, format="svg", dpi=DPI, metadata={"Date": None})
        text = target.getvalue()
        text = text[text.index("<svg") :].replace("'DejaVu Sans'", FONT.replace('"', "'"))
        points = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
        if points is None:
            raise ValueError(f"{name}: the SVG of matplotlib has no size")
        width, height = (float(value) * 96 / 72 for value in points.groups())
        text = text.replace(
            points.group(),
            f'width="{width:.0f}" height="{height:.0f}" role="img" aria-labelledby="title desc"',
            1,
        )
        head = f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(description)}</desc>\n'
        text = re.sub(r"\n *<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        cut = text.index(">\n") + 2
        text = "\n".join(row.rstrip() for row in (text[:cut] + head + text[cut:]).splitlines()) + "\n"
        (folder / f"{name}.{theme}.svg").write_bytes(text.encode())


def dark_variant(drawing: Image.Image) -> Image.Image:
    """Recolour a white page with pictures and captions for the dark theme, and leave the pictures as they are.

    A region surrounded by the page is a picture if it is larger than a letter.
    """
    from skimage.measure import label, regionprops  # here, because the import takes a second
    from skimage.segmentation import flood

    drawing = drawing.convert("RGB")
    white = flood((np.asarray(drawing) == 255).all(axis=2), (0, 0))
    page = np.ones_like(white)
    for region in regionprops(label(~white)):
        height, width = region.image.shape
        if height >= 12 and width >= 40:
            page[region.slice] &= ~region.image_convex  # white at the edge of a picture belongs to it
    text, ground = (THEMES["dark"][kind][0] for kind in ("text", "page"))
    return Image.composite(ImageOps.colorize(drawing.convert("L"), text, ground), drawing, Image.fromarray(page))


def read_numbers(name: str) -> dict:
    """Read measured numbers from ``measured/NAME.json``."""
    return json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))


def write_numbers(name: str, numbers: dict) -> None:
    """Write measured numbers, rounded to significant digits."""
    (MEASURED / f"{name}.json").write_text(json.dumps(_rounded(numbers), indent=1) + "\n", encoding="utf-8")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and abs(value) < 100 else value


def command(arguments: Sequence[str] | None, description: str | None, measure: Callable, draw: Callable) -> None:
    """Measure if requested, then draw."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--measure", action="store_true", help="measure again before drawing, in minutes on one core")
    if parser.parse_args(arguments).measure:
        measure()
    draw()
