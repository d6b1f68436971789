"""ONNX files of MREN: what the exporter leaves to do, how to run them, and how long they take.

    python -m examples.mren.onnxfile mren_x4.onnx mren_x4_int8.onnx --size 120 160

prints the size and the latency of each file in onnxruntime, on the CPU, measured in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from examples.mren.cli import UsageError, run_command
from examples.mren.files import name_apart
from examples.mren.fold import BicubicConv
from examples.mren.metrics import to_uint8

Session = onnxruntime.InferenceSession


def write_bicubic_as_convolution(model: onnx.ModelProto) -> None:
    """Replace each bicubic Resize of RGB by the convolution that it is, in place.

    See :class:`examples.mren.fold.BicubicConv`. onnxruntime takes 70 ms for the Resize of 120 x 160 pixels by 4 and
    3 ms for this, and many engines have no bicubic Resize.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type != "Resize" or attributes.get("mode") != b"cubic":
            nodes.append(node)
            continue
        scale = round(float(values[node.input[2]][-1]))
        dtype = _type_of(model, node.output[0])
        name = node.output[0]
        weight = BicubicConv(scale).weight.detach().numpy().astype(dtype)
        pads = np.array([0, 0, 2, 2] * 2, dtype=np.int64)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"{name}_weight"))
        model.graph.initializer.append(numpy_helper.from_array(pads, f"{name}_pads"))
        nodes += [
            helper.make_node("Pad", [node.input[0], f"{name}_pads"], [f"{name}_padded"], f"{name}_pad", mode="edge"),
            helper.make_node("Conv", [f"{name}_padded", f"{name}_weight"], [f"{name}_blocks"], f"{name}_conv"),
            helper.make_node(
                "DepthToSpace", [f"{name}_blocks"], [name], f"{name}_shuffle", blocksize=scale, mode="CRD"
            ),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _type_of(model: onnx.ModelProto, name: str) -> Any:
    typed = {value.name: value for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]}
    return helper.tensor_dtype_to_np_dtype(typed[name].type.tensor_type.elem_type) if name in typed else np.float32


def tidy(model: onnx.ModelProto, scale: int) -> None:
    """Name the sizes, and drop what the exporter notes down about its own run: half of the file, in place."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    model.graph.name = "mren"
    (taken,), (given,) = model.graph.input, model.graph.output
    for value, factor in ((taken, ""), (given, f"{scale}*")):
        value.doc_string = ""
        del value.metadata_props[:]
        for axis, name in ((0, "batch"), (2, f"{factor}height"), (3, f"{factor}width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name


def open_session(file: str | Path, *, threads: int = 0) -> Session:
    """Open an ONNX file in onnxruntime, on the CPU.

    Args:
        file: The file.
        threads: How many it works with; 0 for as many as there are cores.

    Raises:
        ValueError: If the file is missing, or onnxruntime cannot run it.
    """
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file; python -m examples.mren.export -o {file} makes one.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return Session(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for each of its status codes
        raise ValueError(f"{file}: onnxruntime cannot run it ({error}).") from error


def run_session(session: Session, x: Tensor) -> Tensor:
    """What a session computes for images between 0 and 1, shape (N, 3, H, W)."""
    (result,) = session.run(None, {"input": x.numpy()})
    return torch.from_numpy(cast(np.ndarray, result))


def onnx_upscaler(file: str | Path, scale: int) -> Callable[[Tensor], Tensor]:
    """An ONNX file as a function from uint8 images, shape (3, H, W), to enlarged uint8 images.

    Raises:
        ValueError: If it cannot be run, or says that it is of another scale.
    """
    session = open_session(file)
    told = session.get_modelmeta().custom_metadata_map.get("scale")
    if told != str(scale):
        raise ValueError(f"{file}: is of scale {told}, asked for {scale}; was it written by examples.mren.export?")
    return lambda lr: to_uint8(run_session(session, (lr.float() / 255)[None])[0])


def latencies(
    files: Sequence[Path], size: tuple[int, int], *, rounds: int = 11, threads: int = 1
) -> dict[Path, list[float]]:
    """Seconds for an image of that height and width, one value for each round; the files run in turn.

    With one thread seconds of the processor, which what else the machine does disturbs less; otherwise of the clock.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    sessions = {file: open_session(file, threads=threads) for file in files}
    x = torch.rand(1, 3, *size)
    taken: dict[Path, list[float]] = {file: [] for file in files}
    for round_number in range(rounds + 1):
        for file, session in sessions.items():
            start = clock()
            run_session(session, x)
            if round_number > 0:  # the first round reserves memory
                taken[file].append(clock() - start)
    return taken


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if min(*args.size, args.rounds) < 1 or args.threads < 0:
        raise UsageError("--size and --rounds must be at least 1, --threads at least 0.")
    taken = latencies(args.files, tuple(args.size), rounds=args.rounds, threads=args.threads)
    first = statistics.median(taken[args.files[0]])
    size = " x ".join(map(str, (1, 3, *args.size)))
    clock = "one thread, processor time" if args.threads == 1 else f"{args.threads or 'all'} threads, clock time"
    print(f"onnxruntime {onnxruntime.__version__}, {size}, {clock}")
    for name, file in name_apart(args.files, suffixes=True).items():
        low, median, high = (float(np.quantile(taken[file], share)) for share in (0.25, 0.5, 0.75))
        print(
            f"{name}: {file.stat().st_size / 1e6:.2f} MB, {1e3 * median:.0f} ms "
            f"({1e3 * low:.0f} to {1e3 * high:.0f}), ratio {median / first:.2f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(run, _parser().parse_args, argv)


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m examples.mren.onnxfile",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="ONNX files; ratios are to the first")
    parser.add_argument("--size", nargs=2, type=int, default=(120, 160), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1, help="0 for as many as there are cores (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
