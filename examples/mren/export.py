"""Export MREN for other runtimes, and check the result against torch.

    python -m examples.mren.export -o mren_x4.onnx
    python -m examples.mren.export --format openvino -o mren_x4_openvino
    python -m examples.mren.export --format ncnn --variant mren_s -o mren_s_x4_ncnn
    python -m examples.mren.export --format litert --size 128 128 -o mren_s_x4.tflite
    python -m examples.mren.export --precision int8 --calibrate DIV2K_train_HR -o mren_x4_int8.onnx

Inputs and outputs are float32 RGB between 0 and 1; clamp the outputs. An export is kept only if the runtime reproduces
the results of torch, also at sizes other than the exported one. Core ML runs only on Apple systems; for it, only the
structure is checked.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from examples.mren.arguments import command_parser, path_name, whole_number
from examples.mren.cli import check_target, run_command
from examples.mren.engines import FOLDERS, SUFFIXES, Engine, Format, Runtime, engine_module
from examples.mren.engines.program import portable
from examples.mren.files import atomic_folder, atomic_write, check_replaceable, sha256
from examples.mren.fold import fold_mren, pad_widths
from examples.mren.messages import UsageError, describe
from examples.mren.model import MREN, find_weights, load_mren, read_weights, variant_of
from examples.mren.options import add_network_options

Precision = Literal["float32", "float16", "int8"]

EXPORTED_SIZE = (24, 20)
# A single pixel, odd sides, several images: none has the exported size.
CHECKED_SIZES = ((1, 1, 1), (1, 37, 51), (3, 20, 28))
# Largest difference allowed, for values between 0 and 1. An 8-bit level is 0.004.
TOLERANCES: dict[str, float] = {"float32": 1e-4, "float16": 8e-3}
FOLDABLE: tuple[Format, ...] = ("onnx", "openvino", "pt2")  # the others lack operators for the border
ONE_SIZE: tuple[Format, ...] = ("litert",)
# The formats that support each precision.
PRECISE: dict[Precision, tuple[Format, ...]] = {
    "float32": get_args(Format),
    "float16": ("onnx",),
    "int8": ("onnx", "openvino"),
}


def export(
    net: MREN,
    target: str | Path,
    format: Format = "onnx",
    *,
    precision: Precision = "float32",
    fold: bool = False,
    size: tuple[int, int] = EXPORTED_SIZE,
    calibration: Sequence[Tensor] = (),
    metadata: Mapping[str, str] = {},
    overwrite: bool = True,
) -> float | None:
    """Write a network for a runtime, or nothing if its results differ from those of the network.

    Args:
        net: The network, in float32. It is not changed.
        target: The file, or the folder for OpenVINO, ncnn and Core ML.
        format: See :mod:`examples.mren.engines`.
        precision: Type of the computation:

            - ``"float32"``;
            - ``"float16"``, for ONNX: weights and maps, with the statistics of the attention in float32;
            - ``"int8"``, for ONNX and OpenVINO: the products of most convolutions; see :mod:`examples.mren.quantize`.
        fold: Whether to write the network as :func:`examples.mren.fold.fold_mren` rewrites it, for OpenVINO after
            :func:`examples.mren.fold.pad_widths`; for ONNX, OpenVINO and pt2, and not for int8: ONNX Runtime quantises
            no transposed convolution.
        size: Height and width of the images that a LiteRT file takes. The other formats take any size.
        calibration: Low-resolution images between 0 and 1, each (3, H, W), from which ``"int8"`` takes the ranges of
            its activations. They should be like those that the network will see.
        metadata: Metadata to store in the result.
        overwrite: Whether an existing result may be replaced.

    Returns:
        The deviation from the results of the network: the largest difference, or for ``"int8"`` the PSNR in dB on the
        calibration images. ``None`` for Core ML, whose results cannot be computed here.

    Raises:
        ValueError: If an argument is out of range, or the results differ too much; the message says where.
        ImportError: If a package is missing; the message says what to install.
        FileExistsError: If something exists there that must not be replaced.
    """
    module = engine_module(format)
    _check_choices(format, precision, fold, calibration)
    net = copy.deepcopy(net).cpu().eval()
    if fold:
        network: nn.Module = fold_mren(pad_widths(net) if format == "openvino" else net)
    else:
        network = portable(net)
    if precision == "float16":
        network = _HalfPrecision(network)
    target = Path(target)
    if format in FOLDERS:
        writing = atomic_folder(target, FOLDERS[format], overwrite=overwrite)
    else:
        writing = atomic_write(target, overwrite=overwrite)
    with writing as scratch:
        example = torch.rand(1, 3, *size)
        if precision == "int8":
            from examples.mren import quantize

            quantize.write_int8(network.eval(), scratch, cast(Runtime, format), example, calibration, metadata)
            return quantize.check(module.load(scratch), net, calibration)
        module.write(network.eval(), scratch, example, metadata)
        if format == "coreml":
            return None
        sizes = ((1, *size),) if format in ONE_SIZE else CHECKED_SIZES
        return _check(module.load(scratch), net, sizes, TOLERANCES[precision], format)


def _check_choices(format: Format, precision: Precision, fold: bool, calibration: Sequence[Tensor]) -> None:
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}; got {precision!r}.")
    formats = PRECISE[precision]
    if format not in formats:
        raise ValueError(f"precision {precision} is for the format {' or '.join(formats)}; got {format}.")
    if (precision == "int8") != bool(calibration):
        needs = "needs images to calibrate on" if precision == "int8" else "takes no calibration images"
        raise ValueError(f"precision {precision} {needs}, got {len(calibration)} images.")
    if fold and format not in FOLDABLE:
        raise ValueError(f"format {format} cannot be folded; {', '.join(FOLDABLE)} can.")
    if fold and precision == "int8":
        raise ValueError("precision int8 cannot be folded: ONNX Runtime quantises no transposed convolution.")


class _HalfPrecision(nn.Module):
    """A float16 network with float32 inputs and outputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.half()).float()


