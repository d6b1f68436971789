"""ONNX: one file that ONNX Runtime, TensorRT, OpenVINO and others read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from examples.mren.engines import Engine, import_extra
from examples.mren.engines.program import export_program

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu; in earlier ones it is five nodes that runtimes must recognise


def write(network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}) -> None:
    """Convert a network to a file for images of any number, height and width."""
    onnx = import_extra("onnx", "onnx")
    import_extra("onnxscript", "onnx")  # the exporter needs it
    with torch.no_grad():  # not inference_mode: the exporter refuses tensors cached in it
        scale = network(example).shape[2] // example.shape[2]
    program = export_program(network, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            program,
            (),
            path,
            dynamo=True,
            input_names=["input"],
            output_names=["output"],
            opset_version=OPSET,
            external_data=False,  # a single file, which can be moved
            verbose=False,
        )
    model = onnx.load(path)
    _tidy(model, scale)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def load(path: Path, *, threads: int = 0) -> Engine:
    """Open a file in ONNX Runtime on the CPU.

    Raises:
        ValueError: If ONNX Runtime cannot run it.
    """
    onnxfile = import_extra("examples.mren.onnxfile", "onnx")
    session = onnxfile.open_session(path, threads=threads)
    return lambda x: onnxfile.run_session(session, x)


def _tidy(model: onnx.ModelProto, scale: int) -> None:
    """Name the dynamic axes, and remove the exporter's debug information, half of the file."""
    del model.graph.value_info[:]
    model.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    model.graph.name = "mren"
    (input_,), (output,) = model.graph.input, model.graph.output
    for value, factor in ((input_, ""), (output, f"{scale}*")):
        value.doc_string = ""
        del value.metadata_props[:]
        for axis, name in ((0, "batch"), (2, f"{factor}height"), (3, f"{factor}width")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
