"""Run ONNX files in onnxruntime, and measure their latency.

    python -m examples.mren.onnxfile mren_x4.onnx mren_x4_int8.onnx --size 120 160

prints the size and the latency of each file on the CPU, measured in turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from examples.mren.arguments import command_parser, path_name, whole_number
from examples.mren.cli import run_command
from examples.mren.files import check_regular, unique_names
from examples.mren.messages import is_out_of_memory, one_line
from examples.mren.metrics import to_uint8
from examples.timing import interleave, ratio, stopwatch, summarise

Session = onnxruntime.InferenceSession

# Control flow, such as loops whose length is a number in the file. Our exports have none.
_REFUSED = {"Loop", "Scan", "If", "SequenceMap"}


def open_session(file: str | Path, *, threads: int = 0) -> Session:
    """Open an ONNX file in onnxruntime on the CPU.

    Args:
        file: The file.
        threads: Number of threads; 0 for one per core.

    Raises:
        ValueError: If the file is missing, or onnxruntime cannot run it.
    """
    try:
        check_regular(file)
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file; python -m examples.mren.export -o {file} makes one.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        model = onnx.load(file, load_external_data=False)
        reason = _why_refused(model)
        if reason is None:
            # No fallback: it would print, and try the same provider again.
            return Session(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime has its own exception for each status code
        if is_out_of_memory(error):
            raise MemoryError from error
        raise ValueError(f"{file}: onnxruntime cannot run it ({one_line(error)[:300]}).") from error
    raise ValueError(f"{file}: {reason}; python -m examples.mren.export writes files that can be run.")


def _why_refused(model: onnx.ModelProto) -> str | None:
    """Why a file is refused (may run for ever, reads other files, does not process images), or ``None``."""
    for graph in _graphs(model):
        for node in graph.node:
            if node.op_type in _REFUSED:
                return f"has the operator {node.op_type}, which is refused as it could run for ever"
        tensors = [t for node in graph.node for each in node.attribute for t in _tensors(each)]
        tensors += getattr(graph, "initializer", [])  # a function has none
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            return "keeps its weights in other files, which are not read"
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        return f"has {len(model.graph.input)} inputs and {len(model.graph.output)} outputs; one of each is needed"
    image = model.graph.input[0].type.tensor_type
    kind = onnx.TensorProto.DataType.Name(image.elem_type).lower()
    if kind != "float":
        return f"takes images of {kind}; float is needed, between 0 and 1"
    if len(image.shape.dim) != 4 or image.shape.dim[1].dim_value not in (0, 3):
        return "does not take images of shape (N, 3, H, W)"
    return None


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph of a model, its subgraphs, and its functions."""
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack += [attribute.g] * attribute.HasField("g") + list(attribute.graphs)


def _tensors(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    return [attribute.t] * attribute.HasField("t") + list(attribute.tensors)


def run_session(session: Session, x: Tensor) -> Tensor:
    """Run a session on images between 0 and 1 of shape (N, 3, H, W).

    Raises:
        ValueError: If it fails.
    """
    try:
        (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    except Exception as error:  # onnxruntime's own exceptions, as in open_session
        if is_out_of_memory(error) or "bad_alloc" in str(error):
            raise MemoryError from error
        raise ValueError(f"onnxruntime fails at images of {tuple(x.shape)} ({one_line(error)[:300]})") from error
    return torch.from_numpy(cast(np.ndarray, result))


def onnx_upscaler(file: str | Path, scale: int) -> Callable[[Tensor], Tensor]:
    """An ONNX file as a function from uint8 images of shape (3, H, W) to upscaled uint8 images.

    Raises:
        ValueError: If it cannot be run, takes images of one size only, or is not for this scale by its metadata.
    """
    session = open_session(file)
    stated = session.get_modelmeta().custom_metadata_map.get("scale", "none")
    if stated != str(scale):
        raise ValueError(
            f"{file}: is of scale {stated[:20]}, asked for {scale}; was it written by examples.mren.export?"
        )
    batch, _, *size = session.get_inputs()[0].shape
    if any(isinstance(side, int) for side in size) or (batch not in (None, 1) and isinstance(batch, int)):
        raise ValueError(f"{file}: takes images of one size only; examples.mren.export writes files for any size.")

    def upscale(lr: Tensor) -> Tensor:
        try:
            result = run_session(session, (lr.float() / 255)[None])
        except ValueError as error:
            raise ValueError(f"{file}: {error}.") from error
        expected = (1, 3, lr.shape[1] * scale, lr.shape[2] * scale)
        if result.shape != expected or not result.is_floating_point():
            raise ValueError(f"{file}: gives {result.dtype} of {tuple(result.shape)}; float of {expected} is needed.")
        return to_uint8(result[0].float())

    return upscale


def latencies(
    files: Sequence[Path], size: tuple[int, int], *, rounds: int = 11, threads: int = 1
) -> dict[Path, list[float]]:
    """Seconds for an image of this height and width, one value per round; the files run in turn.

    With one thread, processor time is measured, which other programs disturb less; otherwise, wall-clock time.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    x = torch.rand(1, 3, *size)
    turns: dict[Path, Callable[[], float]] = {}
    for file in files:
        call = partial(run_session, open_session(file, threads=threads), x)
        try:
            turns[file] = stopwatch(call, torch.device("cpu"), clock)
        except ValueError as error:
            raise ValueError(f"{file}: {error}.") from error
    return interleave(turns, rounds, seed=0)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    names = unique_names(args.files, suffixes=True)
    measured = latencies(args.files, tuple(args.size), rounds=args.rounds, threads=args.threads)
    size = " x ".join(map(str, (1, 3, *args.size)))
    clock = "one thread, processor time" if args.threads == 1 else f"{args.threads or 'all'} threads, wall-clock time"
    print(f"onnxruntime {onnxruntime.__version__}, {size}, {clock}")
    for name, file in names.items():
        seconds, times = summarise(measured[file]), ratio(measured[file], measured[args.files[0]])
        print(
            f"{name}: {file.stat().st_size / 1e6:.2f} MB, {1e3 * seconds.median:.0f} ms "
            f"({1e3 * seconds.q1:.0f} to {1e3 * seconds.q3:.0f}), ratio {times.median:.2f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("examples.mren.onnxfile", __doc__)
    add = parser.add_argument
    add("files", nargs="+", type=path_name, metavar="FILE", help="ONNX files; ratios are relative to the first")
    add("--size", nargs=2, type=whole_number(1), default=(120, 160), metavar=("HEIGHT", "WIDTH"), help="(120 160)")
    add("--rounds", type=whole_number(1), default=11, help="number of measurements of each file (default: %(default)s)")
    add(
        "--threads",
        type=whole_number(0, 4096),
        default=1,
        help="number of threads; 0 for one per core (default: %(default)s)",
    )
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
