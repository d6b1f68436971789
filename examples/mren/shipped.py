"""The shipped weights with what is committed about them, for the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from examples.mren.model import KINDS, MREN, NETWORKS, WEIGHTS, Variant, parse_weights_name, read_weights
from examples.records import read_rows
from sc_blocks.introspect import complexity

WIDTH, HEIGHT = 1280, 720  # size of the result for which multiply-accumulates are counted
DATASETS = ("Set5", "Set14", "B100", "Urban100")

Scores = dict[str, tuple[float, float]]
"""Mean PSNR and SSIM by test set, without the sets that were not scored."""


@dataclass(frozen=True)
class Weights:
    """One weight file, named by its variant, scale and kind, and the files beside it."""

    file: Path

    @cached_property
    def _content(self) -> tuple[dict[str, Any], int]:
        arguments, tensors = read_weights(self.file)
        return arguments, sum(tensor.numel() for tensor in tensors.values())

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments, from the metadata of the file."""
        return self._content[0]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return self._content[1]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for a result of 1280 x 720."""
        net = MREN(**self.arguments, device="meta")
        return complexity(net, (1, 3, HEIGHT // self.scale, WIDTH // self.scale)).macs

    @property
    def variant(self) -> Variant:
        """``"mren"``, ``"mren_s"`` or ``"mren_l"``."""
        return cast(Variant, parse_weights_name(self.file)[0])

    @property
    def scale(self) -> int:
        """Factor for height and width."""
        return int(parse_weights_name(self.file)[1])

    @property
    def kind(self) -> str:
        """``"photo"``, ``"free"``, or nothing."""
        return parse_weights_name(self.file)[2]

    @property
    def architecture(self) -> str:
        """The name of the network without its scale, such as ``MREN-S``."""
        return NETWORKS[self.variant]

    @property
    def network(self) -> str:
        """The name of the network, such as ``MREN-S ×4``."""
        return f"{self.architecture} ×{self.scale}"

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
    def scores(self) -> Scores:
        """The scores of these weights."""
        return self._means(self.file.stem if self.kind else self.variant)

    @cached_property
    def bicubic(self) -> Scores:
        """The scores of bicubic upscaling on the same images."""
        return self._means("bicubic")

    def _means(self, method: str) -> Scores:
        file = self.file.with_suffix(".scores.csv")
        rows = [row for row in read_rows(file) if row["method"] == method] if file.exists() else []
        own = {name: [row for row in rows if row["dataset"] == name] for name in DATASETS}
        return {
            name: (fmean(float(row["psnr"]) for row in rows), fmean(float(row["ssim"]) for row in rows))
            for name, rows in own.items()
            if rows
        }

    @property
    def log(self) -> Path:
        """The validations of the training."""
        return self.file.with_suffix(".log.csv")

    @property
    def images(self) -> str:
        """The training images, as the model card describes them."""
        section = (self.file.parent / "README.md").read_text(encoding="utf-8").partition(f"\n## {self.file.stem}\n")[2]
        found = re.search(r"^\| images \| (.*) \|$", section.partition("\n## ")[0], re.MULTILINE)
        return found[1] if found else ""


def shipped(folder: Path = WEIGHTS) -> list[Weights]:
    """The weight files of a folder: by kind, then by scale, then by variant."""
    found = [Weights(file) for file in folder.glob("*.safetensors")]
    kinds, order = ["", *KINDS], list(NETWORKS)
    return sorted(found, key=lambda weights: (kinds.index(weights.kind), weights.scale, order.index(weights.variant)))


def scored(scale: int, folder: Path = WEIGHTS) -> list[Weights]:
    """The weights of one scale that have scores, in the same order."""
    return [weights for weights in shipped(folder) if weights.scale == scale and weights.scores]
