"""The plots of :mod:`benchmarks.report`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from benchmarks.results import Results, Suite
from examples.mren.plots import svg_plot
from examples.mren.report import published
from examples.mren.shipped import scored

DATASET = "Set5"


class Point(NamedTuple):
    """A network in a plot of PSNR over cost."""

    name: str
    cost: float
    psnr: float
    shipped: bool
    """Whether the PSNR is that of our weights rather than the paper's."""


def points(suite: Suite, over: str) -> list[Point]:
    """Return a point for every network whose PSNR is known.

    Args:
        suite: Results of ``nets``.
        over: ``"seconds"``, or ``"macs"`` for a result of 1280 × 720.
    """
    printed = {row["method"]: row[f"{DATASET}_psnr"] for row in published(4)}
    psnr = {method: float(value) for method, value in printed.items() if value}
    ours = {weights.architecture: weights.scores[DATASET][0] for weights in scored(4) if not weights.kind}
    found = []
    for row in suite.rows:
        method = row["name"].removesuffix(" ×4")
        if "seconds" not in row or row["form"] != "eager" or not row.get("macs"):
            continue
        height, width = row["size"][-2:]
        cost = row["seconds"]["median"] * 1000 if over == "seconds" else row["macs"] * 57600 / (height * width) / 1e9
        if method in psnr:
            found.append(Point(method, cost, psnr[method], False))
        if method in ours:
            found.append(Point(method, cost, ours[method], True))
            best = suite.best(row["name"])
            if over == "seconds" and best and best is not row:
                milliseconds = best["seconds"]["median"] * 1000
                found.append(Point(f"{method}, {best['form']}", milliseconds, ours[method], True))
    return found


def _psnr_over(over: str, label: str, results: Results, target: Path) -> None:
    with svg_plot(target) as axes:
        found = [point for suite in results.get("nets", [])[:1] for point in points(suite, over)]
        for shipped, colour, marker, name in (
            (False, "tab:blue", "o", "PSNR of the MREN paper"),
            (True, "tab:orange", "D", "PSNR of our weights"),
        ):
            drawn = [point for point in found if point.shipped is shipped]
            costs, values = [point.cost for point in drawn], [point.psnr for point in drawn]
            axes.scatter(costs, values, color=colour, marker=marker, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.2, y=0.15)
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR on Set5 ×4, dB")
        _write_names(axes, found)


def _write_names(axes: Axes, found: list[Point]) -> None:
    """Label each point without overlapping points or other labels; a line connects a distant label."""
    axes.figure.draw_without_rendering()  # fixes the layout, and with it the positions of the points
    marks = axes.transData.transform([(point.cost, point.psnr) for point in found])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for point in found:
        at = point.cost, point.psnr
        text = axes.annotate(point.name, at, xytext=(0, 0), textcoords="offset points", fontsize=8)
        for y, x in product((4, -12, 14, -22, 24, -32, 34, -42), (5, -5)):
            text.xyann = x, y
            text.set_horizontalalignment("left" if x > 0 else "right")
            box = text.get_window_extent()
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not box.count_overlaps(taken):
                break
        taken.append(box)
        if not -12 <= y <= 4:
            line = {"arrowstyle": "-", "color": "gray", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", at, xytext=(x, y + 3), textcoords="offset points", arrowprops=line)


def _growth(values: str, label: str, results: Results, target: Path, *, output: bool) -> None:
    with svg_plot(target) as axes:
        for suite in results.get("growth", [])[:1]:
            curves: dict[str, list[tuple[float, float]]] = {}
            for row in suite.rows:
                if "seconds" not in row or (values == "memory" and row["peak_bytes"] is None):
                    continue
                height, width = row["size"][-2:]
                pixels = height * width * (16 if output else 1) / 1e6
                value = row["seconds"]["median"] if values == "seconds" else row["peak_bytes"] / 2**20
                tiles = f", tiles of {row['tile']}" if row["tile"] else ""
                curves.setdefault(f"{row['name']}, {row['form']}{tiles}", []).append((pixels, value))
            for name, curve in curves.items():
                axes.plot(*zip(*curve, strict=True), marker=".", linestyle="--" if "tiles" in name else "-", label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"megapixels of the {'result' if output else 'input'}")
        axes.set_ylabel(label)


PLOTS: dict[str, Callable[[Results, Path], None]] = {
    "psnr_latency.svg": partial(_psnr_over, "seconds", "ms for an input of 160 × 120"),
    "psnr_macs.svg": partial(_psnr_over, "macs", "GMACs for a result of 1280 × 720"),
    "memory.svg": partial(_growth, "memory", "peak memory of a forward pass, MiB", output=True),
    "latency.svg": partial(_growth, "seconds", "seconds of a forward pass", output=False),
}
