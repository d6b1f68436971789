"""Upscale image files with MREN.

    python -m examples.mren.upscale photo.jpg -o photo_x4.png
    python -m examples.mren.upscale folder more/*.png -o upscaled/
    python -m examples.mren.upscale --recursive --skip-existing folder -o upscaled/
    python -m examples.mren.upscale - -o - <photo.jpg >photo_x4.png
    python -m examples.mren.upscale

Results keep gray, transparency, 16 bits, colour profile, EXIF and XMP; palettes become RGB. Files keep their names, and
their formats where those can be written (otherwise PNG).
Without arguments, a photograph is downscaled and upscaled again, and the comparison is written to mren_sample.png.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO, get_args

import torch
import torch.nn.functional as F
from PIL import ImageColor
from torch import Tensor, nn
from tqdm import tqdm

from examples.mren.arguments import command_parser, given_name, positive_number, whole_number
from examples.mren.cli import check_target, run_command
from examples.mren.compare import write_sample
from examples.mren.engines import Engine, Runtime, compile_network
from examples.mren.engines.program import portable
from examples.mren.ensemble import SelfEnsemble
from examples.mren.fold import fold_mren, pad_widths
from examples.mren.images.picture import Picture, bleed, composite
from examples.mren.images.read import read_picture, read_size
from examples.mren.images.write import FORMATS, check_writable, encode_picture, write_picture
from examples.mren.jobs import Job, file_target, plan
from examples.mren.messages import UsageError, describe, fail, note, printable
from examples.mren.model import NETWORKS, find_weights, load_mren
from examples.mren.options import (
    add_device_option,
    add_ensemble_option,
    add_local_option,
    add_network_options,
    pick_device,
)
from sc_blocks import to_local
from sc_blocks.tiling import tiled

TILE = 256  # folded, MREN takes about 0.2 GB for it at x4
OVERLAP = 32
SAMPLE = "mren_sample.png"
MAX_STREAM_BYTES = 2**30  # bytes of standard input


@dataclass(frozen=True)
class Options:
    """How files are upscaled and written."""

    tile: int = TILE
    max_megapixels: float = 256
    overwrite: bool = False
    strip_metadata: bool = False
    quality: int | None = None
    background: tuple[int, int, int] | None = None


def upscale(
    net: Engine,
    picture: Picture,
    scale: int,
    *,
    tile: int = TILE,
    on_tile: Callable[[int, int], object] | None = None,
) -> Picture:
    """Upscale a picture, and its transparency as a separate gray image.

    Args:
        net: A network or an engine that upscales RGB images by ``scale``; gray is repeated for it, and the result
            averaged.
        picture: The picture.
        scale: The upscaling factor of ``net``.
        tile: Size of the tiles in which larger pictures are processed.
        on_tile: Called with the number of tiles done and in total, as by :func:`sc_blocks.tiling.tiled`.

    Returns:
        The upscaled picture, otherwise of the same kind.

    Raises:
        TypeError: If ``picture`` is not a :class:`~examples.mren.images.picture.Picture`.
    """
    if not isinstance(picture, Picture):
        raise TypeError(f"upscale: picture must be a Picture, got {type(picture).__name__}; call tiled for tensors.")
    passes: list[Tensor] = [picture.color]
    if picture.alpha is not None:
        passes = [bleed(picture.color, picture.alpha), picture.alpha]
    results: list[Tensor] = []
    for index, image in enumerate(passes):

        def report(done: int, total: int, index: int = index) -> None:
            if on_tile is not None:
                on_tile(index * total + done, len(passes) * total)

        model = net if image.shape[0] == 3 else _GrayAdapter(net)
        large = tiled(model, image[None], scale=scale, tile=tile, overlap=OVERLAP, on_tile=report)
        results.append(large[0].clamp_(0, 1))
    alpha = None if picture.alpha is None else _clamp_to_neighbourhood(results[1], picture.alpha, scale)
    return replace(picture, color=results[0], alpha=alpha)


def upscale_file(
    net: Engine,
    job: Job,
    scale: int,
    options: Options = Options(),
    *,
    on_tile: Callable[[int, int], object] | None = None,
) -> None:
    """Read, upscale and write one file, and print what was written.

    Raises:
        ValueError: If the file cannot be read, or the result is too large or cannot be written.
        FileExistsError: If a file was created in the meantime where the result goes.
        OSError: If the result cannot be written.
    """
    source: Path | BinaryIO = _standard_input() if job.source is None else job.source
    width, height = (side * scale for side in read_size(source))
    if width * height > options.max_megapixels * 1e6:
        raise ValueError(
            f"{job.name}: the result would have {width} x {height} pixels, "
            f"{round(height * width / 1e6, 2):g} megapixels; --max-megapixels allows {options.max_megapixels:g}."
        )
    picture = read_picture(source)
    if options.strip_metadata:
        picture = replace(picture, metadata=picture.metadata.stripped())
    target = Path(f"standard output{job.suffix}") if job.target is None else job.target
    check_writable(target, picture, scale=scale, background=options.background is not None)
    large = upscale(net, picture, scale, tile=options.tile, on_tile=on_tile)
    if options.background is not None and not FORMATS[job.suffix.lower()].alpha:
        large = composite(large, options.background)
    if job.target is None:
        encoded = io.BytesIO()
        left_out = encode_picture(encoded, large, job.suffix, quality=options.quality)
        sys.stdout.buffer.write(encoded.getbuffer())
        sys.stdout.buffer.flush()
    else:
        left_out = write_picture(target, large, quality=options.quality, overwrite=options.overwrite)
    height, width = large.color.shape[1:]
    with tqdm.external_write_mode():
        done = printable(f"{target}: {width} x {height}")
        print(done, file=sys.stderr if job.target is None else sys.stdout)
        for each in picture.notes:
            note(f"{job.name}: {each}")
        for each in left_out:
            note(f"{target}: cannot hold {each}; left out")


class _GrayAdapter(nn.Module):
    """Adapter of an RGB network for gray images."""

    def __init__(self, net: Engine) -> None:
        super().__init__()
        self.net = net

    def forward(self, gray: Tensor) -> Tensor:
        return self.net(gray.expand(-1, 3, -1, -1)).mean(1, keepdim=True)


def _clamp_to_neighbourhood(large: Tensor, small: Tensor, scale: int) -> Tensor:
    """Clamp an upscaled map to the values around each source pixel, so that opaque regions stay exactly opaque."""
    highest, lowest = F.max_pool2d(small, 5, stride=1, padding=2), -F.max_pool2d(-small, 5, stride=1, padding=2)
    bounds = F.interpolate(torch.stack([lowest, highest]), scale_factor=scale, mode="nearest")
    return torch.minimum(torch.maximum(large, bounds[0]), bounds[1])


def _standard_input() -> io.BytesIO:
    content = sys.stdin.buffer.read(MAX_STREAM_BYTES + 1)
    if len(content) > MAX_STREAM_BYTES:
        raise ValueError(f"standard input: more than {MAX_STREAM_BYTES} bytes; pass the name of a file.")
    return io.BytesIO(content)


def _count_pixels(job: Job) -> int:
    """The number of pixels of an input, as a measure of the work; 0 if it will be refused."""
    try:
        width, height = (1, 1) if job.source is None else read_size(job.source)
    except (OSError, ValueError):
        return 0
    return width * height


def upscale_all(net: Engine, jobs: Sequence[Job], scale: int, options: Options) -> int:
    """Upscale files with a progress bar; a file that fails does not stop the others.

    For several files, such as the frames of a video, prints the throughput and the number of failures.

    Returns:
        The exit code: 1 if a file failed.
    """
    code, failed, start = 0, 0, time.perf_counter()
    pixels = [_count_pixels(job) for job in jobs]
    with tqdm(total=sum(pixels), unit="pixel", unit_scale=True, disable=None) as bar:
        done_before = 0
        for job, size in zip(jobs, pixels, strict=True):
            bar.set_description(printable(Path(job.name).name))

            def show(done: int, total: int, before: int = done_before, size: int = size) -> None:
                bar.update(before + size * done // total - bar.n)

            try:
                upscale_file(net, job, scale, options, on_tile=show)
            except BrokenPipeError:
                raise
            # RuntimeError: out of memory even for the smallest tile, or a device error.
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                about_target = job.target is not None and str(job.target) in str(error)
                with tqdm.external_write_mode():
                    code = fail(_explain(error, job) if about_target else describe(error, job.name))
                failed += 1
            done_before += size
            bar.update(done_before - bar.n)
    done, seconds = len(jobs) - failed, time.perf_counter() - start
    if done > 1:
        rest = f"; {failed} failed, see above" * bool(failed)
        note(f"{done} images in {seconds:.1f} s, {done / seconds:.3g} per second{rest}")
    return code


def _explain(error: BaseException, job: Job) -> str:
    if isinstance(error, FileExistsError):
        return f"{job.target}: was created in the meantime and is kept; pass --overwrite to replace it."
    return describe(error)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.inputs and args.output is None:
        raise UsageError("-o is required: a file for a single image, otherwise a folder.")
    if args.engine != "torch" and (args.device not in ("auto", "cpu") or args.local is not None):
        raise UsageError(
            f"--engine {args.engine}: runs on the CPU, with statistics of whole tiles; leave out --device and --local."
        )
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    jobs: list[Job] = []
    sample: Path | None = None
    try:
        if args.inputs:
            jobs = plan(
                args.inputs,
                args.output,
                overwrite=args.overwrite,
                skip_existing=args.skip_existing,
                recursive=args.recursive,
                suffix=None if args.format is None else f".{args.format}",
            )
            if not jobs:
                return 0
        else:
            sample = file_target(args.output or SAMPLE, SAMPLE)
            check_target(sample, overwrite=args.overwrite)
        device = pick_device(args.device if args.engine == "torch" else "cpu")
        weights = find_weights(args.scale, args.variant, args.weights)
        net = load_mren(args.scale, args.variant, device=device, path=args.weights)
    except (OSError, ValueError) as error:
        raise UsageError(describe(error)) from error
    if args.local is not None:
        to_local(net, torch.zeros(1, 3, args.local, args.local, device=device))
    if args.engine == "torch":
        model: Engine = fold_mren(net)
    else:
        note(f"converting the network for {args.engine}")
        faster = fold_mren(pad_widths(net)) if args.engine == "openvino" else portable(net)
        model = compile_network(faster, args.engine, torch.zeros(1, 3, 24, 20), threads=args.threads or 0)
    if args.self_ensemble:
        model = SelfEnsemble(model)
    if sample is not None:
        label = NETWORKS[args.variant or "mren"] if args.weights is None else weights.stem
        write_sample(model, net.scale, sample, label=label, overwrite=args.overwrite)
    options = Options(**{each.name: getattr(args, each.name) for each in fields(Options)})
    return upscale_all(model, jobs, net.scale, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 if files failed, or 2 for a usage error."""
    parser = command_parser("examples.mren.upscale", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="IN", help="image files and folders; - for standard input")
    add(
        "-o",
        "--output",
        type=given_name,
        metavar="OUT",
        help="output file for a single image, - for standard output, otherwise output folder",
    )
    add_network_options(parser)
    add_device_option(parser)
    add(
        "--engine",
        choices=("torch", *get_args(Runtime)),
        default="torch",
        help="inference engine; all but torch are optional extras (default: %(default)s)",
    )
    add("--threads", type=whole_number(1, 4096), metavar="N", help="number of CPU threads (default: all)")
    add(
        "--tile",
        type=whole_number(2 * OVERLAP),
        default=TILE,
        metavar="N",
        help=f"tile side in pixels, at least {2 * OVERLAP} (default: %(default)s)",
    )
    add_local_option(parser, "compute the statistics of the attention over windows instead of whole tiles")
    add_ensemble_option(parser, "slightly better results")
    add(
        "--max-megapixels",
        type=positive_number,
        default=256,
        metavar="N",
        help="limit for a result (default: %(default)s)",
    )
    add("--recursive", action="store_true", help="include subfolders, and keep their structure in the output")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing results, but never an input")
    existing.add_argument("--skip-existing", action="store_true", help="skip images whose result exists")
    add("--format", choices=("png", "jpg", "webp", "tif", "avif"), help="output format (default: that of each input)")
    about = "quality of JPEG (95), AVIF (90) and WebP, which it makes lossy"
    add("--quality", type=whole_number(1, 100), metavar="N", help=about)
    add("--background", type=_color, metavar="COLOR", help="background for transparency in JPEG: a name or #rrggbb")
    add("--strip-metadata", action="store_true", help="drop EXIF, GPS, XMP, resolution and text; keep the profile")
    return run_command(run, parser.parse_args, argv)


def _color(text: str) -> tuple[int, int, int]:
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a colour name or #rrggbb, got {text[:40]}") from None


if __name__ == "__main__":
    sys.exit(main())
