"""LiteRT, formerly TensorFlow Lite, the runtime for phones: a .tflite file for images of one size."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.cores import usable_cores
from examples.mren.engines import Engine, import_extra


def write(network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}) -> None:
    """Convert a network to a file for one image of the size of ``example``, in NCHW. No metadata is stored."""
    litert_torch = import_extra("litert_torch", "litert")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            litert_torch.convert(network, (example[:1],)).export(str(path))
    finally:
        root.setLevel(level)


def load(path: Path, *, threads: int = 0) -> Engine:
    """Open a file on the CPU."""
    runtime = import_extra("ai_edge_litert.interpreter", "litert")
    interpreter = runtime.Interpreter(str(path), num_threads=threads or usable_cores())
    interpreter.allocate_tensors()
    (input_,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: Tensor) -> Tensor:
        if list(x.shape) != input_["shape"].tolist():
            raise ValueError(f"the file takes images of {tuple(input_['shape'])}, got {tuple(x.shape)}.")
        interpreter.set_tensor(input_["index"], x.contiguous().numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(output["index"]))

    return run


def operators(path: Path) -> set[str]:
    """The names of a file's operators, to check them against those an accelerator supports."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    return {operator["op_name"] for operator in plain._get_ops_details()}
