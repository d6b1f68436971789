"""How the plots of the documentation look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.mren.files import atomic_write


@contextmanager
def svg_plot(target: Path) -> Iterator[Axes]:
    """Yield axes to draw on, and write them to an SVG file, whole or not at all.

    Text stays text and there are no dates or random names: the file changes when the data does.
    """
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sc_blocks", "font.size": 10}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        yield axes
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        with atomic_write(target) as scratch:
            figure.savefig(scratch, format="svg", metadata={"Date": None})
