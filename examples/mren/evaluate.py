"""Score MREN and bicubic on folders of high-resolution images by the usual protocol.

    python -m examples.mren.evaluate --data Set5 Set14 --scale 4 --csv scores.csv
    python -m examples.mren.evaluate --data Set5/HR --lr Set5/LR_bicubic/X4 --scale 4

The low-resolution images are made by MATLAB's bicubic downscaling, or given with --lr.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from examples.mren.arguments import command_parser, path_name, whole_number
from examples.mren.cli import check_no_input, check_target, run_command
from examples.mren.data import MAX_PIXELS, imresize, list_images, mod_crop, read_rgb
from examples.mren.degradation import Degradation, degrade, make_generator
from examples.mren.ensemble import SelfEnsemble, Upscale, network_upscaler
from examples.mren.files import unique_names
from examples.mren.imagepairs import dataset_name, match_lr
from examples.mren.messages import UsageError, describe, fail, note
from examples.mren.metrics import Score, score
from examples.mren.model import MREN, STAGES, find_weights, load_mren
from examples.mren.options import (
    add_device_option,
    add_ensemble_option,
    add_local_option,
    add_network_options,
    pick_device,
)
from examples.records import write_rows
from sc_blocks import to_local

MIN_TILE = 64  # twice the overlap of tiles
# Number of images in the test sets for which papers print means.
IMAGES = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100, "Manga109": 109}


@dataclass(frozen=True)
class Row:
    """The scores of one image by one method."""

    dataset: str
    image: str
    method: str
    score: Score


def evaluate(
    files: Sequence[Path],
    scale: int,
    methods: dict[str, Upscale],
    *,
    max_pixels: int = MAX_PIXELS,
    lr_files: Mapping[Path, Path] | None = None,
    degradation: Degradation | None = None,
) -> Iterator[Row]:
    """Downscale each image, upscale it by each method, and score the result against the image.

    Args:
        files: High-resolution images; the data set of a row is the name of the folder.
        scale: Ratio of the sizes of high- and low-resolution images.
        methods: By name, functions from a uint8 image to one ``scale`` times as large.
        max_pixels: Maximum number of pixels of an image.
        lr_files: The low-resolution image of each file, which is then not downscaled.
        degradation: Degradation of the low-resolution images before they are upscaled. The noise has a fixed seed, so
            it is the same for images of the same size. The degradation is added to the name of the data set.

    Raises:
        ValueError: If an image cannot be read, or a low-resolution image does not have the size given by the scale.
    """
    for path in files:
        dataset = dataset_name(path.parent) + ("" if degradation is None else f", {_describe(degradation)}")
        hr = mod_crop(read_rgb(path, max_pixels=max_pixels), scale)
        if lr_files is None:
            lr = imresize(hr, 1 / scale)
        else:
            lr = read_rgb(lr_files[path], max_pixels=max_pixels)
            _check_sizes(hr, lr, scale, lr_files[path])
        if degradation is not None:
            lr = degrade(lr, degradation, make_generator(0))
        for name, upscale in methods.items():
            yield Row(dataset, path.stem, name, score(upscale(lr), hr, scale))


def _check_sizes(hr: Tensor, lr: Tensor, scale: int, lr_file: Path) -> None:
    height, width = lr.shape[1:]
    expected = hr.shape[1] // scale, hr.shape[2] // scale
    if (height, width) != expected:
        fitting = [other for other in STAGES if (hr.shape[1] // other, hr.shape[2] // other) == (height, width)]
        remedy = f"; it fits --scale {fitting[0]}" if fitting else ""
        raise ValueError(
            f"{lr_file}: has {width} x {height} pixels; for --scale {scale} its high-resolution partner requires "
            f"{expected[1]} x {expected[0]}{remedy}."
        )


def _describe(degradation: Degradation) -> str:
    parts = {"JPEG": degradation.quality, "noise": degradation.noise or None}
    return ", ".join(f"{name} {value:g}" for name, value in parts.items() if value is not None)


def mean_score(rows: Sequence[Row]) -> Score:
    """Mean PSNR and mean SSIM over images."""
    return Score(psnr=fmean(row.score.psnr for row in rows), ssim=fmean(row.score.ssim for row in rows))


def table(rows: Sequence[Row]) -> str:
    """The means as a table: a line for each method, a column for each data set."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = [["", *datasets]]
    for method in methods:
        means = [mean_score([r for r in rows if (r.dataset, r.method) == (dataset, method)]) for dataset in datasets]
        lines.append([method, *(f"{mean.psnr:.2f} / {mean.ssim:.4f}" for mean in means)])
    return tabulate(lines, tablefmt="plain", disable_numparse=True)


