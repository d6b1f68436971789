"""PyTorch's exported program, which runs with torch alone, without the code of the network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.mren.engines import Engine
from examples.mren.engines.program import export_program, with_rbwas
from sc_blocks.deploy.rbwa import FoldedRBWA
from sc_blocks.deploy.strips import MapFunction


def write(network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}) -> None:
    """Convert a network to a file for images of any number, height and width."""
    program = export_program(with_rbwas(network, _IndexedRBWA), example)
    torch.export.save(program, path, extra_files=dict(metadata))


class _IndexedRBWA(FoldedRBWA):
    """A folded RBWA that reads the outermost pixels by index.

    With slices, the exported program would specialise on maps larger than the slice, and refuse one or two rows.
    """

    def with_frame(self, inner: Tensor, x: Tensor, plain: MapFunction, band: int) -> Tensor:
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
        top, bottom = plain(x[:, :, rows[:band]])[:, :, :1], plain(x[:, :, rows[-band:]])[:, :, -1:]
        left, right = plain(x[..., columns[:band]])[..., :1], plain(x[..., columns[-band:]])[..., -1:]
        return self.place_frame(inner, top, bottom, left, right)


def load(path: Path, *, threads: int = 0) -> Engine:
    """Open a file in torch. It runs with the threads of the process; ``threads`` is ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(x)

    return run
