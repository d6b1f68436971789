"""Core ML: a .mlpackage for Apple devices, from iOS 17 and macOS 14."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.mren.engines import Engine, import_extra

MIN_SIDE, MAX_SIDE = 16, 1024  # of an image; larger ones need tiling


def write(network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}) -> None:
    """Convert a network to a package for one image of 16 to 1024 pixels a side."""
    coremltools = _import()
    sides = [coremltools.RangeDim(MIN_SIDE, MAX_SIDE, default=256) for _ in range(2)]
    with (
        warnings.catch_warnings(),
        torch.inference_mode(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),  # it prints its progress
    ):
        warnings.simplefilter("ignore")
        model: Any = coremltools.convert(
            torch.jit.trace(network, example[:1], check_trace=False),
            inputs=[coremltools.TensorType("input", shape=coremltools.Shape((1, 3, *sides)))],
            outputs=[coremltools.TensorType("output")],
            minimum_deployment_target=coremltools.target.iOS17,
        )
        model.user_defined_metadata.update(metadata)
        model.save(str(path))


def load(path: Path, *, threads: int = 0) -> Engine:
    """Not supported: packages run only on Apple systems, where this code is untested."""
    raise NotImplementedError("Core ML runs only on Apple systems.")


def operators(path: Path) -> set[str]:
    """The names of the operators in a package, to check them against those an accelerator supports."""
    specification = _import().utils.load_spec(str(path))
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    return {operation.type for operation in block.operations}


def _import() -> Any:
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):  # it warns that this is not macOS
        return import_extra("coremltools", "coreml")
