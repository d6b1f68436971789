"""Upscale image files with MREN.

    python -m examples.mren.upscale photo.jpg -o photo_x4.png
    python -m examples.mren.upscale folder more/*.png -o upscaled/
    python -m examples.mren.upscale

Each file comes out as the kind that it was: gray, palette colours as RGB, transparency, 16-bit gray, colour profile.
A folder is read one level deep. Files keep their names, and their formats where those can be written (otherwise PNG).
Without arguments a photograph is shrunk and upscaled again, and the comparison written to mren_sample.png.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from examples.mren.compare import write_sample
from examples.mren.data import list_images
from examples.mren.fold import fold_mren
from examples.mren.imagefile import FORMATS, Picture, bleed, check_writable, read_picture, write_picture
from examples.mren.model import CHANNELS, DEVICES, STAGES, Scale, load_mren, pick_device
from sc_blocks import to_local
from sc_blocks.tiling import tiled

TILE = 256  # folded, MREN takes about 0.2 GB for it at x4
OVERLAP = 32
SAMPLE = "mren_sample.png"


class UsageError(Exception):
    """What was asked for cannot be done; nothing was."""


@dataclass(frozen=True)
class Job:
    """One file to upscale."""

    source: Path
    target: Path


def plan(inputs: Sequence[Path], output: str, *, overwrite: bool = False) -> list[Job]:
    """Decide what goes where, and refuse before any work is done what would lose a file.

    Args:
        inputs: Image files and folders of them.
        output: A file for a single input file; otherwise a folder, which need not exist.
        overwrite: Whether files that exist may be replaced. An input never is.

    Raises:
        UsageError: If an input is missing, a folder holds no images, or two results or a result and another file would
            have one name.
    """
    sources = _find_sources(inputs)
    if len(inputs) == 1 and inputs[0].is_file():
        targets = [_file_target(output, _target_name(sources[0]))]
    else:
        folder = Path(output)
        if folder.is_file() or (not folder.exists() and folder.suffix.lower() in FORMATS):
            raise UsageError(f"{output}: a folder is needed for several images; it is or looks like a file.")
        targets = [folder / _target_name(source) for source in sources]

    jobs = [Job(source, target) for source, target in zip(sources, targets, strict=True)]
    first_of: dict[Path, Path] = {}
    for job in jobs:
        first = first_of.setdefault(job.target, job.source)
        if first is not job.source:
            raise UsageError(f"{first} and {job.source} would both become {job.target}; upscale them one by one.")
        if job.target.exists() and any(job.target.samefile(source) for source in sources):
            raise UsageError(f"{job.target}: is an input, which is never overwritten; choose another output.")
    _refuse_existing(targets, overwrite=overwrite)
    return jobs


def upscale(
    net: nn.Module,
    picture: Picture,
    scale: int,
    *,
    tile: int = TILE,
    on_tile: Callable[[int, int], object] | None = None,
) -> Picture:
    """Upscale a picture, and its transparency as a gray image of its own.

    Args:
        net: RGB in, RGB ``scale`` times as large out; gray is repeated for it and averaged again.
        picture: What to upscale.
        scale: The network's.
        tile: Larger pictures are upscaled by tiles of this size in memory.
        on_tile: Called with the number of tiles done and their total, as by :func:`sc_blocks.tiling.tiled`.

    Returns:
        The upscaled picture, otherwise of the same kind.
    """
    passes: list[Tensor] = [picture.color]
    if picture.alpha is not None:
        passes = [bleed(picture.color, picture.alpha), picture.alpha]
    results: list[Tensor] = []
    for index, image in enumerate(passes):

        def report(done: int, total: int, index: int = index) -> None:
            if on_tile is not None:
                on_tile(index * total + done, len(passes) * total)

        model = net if image.shape[0] == 3 else _OnGray(net)
        large = tiled(model, image[None], scale=scale, tile=tile, overlap=OVERLAP, on_tile=report)
        results.append(large[0].clamp_(0, 1))
    alpha = None if picture.alpha is None else _within_surroundings(results[1], picture.alpha, scale)
    return Picture(results[0], alpha, picture.bits, picture.icc_profile)


def upscale_file(net: nn.Module, job: Job, scale: int, *, tile: int = TILE, max_megapixels: float = 256) -> None:
    """Read, upscale and write one file, with a progress bar where somebody watches.

    Raises:
        ValueError: If the file cannot be read, or the result not be written or would be too large.
        OSError: If the result cannot be written.
    """
    picture = read_picture(job.source)
    check_writable(job.target, picture, scale=scale)
    height, width = (side * scale for side in picture.color.shape[1:])
    if height * width > max_megapixels * 1e6:
        raise ValueError(
            f"{job.source}: the result would have {width} x {height} pixels, "
            f"{round(height * width / 1e6, 2):g} megapixels; --max-megapixels allows {max_megapixels:g}."
        )
    with tqdm(desc=job.source.name, unit="tile", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_picture(job.target, upscale(net, picture, scale, tile=tile, on_tile=show))
    print(f"{job.target}: {width} x {height}")


class _OnGray(nn.Module):
    """An RGB network as one for gray images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, gray: Tensor) -> Tensor:
        return self.net(gray.expand(-1, 3, -1, -1)).mean(1, keepdim=True)


