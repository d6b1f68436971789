"""ONNX files of MREN: what the exporter leaves to do, how to run them, and how long they take.

    python -m examples.mren.onnxfile mren_x4.onnx mren_x4_int8.onnx --size 120 160

prints the size and the latency of each file in onnxruntime, on the CPU, measured in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from examples.mren.cli import UsageError, is_out_of_memory, one_line, run_command
from examples.mren.files import name_apart
from examples.mren.fold import BicubicConv
from examples.mren.metrics import to_uint8

Session = onnxruntime.InferenceSession

# What repeats a part as often as a number in the file says. No export of ours has any.
_REFUSED = {"Loop", "Scan", "If", "SequenceMap"}


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
        model = onnx.load(file, load_external_data=False)
        reason = _why_refused(model)
        if reason is None:
            # No fallback: it would print, and try the same provider once more.
            return Session(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime has an exception of its own for each of its status codes
        if is_out_of_memory(error):
            raise MemoryError from error
        raise ValueError(f"{file}: onnxruntime cannot run it ({one_line(error)[:300]}).") from error
    raise ValueError(f"{file}: {reason}; python -m examples.mren.export writes files that can be run.")


def _why_refused(model: onnx.ModelProto) -> str | None:
    """What in a file from anybody could take for ever, or reads other files, or is no network for images."""
    for graph in _graphs(model):
        for node in graph.node:
            if node.op_type in _REFUSED:
                return f"has the operator {node.op_type}, by which a small file can run for ever"
        tensors = [*graph.initializer, *(t for node in graph.node for each in node.attribute for t in _tensors(each))]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            return "keeps its weights in other files, of which only itself may be read"
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        return f"takes {len(model.graph.input)} inputs and gives {len(model.graph.output)}; one image each is needed"
    taken = model.graph.input[0].type.tensor_type
    kind = onnx.TensorProto.DataType.Name(taken.elem_type).lower()
    if kind != "float":
        return f"takes images of {kind}; float is needed, between 0 and 1"
    if len(taken.shape.dim) != 4 or taken.shape.dim[1].dim_value not in (0, 3):
        return "does not take images of shape (N, 3, H, W)"
    return None


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph of a model, those in its nodes, and its functions."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] * attribute.HasField("g") + list(attribute.graphs)


def _tensors(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    return [attribute.t] * attribute.HasField("t") + list(attribute.tensors)


def run_session(session: Session, x: Tensor) -> Tensor:
    """What a session computes for images between 0 and 1, shape (N, 3, H, W).

    Raises:
        ValueError: If it fails.
    """
    try:
        (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    except Exception as error:  # as above
        if is_out_of_memory(error) or "bad_alloc" in str(error):
            raise MemoryError from error
        raise ValueError(f"onnxruntime fails at images of {tuple(x.shape)} ({one_line(error)[:300]})") from error
    return torch.from_numpy(cast(np.ndarray, result))


def onnx_upscaler(file: str | Path, scale: int) -> Callable[[Tensor], Tensor]:
    """An ONNX file as a function from uint8 images, shape (3, H, W), to enlarged uint8 images.

    Raises:
        ValueError: If it cannot be run, takes images of one size only, or says that it is of another scale.
    """
    session = open_session(file)
    told = session.get_modelmeta().custom_metadata_map.get("scale", "none")
    if told != str(scale):
        raise ValueError(f"{file}: is of scale {told[:20]}, asked for {scale}; was it written by examples.mren.export?")
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
            try:
                run_session(session, x)
            except ValueError as error:
                raise ValueError(f"{file}: {error}.") from error
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
