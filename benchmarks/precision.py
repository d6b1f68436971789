"""Measure the errors of MREN in lower precisions, relative to float64: ``python -m benchmarks.precision``.

The shipped weights upscale photographs from scikit-image, downscaled as for scoring. ``--calibrate FOLDER`` also
measures other engines, with int8 calibrated on the images in that folder; without it, the rows of these engines are
kept unless they were measured with other weights. The results go to a CSV file beside those of the other benchmarks,
with the checksum of the weights; :mod:`benchmarks.report` makes the tables. Nothing is timed.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.candidates import ENGINES, runtime
from examples.mren.arguments import command_parser, path_name
from examples.mren.cli import run_command
from examples.mren.data import imresize, mod_crop, photograph
from examples.mren.files import sha256
from examples.mren.fold import fold_mren
from examples.mren.messages import note
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import MREN, Variant, load_mren, weights_path
from examples.mren.training.recipes import Mixed
from examples.records import read_rows, write_rows

FILE = Path(__file__).parent / "results" / "precision.csv"
HEADER = ["network", "form", "largest", "rms", "bytes_changed", "psnr", "weights_sha256"]
NETWORKS: dict[str, Variant] = {"MREN ×4": "mren", "MREN-S ×4": "mren_s"}
PHOTOGRAPHS = ("chelsea", "coffee")
Form = Callable[[Tensor], Tensor]


def checksum(network: str) -> str:
    """SHA-256 of the shipped weights of a network."""
    return sha256(weights_path(4, NETWORKS[network]))


def read_current(file: Path = FILE) -> list[dict[str, str]]:
    """The rows of the file that were measured with the weights that are shipped now; others are left out."""
    shipped = {network: checksum(network) for network in NETWORKS}
    rows = read_rows(file) if file.exists() else []
    return [row for row in rows if row.get("weights_sha256") == shipped.get(row["network"])]


def cast(net: nn.Module, dtype: torch.dtype) -> Form:
    """Return a copy of the network in a lower precision."""
    converted = copy.deepcopy(net).to(dtype)
    return lambda x: converted(x.to(dtype))


def forms(net: MREN) -> dict[str, Form]:
    """The forms of PyTorch that are compared with float64."""
    folded = fold_mren(net)
    return {
        "float32": net,
        "float32, folded": folded,
        "autocast float16": Mixed(net, torch.float16),
        "autocast bfloat16": Mixed(net, torch.bfloat16),
        "float16": cast(net, torch.float16),
        "bfloat16": cast(net, torch.bfloat16),
        "float16, folded": cast(folded, torch.float16),
        "bfloat16, folded": cast(folded, torch.bfloat16),
    }


def engine_forms(net: MREN, calibrate: Path) -> dict[str, Form]:
    """The forms of other engines, under their names in :data:`benchmarks.candidates.ENGINES`."""
    from examples.mren.quantize import calibration_images  # here, because the PyTorch forms need no engine

    images = calibration_images(calibrate, net.scale)
    steps = {
        **{name: ENGINES[name] for name in ("openvino", "openvino bf16")},
        "openvino int8": runtime("openvino", calibration=images),
        "onnx int8": runtime("onnx", calibration=images),
    }
    return {name: step(net, torch.rand(1, 3, 24, 24))[0] for name, step in steps.items()}


@torch.inference_mode()
def measure(net: MREN, photos: Sequence[Tensor], forms: dict[str, Form]) -> list[list[str]]:
    """Return a row per form over all photographs: its name and numbers, as in :data:`HEADER`; errors in 1/255."""
    exact = copy.deepcopy(net).double()
    originals = [mod_crop(photo, 4) for photo in photos]
    inputs = [imresize(original, 1 / 4)[None].double() / 255 for original in originals]
    expected = [exact(x) for x in inputs]
    rows = []
    for name, call in {"float64": exact, **forms}.items():
        results = [call(x if name == "float64" else x.float()).double() for x in inputs]
        errors = torch.cat([255 * (a - b).flatten() for a, b in zip(results, expected, strict=True)])
        changed = torch.cat(
            [(to_uint8(a) != to_uint8(b)).flatten() for a, b in zip(results, expected, strict=True)]
        ).double()
        scores = [psnr(to_uint8(a[0]), original, 4) for a, original in zip(results, originals, strict=True)]
        numbers = [errors.abs().max(), errors.square().mean().sqrt(), changed.mean(), sum(scores) / len(scores)]
        rows.append([name, *(f"{float(number):.5g}" for number in numbers)])
        print(" ".join(rows[-1]))
    return rows


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    photos = [photograph(name) for name in PHOTOGRAPHS]
    before = read_current() if args.calibrate is None else []
    rows: list[list[str]] = []
    for name, variant in NETWORKS.items():
        net = load_mren(4, variant)
        given = forms(net) if variant == "mren" else {}
        given |= {} if args.calibrate is None else engine_forms(net, args.calibrate)
        rows += [[name, *row, checksum(name)] for row in measure(net, photos, given)]
        kept = [row for row in before if row["network"] == name and row["form"] in ENGINES]
        rows += [list(row.values()) for row in kept]
        if args.calibrate is None and not kept:
            note(f"{name}: no rows of other engines for these weights; --calibrate FOLDER measures them.")
    write_rows(FILE, [dict(zip(HEADER, row, strict=True)) for row in rows], HEADER)
    print(FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("benchmarks.precision", __doc__)
    parser.add_argument("--calibrate", type=path_name, help="folder of images like those used for training")
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
