"""The common basis of all conversions: MREN in widely supported operators, and its graph for any image size."""

from __future__ import annotations

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from examples.mren.fold import BicubicConv
from examples.mren.model import MREN
from sc_blocks.deploy.rbwa import FoldedRBWA


def portable(net: MREN) -> MREN:
    """A copy of MREN, unfolded, with its bicubic upsampling in operators that every runtime supports.

    Hooks on the network itself are copied, too.
    """
    net = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    net.enlarge = PortableBicubic(net.scale, dtype=net.head.weight.dtype)
    return net


class PortableBicubic(nn.Module):
    """Exact bicubic upsampling by a whole factor with slices, a convolution and a transposed convolution.

    Core ML's converter, TensorRT and ncnn before 2022 have no bicubic operator, and that of ONNX Runtime takes twenty
    times as long. The GPU delegate of LiteRT supports neither the replication padding nor the pixel shuffle of
    :class:`examples.mren.fold.BicubicConv`, which become gathers and permutations of six axes. The transposed
    convolution, whose weights are 0 and 1, replaces the pixel shuffle. It has no groups, which LiteRT does not support
    and ONNX Runtime computes incorrectly in WebGPU.
    """

    def __init__(self, factor: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.weight = BicubicConv(factor, dtype=dtype).weight
        pixels = torch.eye(3 * factor * factor, dtype=self.weight.dtype)  # of 3 colours, as a pixel shuffle orders them
        self.shuffle = nn.Parameter(pixels.reshape(-1, 3, factor, factor), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = x[:, :, :1], x[:, :, -1:]
        x = torch.cat([top, top, x, bottom, bottom], dim=2)
        left, right = x[..., :1], x[..., -1:]
        x = torch.cat([left, left, x, right, right], dim=3)
        return F.conv_transpose2d(F.conv2d(x, self.weight), self.shuffle, stride=self.factor)


def with_rbwas(network: nn.Module, kind: type[FoldedRBWA]) -> nn.Module:
    """A copy of a network with its folded RBWAs replaced by a subclass that suits an engine."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, FoldedRBWA):
            module.__class__ = kind
    return network


def export_program(network: nn.Module, example: Tensor) -> ExportedProgram:
    """Export the graph of a network for images of any number, height and width."""
    # Gradients stay enabled: otherwise, a network that caches tensors would cache those of the tracer.
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
        warnings.simplefilter("ignore")  # deprecations inside torch
        # Two images: a batch of one would become a constant of the graph.
        return torch.export.export(
            network,
            (torch.cat([example, example]),),
            dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
        )
