"""A network that the ``spandrel`` package loads, changed in place: RCAN with WSILBV for its channel attention.

``python -m examples.drop_in.spandrel_host`` prints what was changed.
"""

from __future__ import annotations

import torch
from spandrel import ImageModelDescriptor, StateDict
from spandrel.architectures.RCAN import RCAN, RCANArch
from torch import nn

from sc_blocks import WSILBV
from sc_blocks.surgery import SwapReport, replace_modules


def load_rcan(weights: StateDict) -> ImageModelDescriptor[RCAN]:
    """Load RCAN, as ``spandrel.ModelLoader`` does with a file that it takes for one.

    Args:
        weights: Its tensors by name.

    Returns:
        The network in spandrel's wrapper.

    Example:
        >>> weights = RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16, reduction=4, norm=False).state_dict()
        >>> load_rcan(weights).scale
        2
    """
    descriptor = RCANArch().load(weights)
    return descriptor.eval()


def attend(descriptor: ImageModelDescriptor[RCAN]) -> SwapReport:
    """Put WSILBV in the place of RCAN's channel attention; everything else keeps its weights.

    spandrel's wrapper goes on working. The tensors of the network are no longer those that spandrel knows RCAN by: to
    load them, load and change a network as before, then ``descriptor.model.load_state_dict``.

    Args:
        descriptor: What spandrel loaded; the network in it is changed in place.

    Returns:
        What was replaced.

    Example:
        >>> weights = RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16, reduction=4, norm=False).state_dict()
        >>> descriptor = load_rcan(weights)
        >>> print(attend(descriptor))
        RCAN: 1 module replaced, 19,591 -> 19,591 parameters
          body.0.body.0.body.3: CALayer (148) -> WSILBV (148)
        >>> descriptor(torch.rand(1, 3, 9, 7)).shape
        torch.Size([1, 3, 18, 14])
    """

    def make(old: nn.Module, name: str) -> nn.Module:
        squeeze = old.conv_du[0]
        return WSILBV(squeeze.in_channels, reduction=squeeze.in_channels // squeeze.out_channels)

    # By the name of its type: spandrel has no public place to import that from.
    return replace_modules(descriptor.model, lambda name, module: type(module).__name__ == "CALayer", make)


def main() -> None:
    """Print what was changed in a small RCAN with fresh weights."""
    weights = RCAN(scale=2, n_resgroups=2, n_resblocks=3, n_feats=48, reduction=16, norm=False).state_dict()
    descriptor, x = load_rcan(weights), torch.rand(1, 3, 33, 47)
    print(attend(descriptor))
    print(f"{tuple(x.shape)} -> {tuple(descriptor(x).shape)}")


if __name__ == "__main__":
    main()
