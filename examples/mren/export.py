"""Export MREN to an ONNX file for any batch, height and width, and check it against torch.

    python -m examples.mren.export --scale 4 -o mren_x4.onnx
    python -m examples.mren.export --precision float16 -o mren_x4_float16.onnx
    python -m examples.mren.export --precision int8 --calibrate DIV2K_train_HR -o mren_x4_int8.onnx

The file takes and gives float32, RGB between 0 and 1 (clamp the result), under the names input and output. It is
written only if onnxruntime computes with it what torch computes, at sizes other than the one that was exported.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim

from examples.mren.files import atomic_write
from examples.mren.fold import fold_mren
from examples.mren.model import (
    MREN,
    STAGES,
    VARIANTS,
    Scale,
    find_weights,
    load_mren,
    read_weights,
    variant_of,
)

if TYPE_CHECKING:
    from examples.mren.onnxfile import Session

Precision = Literal["float32", "float16", "int8"]

EXPORTED_SIZE = (2, 24, 20)
# A single pixel, odd sides, more than one image: none of them was exported.
CHECKED_SIZES = ((1, 1, 1), (1, 8, 9), (1, 37, 51), (3, 20, 28))
# Largest difference allowed, of a range of 1. An 8-bit level is 0.004.
TOLERANCES: dict[str, float] = {"float32": 1e-4, "float16": 8e-3}
OPSET = 20  # the first with Gelu; before, it is five nodes that engines have to recognise


def export_onnx(
    net: MREN,
    file: str | Path,
    *,
    precision: Precision = "float32",
    fold: bool | None = None,
    calibration: Sequence[Tensor] = (),
    metadata: dict[str, str] | None = None,
) -> float:
    """Write a network as an ONNX file that onnxruntime runs, or nothing if its results are not the network's.

    Args:
        net: The network, in float32. It is not changed.
        file: Where to; a file there is replaced.
        precision: What is computed in.

            - ``"float32"``;
            - ``"float16"``: weights and maps, with the statistics of the attention in float32;
            - ``"int8"``: the products of most convolutions; see :mod:`examples.mren.quantize`.
        fold: Whether to write the network in its form for inference, :func:`examples.mren.fold.fold_mren`, which is
            faster; ``None`` for yes, but for ``"int8"``: onnxruntime quantises no transposed convolution.
        calibration: Low-resolution images between 0 and 1, each (3, H, W), from which ``"int8"`` takes the ranges of
            its maps. Images like those that the network will see.
        metadata: What the file shall say about itself.

    Returns:
        How far the file's results are from the network's: the largest difference, or for ``"int8"`` the PSNR in dB on
        the images of the calibration.

    Raises:
        ValueError: If an argument is out of range, or the results differ too much; the message says where.
        ImportError: If onnx, onnxscript or onnxruntime is missing.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"export_onnx: precision must be one of {', '.join(get_args(Precision))}; got {precision!r}.")
    if (precision == "int8") != bool(calibration):
        needs = "needs images to calibrate on" if precision == "int8" else "takes no calibration, which is for int8"
        raise ValueError(f"export_onnx: {precision} {needs}, got {len(calibration)} images.")
    if fold and precision == "int8":
        raise ValueError("export_onnx: int8 cannot be folded: onnxruntime quantises no transposed convolution.")
    import onnx  # here only: these take seconds, and who does not export needs none of them

    from examples.mren import onnxfile, quantize

    net = copy.deepcopy(net).cpu().eval()
    folded = fold_mren(net) if is_folded(fold, precision) else net
    with atomic_write(Path(file)) as scratch:
        _write(_InHalf(folded) if precision == "float16" else folded, scratch)
        model = onnx.load(scratch)
        onnxfile.write_bicubic_as_convolution(model)  # a folded network has none any more
        if precision == "int8":
            model = quantize.quantized(model, calibration)
        onnxfile.tidy(model, net.scale)
        onnx.helper.set_model_props(model, metadata or {})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, scratch)
        session = onnxfile.open_session(scratch)
        if precision == "int8":
            return quantize.check(session, net, calibration)
        return _check(session, net, TOLERANCES[precision])


