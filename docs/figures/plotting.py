"""Plots in the style of the drawings: the same colours, letters and file names, made with matplotlib.

The scripts beside this one that measure something use it; what they write goes to ``measured/``.
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
WIDTH = 5.5  # inches of 96 px: letters stay legible where a phone shows a figure at two thirds of its size
DPI = 96

#: Colours of lines, in order, by the kinds of boxes that the drawings know.
KINDS = ("conv", "gate", "depthwise", "exchange", "block", "quiet")
LINESTYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))

#: Photographs that come with scikit-image, with what its documentation says about their origin.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def pair(name: str, scale: int) -> tuple[Tensor, Tensor]:
    """A photograph shrunk as the field does, float32 between 0 and 1, shape (1, 3, H, W), and the original in uint8."""
    original = mod_crop(photograph(name), scale)
    return imresize(original, 1 / scale)[None].float() / 255, original


def line(theme: str, kind: str) -> str:
    """The colour in which something of a kind is drawn."""
    return THEMES[theme][kind][1]


@contextmanager
def style(theme: str) -> Iterator[None]:
    """Make matplotlib draw in a theme's colours on a transparent page; text stays text, and nothing is random."""
    text, quiet = line(theme, "text"), line(theme, "quiet")
    with rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "sc_blocks",
            "font.family": "DejaVu Sans",  # wide: what is laid out with it fits in the reader's font
            "font.size": 0.72 * SMALL,  # pt of 96 px an inch
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
        name: Of the files.
        title: What the plot shows, in a few words.
        description: What it says, for those who cannot see it.
        draw: Makes the plot; gets the name of the theme.
        folder: Where to; must exist.
    """
    for theme in THEMES:
        with style(theme):
            target = io.StringIO()
            draw(theme).savefig(target, format="svg", dpi=DPI, metadata={"Date": None})
        text = target.getvalue()
        text = text[text.index("<svg") :].replace("'DejaVu Sans'", FONT.replace('"', "'"))
        points = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
        if points is None:
            raise ValueError(f"{name}: matplotlib wrote no size")
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


def in_the_dark(drawing: Image.Image) -> Image.Image:
    """Pictures with captions on a white page, with the page and the letters in the colours of the dark theme.

    Whatever the page surrounds is a picture if it is larger than a letter.
    """
    from skimage.measure import label, regionprops  # here only: they take a second
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
    """What was measured, from ``measured/NAME.json``."""
    return json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))


def write_numbers(name: str, numbers: dict) -> None:
    """Keep what was measured, with as many digits as mean something."""
    (MEASURED / f"{name}.json").write_text(json.dumps(_rounded(numbers), indent=1) + "\n", encoding="utf-8")


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and abs(value) < 100 else value


def command(arguments: Sequence[str] | None, description: str | None, measure: Callable, draw: Callable) -> None:
    """Measure, if that is asked for, and draw."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--measure", action="store_true", help="measure anew, minutes on one core, before drawing")
    if parser.parse_args(arguments).measure:
        measure()
    draw()
