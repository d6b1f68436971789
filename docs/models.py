"""The tables of the models page, made from the committed weights, scores and times while the site is built.

A weight file that is added to ``examples/mren/weights`` with its scores appears on the page automatically.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import results
from examples.markdown import signed, table
from examples.mren.files import sha256
from examples.mren.model import FREE, KINDS, MREN, VARIANTS, WEIGHTS, parse_weights_name, read_weights, variant_of
from examples.mren.report import DATASETS, NETWORKS
from examples.records import read_rows
from sc_blocks.introspect import complexity

DOCS = Path(__file__).parent
WIDTH, HEIGHT = 1280, 720  # output size for which multiply-accumulates are counted
DASH = "–"

Scores = dict[str, tuple[float, float]]
"""PSNR and SSIM by test set."""


@dataclass(frozen=True)
class Weights:
    """One weight file, with the committed data about it."""

    file: Path

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments, from the metadata of the file."""
        return read_weights(self.file)[0]

    @property
    def scale(self) -> int:
        """Factor for height and width."""
        return self.arguments["scale"]

    @property
    def variant(self) -> str:
        """``"mren"``, ``"mren_s"`` or ``"mren_l"``."""
        variant = variant_of(self.arguments)
        if variant is None:
            raise ValueError(f"{self.file}: is none of the variants {', '.join(VARIANTS)}.")
        return variant

    @property
    def kind(self) -> str:
        """``"photo"``, ``"free"``, or nothing."""
        return parse_weights_name(self.file)[2]

    @property
    def network(self) -> str:
        """The name of the network, such as ``MREN-S ×4``."""
        return f"{NETWORKS[self.variant]} ×{self.scale}"

    @property
    def title(self) -> str:
        """The name to print, such as ``MREN-S ×4 for photographs``."""
        return f"{self.network} {KINDS[self.kind]}" if self.kind else self.network

    @property
    def call(self) -> str:
        """The call that loads the weights."""
        arguments = [str(self.scale)]
        arguments += [f'"{self.variant}"'] * (self.variant != "mren") + [f'path="{self.kind}"'] * bool(self.kind)
        return f"load_mren({', '.join(arguments)})"

    @cached_property
    def cost(self) -> tuple[int, float]:
        """Parameters, and multiply-accumulates in 1e9 for a result of 1280 x 720."""
        net = MREN(**self.arguments, device="meta")
        found = complexity(net, (1, 3, HEIGHT // self.scale, WIDTH // self.scale))
        return found.parameters, found.macs / 1e9

    @property
    def method(self) -> str:
        """The name under which these weights are scored."""
        return self.file.stem if self.kind else self.variant

    def scores(self, method: str) -> Scores:
        """Mean scores on each test set, of these weights or of ``"bicubic"``; without the sets that were not scored."""
        file = self.file.with_suffix(".scores.csv")
        rows = [row for row in read_rows(file) if row["method"] == method] if file.exists() else []
        own = {name: [row for row in rows if row["dataset"] == name] for name in DATASETS}
        return {
            name: (fmean(float(row["psnr"]) for row in rows), fmean(float(row["ssim"]) for row in rows))
            for name, rows in own.items()
            if rows
        }

    @property
    def images(self) -> str:
        """The training images, as the model card describes them."""
        section = (self.file.parent / "README.md").read_text(encoding="utf-8").partition(f"\n## {self.file.stem}\n")[2]
        found = re.search(r"^\| images \| (.*) \|$", section.partition("\n## ")[0], re.MULTILINE)
        return found[1] if found else ""

    def seconds(self, suite: results.Suite, form: str) -> float | None:
        """Time per megapixel of the result, if it was measured."""
        row = suite.row(self.network, form)
        if row is None:
            return None
        *_, height, width = row["size"]
        return row["seconds"]["median"] * 1e6 / (height * width * self.scale**2)


def shipped(folder: Path = WEIGHTS) -> list[Weights]:
    """The weight files of a folder: by kind, then by scale, then by variant."""
    found = [Weights(file) for file in folder.glob("*.safetensors")]
    kinds, order = ["", *KINDS], list(NETWORKS)
    return sorted(found, key=lambda w: (kinds.index(w.kind), w.scale, order.index(w.variant)))


def timed() -> results.Suite:
    """The committed times of the machine with the most shipped networks."""
    names = {weights.network for weights in shipped()}
    return max(results.load()["nets"], key=lambda suite: sum(suite.row(name, "folded") is not None for name in names))


def text(folder: Path = WEIGHTS) -> str:
    """All tables of the page, in Markdown."""
    suite, found = timed(), shipped(folder)
    return "\n".join([summary(found, suite), *(section(weights, suite) for weights in found)])


def summary(found: list[Weights], suite: results.Suite) -> str:
    """A line for each file."""
    rows = []
    for weights in found:
        parameters, macs = weights.cost
        ours, bicubic = (weights.scores(method).get("Set14") for method in (weights.method, "bicubic"))
        seconds = weights.seconds(suite, "folded")
        rows.append(
            [
                f"[{weights.title}](#{_anchor(weights)})",
                f"{ours[0]:.2f}" if ours else DASH,
                signed(ours[0] - bicubic[0], 2) if ours and bicubic else DASH,
                f"{parameters / 1000:.0f} K",
                f"{macs:.1f}",
                f"{seconds:.2f}" if seconds else DASH,
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


def section(weights: Weights, suite: results.Suite) -> str:
    """All data on a file, under its own heading."""
    parameters, macs = weights.cost
    path = Path(os.path.relpath(weights.file, DOCS)).as_posix()
    download = f"{{download}}`{weights.file.name} <{path}>`, {weights.file.stat().st_size / 1e6:.2f} MB"
    terms = "allow commercial use, some with attribution" if weights.kind == FREE else "have their own terms"
    facts = {
        "load": f"`{weights.call}`",
        "scale": f"×{weights.scale}",
        "parameters": f"{parameters:,}",
        "multiply-accumulates": f"{macs:.1f} G",
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
    times = {words: weights.seconds(suite, form) for words, form in forms.items()}
    parts = [f"{seconds:.2f} s {words}" for words, seconds in times.items() if seconds]
    return f"{'; '.join(parts)}; per megapixel of the result, {suite.place}" if parts else ""


def _scores(weights: Weights) -> str:
    ours, bicubic = weights.scores(weights.method), weights.scores("bicubic")
    if not ours:
        return "For the gains on JPEGs and noise, see [JPEGs and real photographs](how-to/photographs.md).\n"
    rows = [
        [name, *(f"{of[name][0]:.2f}" for of in (ours, bicubic)), *(f"{of[name][1]:.4f}" for of in (ours, bicubic))]
        for name in ours
    ]
    return table(["", "PSNR, dB", "bicubic", "SSIM", "bicubic"], rows)
