"""Style of the plots in the documentation."""

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
    """Yield axes, and write them to an SVG file atomically.

    Text stays text, without dates or random names, so that the file changes only with the data.
    """
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sc_blocks", "font.size": 10}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        yield axes
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0] and axes.get_legend() is None:
            axes.legend()
        with atomic_write(target) as scratch:
            figure.savefig(scratch, format="svg", metadata={"Date": None})
