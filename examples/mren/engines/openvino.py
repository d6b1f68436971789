"""OpenVINO, Intel's runtime for x86 and ARM processors and Intel's GPUs and NPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from examples.mren.engines import Engine, import_extra, onnx
from examples.mren.engines.program import with_rbwas
from sc_blocks.deploy.rbwa import FoldedRBWA

MODEL = "model.xml"
Precision = Literal["f32", "bf16"]


def write(network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}) -> None:
    """Convert a network to a folder with ``model.xml`` and ``model.bin``, for images of any number, height and width.

    The network is converted through ONNX, which OpenVINO reads: its own converter sends telemetry.
    """
    import_extra("openvino", "openvino")  # fail before the first conversion if it is missing
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        onnx.write(with_rbwas(network, _MaskedRBWA), file, example)
        convert(file, path, metadata)


def convert(file: Path, path: Path, metadata: Mapping[str, str] = {}) -> None:
    """Convert an ONNX file to such a folder; quantised layers stay in int8."""
    openvino = import_extra("openvino", "openvino")
    model = openvino.Core().read_model(file)
    for name, value in metadata.items():
        model.set_rt_info(value, ["mren", name])
    path.mkdir(exist_ok=True)
    openvino.save_model(model, path / MODEL, compress_to_fp16=False)


def load(path: Path, *, threads: int = 0, precision: Precision = "f32") -> Engine:
    """Open such a folder on the CPU.

    Args:
        path: The folder.
        threads: Number of threads; 0 for one per core.
        precision: ``"bf16"`` computes in bfloat16, which is faster on processors that support it and OpenVINO's default
            there.
    """
    core = import_extra("openvino", "openvino").Core()
    core.set_property({"ENABLE_MMAP": False})  # otherwise, Windows cannot delete the files while the model is loaded
    return _StaticShapeModel(core, path / MODEL, threads, precision)


class _MaskedRBWA(FoldedRBWA):
    """A folded RBWA that writes the outermost pixels with masks.

    OpenVINO fuses them with the next layer. For writing by index, it would reorder the whole map in memory twice.
    """

    def place_frame(self, inner: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        height, width = inner.shape[2:]
        row = torch.arange(height).view(1, 1, -1, 1)  # with all axes; otherwise, OpenVINO still reorders
        column = torch.arange(width).view(1, 1, 1, -1)
        inner = torch.where(row == 0, top, torch.where(row == height - 1, bottom, inner))
        return torch.where(column == 0, left, torch.where(column == width - 1, right, inner))


class _StaticShapeModel:
    """A model that is recompiled whenever the size of the images changes.

    With static shapes OpenVINO is up to twice as fast, and images and tiles are mostly of one size.
    """

    def __init__(self, core: Any, file: Path, threads: int, precision: Precision) -> None:
        self._core = core
        self._model = core.read_model(file)
        self._config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = str(threads)
        self._shape: list[int] = []
        self._request: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        if list(x.shape) != self._shape:
            self._request, self._shape = None, list(x.shape)  # free the old one first
            self._model.reshape(self._shape)
            self._request = self._core.compile_model(self._model, "CPU", self._config).create_infer_request()
        return torch.from_numpy(self._request.infer([x.contiguous().numpy()])[0])
