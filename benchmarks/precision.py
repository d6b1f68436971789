"""The errors of MREN in lower precisions, compared with float64: ``python -m benchmarks.precision``.

The shipped weights enlarge photographs that scikit-image ships, shrunk as for scoring. The results go to a CSV file
beside those of the other benchmarks; :mod:`benchmarks.report` makes the table. Nothing is timed.
"""

from __future__ import annotations

import copy
import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.mren.data import imresize, mod_crop
from examples.mren.files import write_text
from examples.mren.fold import fold_mren
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import load_mren

FILE = Path(__file__).parent / "results" / "precision.csv"
HEADER = ["form", "largest", "rms", "bytes_changed", "psnr"]


def autocast(net: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The network as mixed precision runs it: float32 weights, convolutions in a lower type."""

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return net(x)

    return call


def cast(net: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A copy of the network whose weights are of a lower type."""
    lower = copy.deepcopy(net).to(dtype)
    return lambda x: lower(x.to(dtype))


def forms(net: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """The forms that are compared with float64."""
    folded = fold_mren(net)
    return {
        "float32": net,
        "float32, folded": folded,
        "autocast float16": autocast(net, torch.float16),
        "autocast bfloat16": autocast(net, torch.bfloat16),
        "float16": cast(net, torch.float16),
        "bfloat16": cast(net, torch.bfloat16),
        "float16, folded": cast(folded, torch.float16),
        "bfloat16, folded": cast(folded, torch.bfloat16),
    }


@torch.inference_mode()
def measure(photos: list[Tensor], say: Callable[[str], object] = print) -> list[list[str]]:
    """A row for each form, over all photographs: see :data:`HEADER`; errors in steps of a byte, 1/255."""
    net = load_mren(4)
    exact = copy.deepcopy(net).double()
    originals = [mod_crop(photo, 4) for photo in photos]
    inputs = [imresize(original, 1 / 4)[None].double() / 255 for original in originals]
    wanted = [exact(x) for x in inputs]
    rows = []
    for name, call in {"float64": exact, **forms(net)}.items():
        results = [call(x if name == "float64" else x.float()).double() for x in inputs]
        errors = torch.cat([255 * (a - b).flatten() for a, b in zip(results, wanted, strict=True)])
        changed = torch.cat(
            [(to_uint8(a) != to_uint8(b)).flatten() for a, b in zip(results, wanted, strict=True)]
        ).double()
        scores = [psnr(to_uint8(a[0]), original, 4) for a, original in zip(results, originals, strict=True)]
        numbers = [errors.abs().max(), errors.square().mean().sqrt(), changed.mean(), sum(scores) / len(scores)]
        rows.append([name, *(f"{float(number):.5g}" for number in numbers)])
        say(" ".join(rows[-1]))
    return rows


def main() -> int:
    """Entry point; returns the exit code."""
    from skimage.data import chelsea, coffee

    rows = measure([torch.from_numpy(photo()).permute(2, 0, 1) for photo in (chelsea, coffee)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    write_text(FILE, text.getvalue())
    print(FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
