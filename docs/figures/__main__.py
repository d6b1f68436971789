"""Regenerate everything that the documentation computes with the shipped weights: ``python -m docs.figures``.

After changing weights, score them (``examples.mren.evaluate --csv``), run this, and review the pages whose numbers have
changed. Tables in the explanation pages are written by hand: ``tests/test_measured.py`` names those that no longer
match. So is the table of correlations on the page of attention maps, which the step ``attention`` prints. Times of the
benchmarks do not depend on weights and are left alone.

The step ``precision`` drops the rows of other engines if they were measured with earlier weights, and says so;
``python -m benchmarks.precision --calibrate FOLDER`` measures them again.

The tables of :mod:`docs.figures.scores` need the test sets, in ``../shared/data`` or ``SC_BLOCKS_DATA``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from docs.figures.plotting import dark_variant
from examples.mren.data import photograph

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
DETAILS = ("astronaut", "chelsea", "rocket", "coffee")


def module(name: str, *arguments: str) -> None:
    """Run a command of the repository."""
    subprocess.run([sys.executable, "-m", name, *arguments], cwd=ROOT, check=True)


def draw_sample() -> None:
    module("examples.mren.upscale", "-o", str(IMAGES / "mren_sample.png"), "--overwrite")


def draw_details() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in DETAILS:
            Image.fromarray(photograph(name).permute(1, 2, 0).numpy()).save(Path(folder) / f"{name}.png")
        drawn = Path(folder) / "details.png"
        module("examples.mren.compare", "--data", folder, "--crop", *DETAILS, "-o", str(drawn))
        save(drawn, "details.jpg", quality=88)


def draw_attention() -> None:
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "attention.png"
        module("examples.mren.attention", "--max-side", "256", "--blocks", "1", "3", "6", "-o", str(drawn))
        save(drawn, "attention.jpg", quality=82)


def save(drawn: Path, name: str, *, quality: int) -> None:
    """Save a picture drawn on white for both themes, at most 1500 pixels wide."""
    with Image.open(drawn) as image:
        light = image.convert("RGB")
    file = IMAGES / name
    for theme, target in ((light, file), (dark_variant(light), file.with_suffix(f".dark{file.suffix}"))):
        theme.thumbnail((1500, 1500), Image.Resampling.LANCZOS)
        theme.save(target, quality=quality)


# Quick ones first.
STEPS: dict[str, Callable[[], None]] = {
    "sample": draw_sample,
    "details": draw_details,
    "attention": draw_attention,
    "pair": lambda: module("docs.figures.pair"),
    "tutorials": lambda: module("docs.figures.tutorials.draw"),
    "printed": lambda: module("docs.figures.printed"),
    "report": lambda: module("examples.mren.report"),
    "flicker": lambda: module("benchmarks.flicker"),
    "precision": lambda: module("benchmarks.precision"),
    "benchmarks": lambda: module("benchmarks.report"),
    "jpeg": lambda: module("docs.figures.jpeg", "--measure"),
    "numerics": lambda: module("docs.figures.numerics", "--measure"),
    "scores": lambda: module("docs.figures.scores", "--measure"),
    "attention_passing": lambda: module("docs.figures.attention_passing", "--measure"),
    "receptive_field": lambda: module("docs.figures.receptive_field", "--measure"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser("python -m docs.figures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"one or more of {', '.join(STEPS)} (all)")
    steps = parser.parse_args(arguments).steps or list(STEPS)
    if unknown := [step for step in steps if step not in STEPS]:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    for step in steps:
        print(f"# {step}", flush=True)
        STEPS[step]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