def _csv_line(row: Row) -> dict[str, str]:
    scores = {"psnr": f"{row.score.psnr:.4f}", "ssim": f"{row.score.ssim:.5f}"}
    return {"dataset": row.dataset, "image": row.image, "method": row.method, **scores}


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.csv is not None:
        check_target(args.csv, overwrite=args.overwrite)
    if args.lr is not None and len(args.lr) != len(args.data):
        raise UsageError(f"--lr: must be as many folders as --data, {len(args.data)}; got {len(args.lr)}.")
    device = pick_device(args.device)
    names = [dataset_name(folder) for folder in args.data]
    if len(set(names)) < len(names):
        raise UsageError(
            f"--data: scores are filed by folder name, so names must differ; got {', '.join(names)}; rename one, or "
            "score it separately."
        )
    net = load_mren(args.scale, args.variant, device=device, path=args.weights)
    scale = net.scale
    methods = _methods(args, net, device)
    found = {name: list_images(folder) for name, folder in zip(names, args.data, strict=True)}
    for name, images in found.items():
        if len(images) != IMAGES.get(name, len(images)):
            number = f"{len(images)} image{'s' if len(images) > 1 else ''}"
            note(f"{name}: {number}, but published scores are of {IMAGES[name]}; do not compare with them.")
    files = [path for images in found.values() for path in images]
    if args.csv is not None:
        low = [file for folder in args.lr or [] for file in list_images(folder)]
        check_no_input([args.csv], [*files, *low, *args.onnx, find_weights(args.scale, args.variant, args.weights)])
    lr_files, problems = (None, 0) if args.lr is None else _partners(list(found.values()), args.lr, scale)
    to_score = files if lr_files is None else list(lr_files)
    degradation = Degradation(quality=args.jpeg, noise=args.noise) if args.jpeg or args.noise else None
    given = {"max_pixels": args.max_megapixels * 10**6, "lr_files": lr_files, "degradation": degradation}
    rows: list[Row] = []
    failed = 0
    for path in tqdm(to_score, unit="image", desc=f"x{scale}", disable=None):
        try:
            rows += list(evaluate([path], scale, methods, **given))
        # RuntimeError: out of memory, or a device error.
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failed += 1
            with tqdm.external_write_mode():
                fail(describe(error, path))
    if failed or problems:
        note(f"{len(to_score) - failed} of {len(files)} images are scored; means are over these.")
    if rows:
        print(table(rows))
    if rows and args.csv is not None:
        lines = [_csv_line(row) for row in rows]
        write_rows(args.csv, lines, list(lines[0]), overwrite=args.overwrite)
    return 1 if failed or problems else 0


def _partners(hr_files: Sequence[list[Path]], folders: Sequence[Path], scale: int) -> tuple[dict[Path, Path], int]:
    """The low-resolution image of each high-resolution one, and the number of problems, which are printed."""
    partners: dict[Path, Path] = {}
    count = 0
    for files, folder in zip(hr_files, folders, strict=True):
        if folder.resolve() == files[0].parent.resolve():
            raise UsageError(f"--lr: {folder} is the folder of the high-resolution images; give another one.")
        found, problems = match_lr(files, list_images(folder), scale)
        partners |= found
        count += len(problems)
        for problem in problems:
            fail(problem)
    return partners, count


def _methods(args: argparse.Namespace, net: MREN, device: torch.device) -> dict[str, Upscale]:
    label = (
        args.variant or "mren" if args.weights is None else find_weights(args.scale, args.variant, args.weights).stem
    )
    nets: dict[str, nn.Module] = {label: net}
    if args.local is not None:
        patch = torch.zeros(1, 3, args.local, args.local, device=device)
        nets[f"{label}, local statistics"] = to_local(copy.deepcopy(net), patch)
    if args.self_ensemble:
        nets |= {f"{name}, self-ensemble": SelfEnsemble(each) for name, each in nets.items()}
    methods: dict[str, Upscale] = {"bicubic": lambda lr: imresize(lr, net.scale)}

    def add(name: str, upscale: Upscale) -> None:
        if name in methods:
            raise UsageError(
                f"{name}: scores are filed by name, but two methods have this one; rename the file of --weights."
            )
        methods[name] = upscale

    for name, each in nets.items():
        add(name, network_upscaler(each, device))
        for tile in dict.fromkeys(args.tile):
            add(f"{name}, tiles of {tile}", network_upscaler(each, device, tile=tile, scale=net.scale))
    if args.onnx:
        from examples.mren.onnxfile import onnx_upscaler  # here only: scoring weights needs no onnxruntime

        for name, file in unique_names(args.onnx, suffixes=True).items():
            add(name, onnx_upscaler(file, net.scale))
    return methods


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("examples.mren.evaluate", __doc__)
    add = parser.add_argument
    add("--data", type=path_name, nargs="+", required=True, help="folders of high-resolution images")
    add(
        "--lr",
        type=path_name,
        nargs="+",
        help="folders of low-resolution images, one for each of --data; without it, images are downscaled. Pairs share "
        "a name, or are named like baby.png and babyx4.png",
    )
    add_network_options(parser)
    add_device_option(parser)
    add(
        "--jpeg",
        type=whole_number(1, 100),
        metavar="Q",
        help="compress the low-resolution images as JPEG with quality Q and 4:2:0",
    )
    add(
        "--noise",
        type=whole_number(0, 255),
        default=0,
        metavar="S",
        help="add Gaussian noise of standard deviation S (0 to 255) to them, before --jpeg (default: %(default)s)",
    )
    add_local_option(parser, "also score with windowed statistics")
    add_ensemble_option(parser, "also score with self-ensemble")
    add(
        "--tile",
        type=whole_number(MIN_TILE),
        nargs="+",
        default=[],
        metavar="N",
        help="also score in tiles of N low-resolution pixels",
    )
    add("--onnx", type=path_name, nargs="+", default=[], metavar="FILE", help="also score exported files")
    add("--csv", type=path_name, help="CSV file for the scores of each image")
    add("--overwrite", action="store_true", help="replace the file of --csv if it exists")
    limit = MAX_PIXELS // 10**6
    add(
        "--max-megapixels",
        type=whole_number(1, limit),
        default=64,
        metavar="N",
        help="limit per image (default: %(default)s)",
    )
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