def is_folded(fold: bool | None, precision: Precision) -> bool:
    """What ``fold`` stands for at a precision."""
    return precision != "int8" if fold is None else fold


class _InHalf(nn.Module):
    """A network in float16 for images in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.half()).float()


def _write(module: nn.Module, file: Path) -> None:
    batch, height, width = EXPORTED_SIZE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter, about which nobody can do anything here
        torch.onnx.export(
            module,
            (torch.rand(batch, 3, height, width),),
            file,
            dynamo=True,
            dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),  # a size that gets fixed is an error
            input_names=["input"],
            output_names=["output"],
            opset_version=OPSET,
            external_data=False,  # one file, also where it is moved to
            verbose=False,
        )


def _check(session: Session, net: nn.Module, tolerance: float) -> float:
    from examples.mren.onnxfile import run_session

    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch, height, width in CHECKED_SIZES:
        x = torch.rand(batch, 3, height, width, generator=generator)
        with torch.inference_mode():
            difference = (run_session(session, x) - net(x)).abs().max().item()
        if not difference <= tolerance:  # not "greater": a difference that is no number must not pass
            raise ValueError(
                f"not written: for an input of {tuple(x.shape)} onnxruntime is {difference:.2g} away from torch, "
                f"{tolerance:g} are allowed."
            )
        worst = max(worst, difference)
    return worst


def describe(file: Path, precision: Precision, *, folded: bool) -> dict[str, str]:
    """What an exported file says about itself, for the weights it is made from."""
    config, _ = read_weights(file)
    return {
        "scale": str(config["scale"]),
        "variant": variant_of(config) or "other",
        "precision": precision,
        "folded": "yes" if folded else "no",
        "values": "RGB between 0 and 1; clamp the output",
        "config": json.dumps(config),
        "weights": file.name,
        "weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def run(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: If something cannot be done as it was asked for, or the result is not what torch computes.
        OSError: If a file is missing or cannot be written.
        ImportError: If a package is missing.
    """
    output: Path = args.output
    if output.suffix.lower() != ".onnx":
        raise ValueError(f"{output}: must end in .onnx.")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output}: would be overwritten; pass --overwrite, or choose another output.")
    if args.precision == "int8" and args.calibrate is None:
        raise ValueError(
            "--precision int8: needs --calibrate FOLDER, high-resolution images such as those of the training; "
            "without images of the kind that it will see, nobody can tell the range of a map."
        )
    if args.precision == "int8" and args.fold:
        raise ValueError("--fold: is not for --precision int8; onnxruntime quantises no transposed convolution.")
    if args.precision != "int8" and args.calibrate is not None:
        raise ValueError(f"--calibrate: is for --precision int8; {args.precision} needs no images.")
    scale = cast(Scale, args.scale)
    net = load_mren(scale, args.variant, path=args.weights)
    calibration: list[Tensor] = []
    if args.calibrate is not None:
        from examples.mren.quantize import calibration_images

        calibration = calibration_images(args.calibrate, scale)
    source = find_weights(scale, args.variant, args.weights)
    told = describe(source, args.precision, folded=is_folded(args.fold, args.precision))
    reached = export_onnx(net, output, precision=args.precision, fold=args.fold, calibration=calibration, metadata=told)
    unit = "dB to torch on the images of the calibration" if calibration else "at most away from torch"
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB, {args.precision}, {reached:.2g} {unit}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        run(args)
    except ImportError as error:
        missing = f'{error}; python -m pip install -e ".[examples,onnx]" installs what the export needs.'
        print(f"error: {missing}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m examples.mren.export",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the .onnx file")
    parser.add_argument("--scale", type=int, choices=tuple(STAGES), default=4)
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="mren")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of your own instead of the shipped ones")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        help="write the faster form for inference, which computes the same (default, but for int8)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="for int8: high-resolution images such as those of the training",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    return parser


if __name__ == "__main__":
    sys.exit(main())