def _within_surroundings(large: Tensor, small: Tensor, scale: int) -> Tensor:
    """Limit an upscaled map to the values near each pixel's origin, so that what is opaque stays exactly opaque."""
    highest, lowest = F.max_pool2d(small, 5, stride=1, padding=2), -F.max_pool2d(-small, 5, stride=1, padding=2)
    bounds = F.interpolate(torch.stack([lowest, highest]), scale_factor=scale, mode="nearest")
    return torch.minimum(torch.maximum(large, bounds[0]), bounds[1])


def _find_sources(inputs: Sequence[Path]) -> list[Path]:
    sources: list[Path] = []
    for item in inputs:
        if item.is_dir():
            try:
                found = list_images(item)
            except ValueError as error:
                raise UsageError(str(error)) from error
            others = sorted(path for path in item.iterdir() if path not in found and not path.name.startswith("."))
            if others:
                print(f"skipped, no images: {_listed(others)}", file=sys.stderr)
            sources += found
        elif item.is_file():
            sources.append(item)
        else:
            raise UsageError(f"{item}: no such file or folder.")
    return sources


def _target_name(source: Path) -> str:
    return source.name if source.suffix.lower() in FORMATS else f"{source.stem}.png"


def _file_target(output: str, name: str) -> Path:
    """Where one result goes: ``output``, or a file of that name in it if it is a folder."""
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)):
        return path / name
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{output}: must end in one of {', '.join(FORMATS)}, or in / for a folder.")
    return path


def _refuse_existing(targets: Sequence[Path], *, overwrite: bool) -> None:
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise UsageError(f"{_listed(existing)}: would be overwritten; pass --overwrite, or choose another output.")


def _listed(paths: Sequence[Path], most: int = 3) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(str(path) for path in paths[:most]) + more


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if files failed, or 2 if nothing was done because of how it was called."""
    args = _parser().parse_args(argv)
    scale = cast(Scale, args.scale)
    try:
        if args.inputs and args.output is None:
            raise UsageError("-o is needed: a file for a single image, otherwise a folder.")
        if args.inputs:
            jobs, sample = plan(args.inputs, args.output, overwrite=args.overwrite), None
        else:
            jobs, sample = [], _file_target(args.output or SAMPLE, SAMPLE)
            _refuse_existing([sample], overwrite=args.overwrite)
        device = pick_device(args.device)
        net = load_mren(scale, args.variant, device=device, path=args.weights)
    except (UsageError, OSError, ValueError) as error:
        return _fail(error, code=2)
    if args.local is not None:
        to_local(net, torch.zeros(1, 3, args.local, args.local, device=device))
    model = fold_mren(net)

    label = args.variant.upper().replace("_", "-") if args.weights is None else args.weights.stem
    code = 0
    try:
        if sample is not None:
            write_sample(model, scale, sample, label=label)
        for job in jobs:
            try:
                upscale_file(model, job, scale, tile=args.tile, max_megapixels=args.max_megapixels)
            except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no memory even for the smallest tile
                names_file = str(job.source) in str(error) or str(job.target) in str(error)
                code = _fail(error if names_file else f"{job.source}: {error}")
    except (OSError, ImportError) as error:  # of the sample: an unwritable folder, or no scikit-image
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted; no file is half written.", code=130)
    return code


def _fail(message: object, *, code: int = 1) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m examples.mren.upscale",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", type=Path, metavar="IN", help="image files, and folders of them")
    parser.add_argument("-o", "--output", metavar="OUT", help="file for a single image, otherwise folder")
    parser.add_argument("--scale", type=int, choices=tuple(STAGES), default=4)
    parser.add_argument("--variant", choices=tuple(CHANNELS), default="mren")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of your own instead of the shipped ones")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument(
        "--tile", type=_whole_number(2 * OVERLAP), default=TILE, metavar="N", help="input pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--local",
        type=_whole_number(1),
        metavar="SIDE",
        help="attend to windows, not to whole tiles; SIDE is that of the low-resolution patches it was trained on",
    )
    parser.add_argument("--max-megapixels", type=float, default=256, metavar="N", help="of a result (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist; never an input")
    return parser


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
        return int(text)

    return parse


if __name__ == "__main__":
    sys.exit(main())
