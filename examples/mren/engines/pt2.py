"""PyTorch's own exported program: runs with torch alone, without the code of the network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.mren.engines import Engine
from examples.mren.engines.program import export_program


def write(network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}) -> None:
    """Convert a network to a file for images of any number, height and width."""
    program = export_program(network, example)
    torch.export.save(program, path, extra_files=dict(metadata))


def load(path: Path, *, threads: int = 0) -> Engine:
    """Open a file in torch. The number of threads is that of the process; ``threads`` is not used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run