def _check(engine: Engine, net: nn.Module, sizes: Sequence[tuple[int, ...]], tolerance: float, name: str) -> float:
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, height, width in sizes:
        x = torch.rand(batch, 3, height, width, generator=generator)
        with torch.inference_mode():
            difference = (engine(x) - net(x)).abs().max().item()
        if not difference <= tolerance:  # not `>`, which NaN would pass
            raise ValueError(
                f"not written: for an input of {tuple(x.shape)} {name} is {difference:.2g} away from torch, "
                f"{tolerance:g} is allowed."
            )
        worst = max(worst, difference)
    return worst


def describe_export(file: Path, precision: Precision, *, folded: bool) -> dict[str, str]:
    """The metadata of a file exported from these weights."""
    config, _ = read_weights(file)
    return {
        "scale": str(config["scale"]),
        "variant": variant_of(config) or "other",
        "precision": precision,
        "folded": "yes" if folded else "no",
        "values": "RGB between 0 and 1; clamp the output",
        "config": json.dumps(config),
        "weights": file.name,
        "weights_sha256": sha256(file),
    }


def _check_options(args: argparse.Namespace) -> None:
    """Check that the options do not contradict each other."""
    output, format, calibrate = args.output, args.format, args.calibrate  # noqa: A001
    suffix = SUFFIXES[format]
    if suffix and output.suffix.lower() != suffix:
        raise UsageError(f"{output}: must end in {suffix}.")
    if not suffix and output.suffix and output.suffix.lower() in SUFFIXES.values():
        raise UsageError(f"{output}: has the name of a file, but {format} writes a folder; leave out {output.suffix}.")
    if args.precision == "int8" and calibrate is None:
        raise UsageError(
            "--precision int8: needs --calibrate FOLDER with high-resolution images, such as those of the training, "
            "which determine the ranges of the activations."
        )
    if args.precision != "int8" and calibrate is not None:
        raise UsageError(f"--calibrate: is for --precision int8; {args.precision} needs no images.")
    if args.size is not None and format not in ONE_SIZE:
        raise UsageError(f"--size: is for {', '.join(ONE_SIZE)}; {format} takes images of any size.")
    if args.size is None and format in ONE_SIZE:
        raise UsageError(f"--format {format}: needs --size HEIGHT WIDTH, the size of its images.")
    try:
        _check_choices(format, args.precision, args.fold, () if calibrate is None else [torch.empty(0)])
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def _check_output(output: Path, format: Format, *, overwrite: bool) -> None:
    """Check that the output can be written, and replaces nothing that must be kept."""
    here = Path.cwd()
    if format in FOLDERS and output.resolve() in (here, *here.parents):
        raise UsageError(f"{output}: is the current folder, or one above it, which cannot be replaced; name another.")
    if format in FOLDERS and output.is_file():
        raise UsageError(f"{output}: is a file, but {format} is written as a folder; choose another output.")
    if not (format in FOLDERS and output.is_dir()):
        check_target(output, overwrite=overwrite)
    elif not overwrite:
        raise UsageError(f"{output}: would be overwritten; pass --overwrite, or choose another output.")
    else:
        try:
            check_replaceable(output, FOLDERS[format])
        except FileExistsError as error:
            raise UsageError(str(error)) from error


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UsageError: If the command cannot be run as it was called.
        ValueError: If the result differs from that of torch, or an image cannot be read.
        OSError: If a file cannot be read or written.
        ImportError: If a package is missing.
    """
    output = args.output
    _check_options(args)
    _check_output(output, args.format, overwrite=args.overwrite)
    source = find_weights(args.scale, args.variant, args.weights)
    try:
        net = load_mren(args.scale, args.variant, path=args.weights)
        metadata = describe_export(source, args.precision, folded=args.fold)
    except (OSError, ValueError) as error:
        raise UsageError(describe(error)) from error
    calibration: list[Tensor] = []
    if args.calibrate is not None:
        from examples.mren.quantize import calibration_images

        calibration = calibration_images(args.calibrate, net.scale)
    deviation = export(
        net,
        output,
        args.format,
        precision=args.precision,
        fold=args.fold,
        size=tuple(args.size or EXPORTED_SIZE),
        calibration=calibration,
        metadata=metadata,
        overwrite=args.overwrite,
    )
    files = [file for file in output.rglob("*") if file.is_file()] if output.is_dir() else [output]
    name, unit = ("PSNR to torch", " dB") if calibration else ("largest difference to torch", "")
    checked = "structure checked; runs only on Apple systems" if deviation is None else f"{name} {deviation:.2g}{unit}"
    print(f"{output}: {sum(file.stat().st_size for file in files) / 1e6:.2f} MB, {args.precision}, {checked}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(run, _parser().parse_args, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("examples.mren.export", __doc__)
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=path_name,
        required=True,
        metavar="OUT",
        help="output file; a folder for openvino, ncnn and coreml",
    )
    add("--format", choices=get_args(Format), default="onnx", help="output format (default: %(default)s)")
    add_network_options(parser)
    add("--size", nargs=2, type=whole_number(1, 8192), metavar=("HEIGHT", "WIDTH"), help="image size, for litert")
    add(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="float16 for onnx; int8 for onnx and openvino (default: %(default)s)",
    )
    add(
        "--fold",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="rewrite the network to compute the same function with fewer MACs; for onnx, openvino and pt2",
    )
    add(
        "--calibrate",
        type=path_name,
        metavar="FOLDER",
        help="folder of high-resolution images for int8 calibration, such as those of the training",
    )
    add("--overwrite", action="store_true", help="replace the output if it exists")
    return parser


if __name__ == "__main__":
    sys.exit(main())
