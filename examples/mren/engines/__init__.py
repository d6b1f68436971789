"""Inference runtimes for MREN: one module per format, all with the same two functions.

=============  ================================================  ================
module         output                                            image sizes
=============  ================================================  ================
``onnx``       one file; ONNX Runtime, TensorRT and others       any
``openvino``   a folder: ``model.xml`` and ``model.bin``         any
``ncnn``       a folder: ``model.ncnn.param``, ``.ncnn.bin``     any, one image
``litert``     one file; phones with Android, by LiteRT          one, one image
``coreml``     a folder, the ``.mlpackage``; Apple's devices     a range, one image
``pt2``        one file; :func:`torch.export.load`               any
=============  ================================================  ================

``write(network, path, example)`` converts any image-to-image network, and ``load(path, threads=...)`` opens the result
as an :data:`Engine`. Each module imports its runtime only when it is used.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from torch import Tensor, nn

Engine = Callable[[Tensor], Tensor]  # maps float32 images of shape (N, 3, H, W) on the CPU to upscaled ones
Format = Literal["onnx", "openvino", "ncnn", "litert", "coreml", "pt2"]
Runtime = Literal["onnx", "openvino", "ncnn"]  # those that run on a computer for images of any size

# Required suffix of the output; empty for a folder of any name.
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "openvino": "",
    "ncnn": "",
    "litert": ".tflite",
    "coreml": ".mlpackage",
    "pt2": ".pt2",
}
# Formats written as a folder, and its files: a folder that holds any others is never replaced.
FOLDERS: dict[Format, frozenset[str]] = {
    "openvino": frozenset({"model.xml", "model.bin"}),
    "ncnn": frozenset({"model.ncnn.param", "model.ncnn.bin", "metadata.json"}),
    "coreml": frozenset(
        {"Manifest.json"} | {f"Data/com.apple.CoreML/{name}" for name in ("model.mlmodel", "weights/weight.bin")}
    ),
}


class EngineModule(Protocol):
    """Interface of the modules of this package."""

    def write(self, network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}) -> None:
        """Convert a network; ``example`` is an input for it, and ``metadata`` is stored in the result."""

    def load(self, path: Path, *, threads: int = 0) -> Engine:
        """Open the result, to run with this number of threads; 0 for one per core."""


def engine_module(name: Format) -> EngineModule:
    """The module for a format.

    Raises:
        ValueError: If the format is unknown.
    """
    if name not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}; got {name!r}.")
    return cast(EngineModule, importlib.import_module(f"examples.mren.engines.{name}"))


def import_extra(name: str, extra: str) -> Any:
    """Import a module of an optional extra; if it is missing, the error says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = error.name or "a package"
        raise ImportError(
            f'{package} is missing; python -m pip install -e ".[examples,{extra}]" installs it.'
        ) from error


def compile_network(network: nn.Module, runtime: Runtime, example: Tensor, *, threads: int = 0) -> Engine:
    """Convert a network and open it in a runtime, without leaving files.

    Args:
        network: Any image-to-image network, in eval mode. It is not changed.
        runtime: ``"onnx"``, ``"openvino"`` or ``"ncnn"``.
        example: An input for tracing; the result takes other sizes, too.
        threads: Number of threads; 0 for one per core.

    Raises:
        ValueError: If it cannot be converted.
        ImportError: If a package is missing; the message says what to install.

    Example:
        >>> import torch
        >>> net = torch.nn.Conv2d(3, 3, 3, padding=1).eval()
        >>> run = compile_network(net, "onnx", torch.rand(1, 3, 12, 16), threads=1)
        >>> x = torch.rand(1, 3, 20, 30)
        >>> torch.allclose(run(x), net(x), atol=1e-6)
        True
    """
    if runtime not in get_args(Runtime):
        raise ValueError(f"runtime must be one of {', '.join(get_args(Runtime))}; got {runtime!r}.")
    module = engine_module(runtime)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{SUFFIXES[runtime]}"
        module.write(network, path, example)
        return module.load(path, threads=threads)
