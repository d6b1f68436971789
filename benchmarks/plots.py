"""The plots of :mod:`benchmarks.report`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.results import Results, Suite
from examples.mren.plots import svg_plot
from examples.mren.report import published, scored

DATASET = "Set5"


def points(suite: Suite, over: str) -> list[tuple[str, float, float]]:
    """Name, cost and PSNR of every network whose PSNR is known.

    Args:
        suite: Results of ``nets``.
        over: ``"seconds"`` or ``"macs"``, which is given for a result of 1280 × 720.
    """
    printed = {row["method"]: row[f"{DATASET}_psnr"] for row in published(4)}
    psnr = {method: float(value) for method, value in printed.items() if value}
    found = []
    for row in suite.rows:
        method = row["name"].removesuffix(" ×4")
        if method not in psnr or "seconds" not in row or row["form"] != "eager" or not row.get("macs"):
            continue
        height, width = row["size"][-2:]
        cost = row["seconds"]["median"] * 1000 if over == "seconds" else row["macs"] * 57600 / (height * width) / 1e9
        found.append((method, cost, psnr[method]))
        if method == "MREN":
            ours = scored(4)["mren"][DATASET][0]
            found.append(("MREN, our weights", cost, ours))
            best = suite.best(row["name"])
            if over == "seconds" and best and best is not row:
                found.append((f"MREN, our weights, {best['form']}", best["seconds"]["median"] * 1000, ours))
    return found


def _psnr_over(over: str, label: str, results: Results, target: Path) -> None:
    with svg_plot(target) as axes:
        for suite in results.get("nets", [])[:1]:
            for name, cost, psnr in points(suite, over):
                ours = name.startswith("MREN")
                axes.scatter([cost], [psnr], color="tab:orange" if ours else "tab:blue", marker="D" if ours else "o")
                # A second form of a network lies at the same height as the first: its name goes below.
                place = (5, -12) if name.count(",") > 1 else (5, 4)
                axes.annotate(name, (cost, psnr), xytext=place, textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.15)
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR on Set5 ×4, dB")


def _growth(values: str, label: str, results: Results, target: Path, *, output: bool) -> None:
    with svg_plot(target) as axes:
        for suite in results.get("growth", [])[:1]:
            curves: dict[str, list[tuple[float, float]]] = {}
            for row in suite.rows:
                if "seconds" not in row or row["peak_bytes"] is None:
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
    "memory.svg": partial(_growth, "memory", "peak memory of a forward, MiB", output=True),
    "latency.svg": partial(_growth, "seconds", "seconds of a forward", output=False),
}
