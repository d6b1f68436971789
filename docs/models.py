"""The tables of the models page, made from the committed weights, scores and times while the site is built.

A weight file that is added to ``examples/mren/weights`` with its scores appears on the page automatically.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from benchmarks import results
from examples.markdown import signed, table
from examples.mren.files import sha256
from examples.mren.model import FREE, WEIGHTS
from examples.mren.shipped import HEIGHT, WIDTH, Weights, shipped

DOCS = Path(__file__).parent
DASH = "–"


def timed() -> results.Suite:
    """The committed times of the machine with the most shipped networks."""
    names = {weights.network for weights in shipped()}
    return max(results.load()["nets"], key=lambda suite: sum(suite.row(name, "folded") is not None for name in names))


def seconds(weights: Weights, suite: results.Suite, form: str) -> float | None:
    """Time per megapixel of the result, if it was measured."""
    row = suite.row(weights.network, form)
    if row is None:
        return None
    *_, height, width = row["size"]
    return row["seconds"]["median"] * 1e6 / (height * width * weights.scale**2)


def text(folder: Path = WEIGHTS) -> str:
    """All tables of the page, in Markdown."""
    suite, found = timed(), shipped(folder)
    return "\n".join([summary(found, suite), narrow(found, suite), *(section(weights, suite) for weights in found)])


def summary(found: list[Weights], suite: results.Suite) -> str:
    """A line for each file."""
    rows = []
    for weights in found:
        ours, bicubic = (scores.get("Set14") for scores in (weights.scores, weights.bicubic))
        time = seconds(weights, suite, "folded")
        rows.append(
            [
                f"[{weights.title}](#{_anchor(weights)})",
                f"{ours[0]:.2f}" if ours else DASH,
                signed(ours[0] - bicubic[0], 2) if ours and bicubic else DASH,
                f"{weights.parameters / 1000:.0f} K",
                f"{weights.macs / 1e9:.1f}",
                f"{time:.2f}" if time else DASH,
                f"{weights.file.stat().st_size / 1e6:.1f}",
            ]
        )
    head = ["weights", "PSNR", "over bicubic", "parameters", "GMACs", "s / MP", "MB"]
    note = (
        f"PSNR on Set14 in dB; multiply-accumulates for a result of {WIDTH} × {HEIGHT}; seconds per megapixel of the "
        f"result on {suite.place} of {suite.machine['cpu']}, torch {suite.machine['versions']['torch']}, folded. "
        f"{DASH}: not measured; the weights for photographs have [separate scores](how-to/photographs.md).\n"
    )
    return f"{table(head, rows, text=('weights',))}\n{note}"


def narrow(found: list[Weights], suite: results.Suite) -> str:
    """MREN-S compared with MREN at every scale that has both."""
    plain = {(weights.variant, weights.scale): weights for weights in found if not weights.kind}
    rows = []
    for (variant, scale), own in plain.items():
        wide = plain.get(("mren", scale))
        if variant != "mren_s" or wide is None:
            continue
        gains = sorted(
            round(psnr, 2) - round(wide.scores[name][0], 2)
            for name, (psnr, _) in own.scores.items()
            if name in wide.scores
        )
        time, wide_time = (seconds(weights, suite, "folded") for weights in (own, wide))
        rows.append(
            [
                f"×{scale}",
                f"{signed(gains[0], 2)} to {signed(gains[-1], 2)}" if gains else DASH,
                f"{own.parameters / wide.parameters:.2f}",
                f"{own.macs / wide.macs:.2f}",
                f"{time / wide_time:.2f}" if time and wide_time else DASH,
            ]
        )
    head = ["MREN-S over MREN", "PSNR, difference in dB", "parameters", "GMACs", "s / MP"]
    note = "PSNR: the range of the differences on the four test sets. The other columns are ratios.\n"
    return f"{table(head, rows, text=head[:1])}\n{note}" if rows else ""


def section(weights: Weights, suite: results.Suite) -> str:
    """All data on a file, under its own heading."""
    path = Path(os.path.relpath(weights.file, DOCS)).as_posix()
    download = f"{{download}}`{weights.file.name} <{path}>`, {weights.file.stat().st_size / 1e6:.2f} MB"
    terms = "allow commercial use, some with attribution" if weights.kind == FREE else "have their own terms"
    facts = {
        "load": f"`{weights.call}`",
        "scale": f"×{weights.scale}",
        "parameters": f"{weights.parameters:,}",
        "multiply-accumulates": f"{weights.macs / 1e9:.1f} G",
        "time": _times(weights, suite),
        "trained on": re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", weights.images),
        "terms": f"[MIT; the images {terms}](licence.md#weights)",
        "SHA-256": f"`{sha256(weights.file)}`",
    }
    head = ["file", download]
    lines = table(head, [[name, value] for name, value in facts.items() if value], text=head)
    return f"({_anchor(weights)})=\n## {weights.title}\n\n{lines}\n{_scores(weights)}"


def _anchor(weights: Weights) -> str:
    return "weights-" + weights.file.stem.replace("_", "-")


def _times(weights: Weights, suite: results.Suite) -> str:
    forms = {"not folded": "eager", "folded": "folded", "folded, in ONNX Runtime": "folded, onnx"}
    times = {words: seconds(weights, suite, form) for words, form in forms.items()}
    parts = [f"{time:.2f} s {words}" for words, time in times.items() if time]
    return f"{'; '.join(parts)}; per megapixel of the result, {suite.place}" if parts else ""


def _scores(weights: Weights) -> str:
    ours, bicubic = weights.scores, weights.bicubic
    if not ours:
        return "For the gains on JPEGs and noise, see [JPEGs and real photographs](how-to/photographs.md).\n"
    rows = [
        [name, *(f"{of[name][0]:.2f}" for of in (ours, bicubic)), *(f"{of[name][1]:.4f}" for of in (ours, bicubic))]
        for name in ours
    ]
    return table(["", "PSNR, dB", "bicubic", "SSIM", "bicubic"], rows)
