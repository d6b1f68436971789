"""A network loaded by ``spandrel`` and modified in place: RCAN with WSILBV as its channel attention.

``python -m examples.drop_in.spandrel_host`` prints the changes.
"""

from __future__ import annotations

import torch
from spandrel import ImageModelDescriptor, StateDict
from spandrel.architectures.RCAN import RCAN, RCANArch
from torch import nn

from sc_blocks import WSILBV
from sc_blocks.surgery import SwapReport, replace_modules


def load_rcan(weights: StateDict) -> ImageModelDescriptor[RCAN]:
    """Load RCAN, as ``spandrel.ModelLoader`` does for a file that it recognises as RCAN.

    Args:
        weights: The state dict.

    Returns:
        The network in spandrel's wrapper.

    Example:
        >>> weights = RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16, reduction=4, norm=False).state_dict()
        >>> load_rcan(weights).scale
        2
    """
    descriptor = RCANArch().load(weights)
    return descriptor.eval()


def replace_attention(descriptor: ImageModelDescriptor[RCAN]) -> SwapReport:
    """Replace RCAN's channel attention with WSILBV; everything else keeps its weights.

    spandrel's wrapper keeps working. spandrel no longer recognises a state dict of the
    changed network as RCAN: to load one, load and change an RCAN as before, then call
    ``descriptor.model.load_state_dict``.

    Args:
        descriptor: The network loaded by spandrel; it is changed in place.

    Returns:
        A report of the replaced modules.

    Example:
        >>> size = {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16, "reduction": 4}
        >>> descriptor = load_rcan(RCAN(scale=2, norm=False, **size).state_dict())
        >>> print(replace_attention(descriptor))
        RCAN: 1 module replaced, 19,591 -> 19,591 parameters
          body.0.body.0.body.3: CALayer (148) -> WSILBV (148)
        >>> descriptor(torch.rand(1, 3, 9, 7)).shape
        torch.Size([1, 3, 18, 14])
    """

    def make(old: nn.Module, name: str) -> nn.Module:
        squeeze = old.conv_du[0]
        reduction = squeeze.in_channels // squeeze.out_channels
        return WSILBV(squeeze.in_channels, reduction=reduction)

    def is_attention(name: str, module: nn.Module) -> bool:
        # By class name, as spandrel does not export the class.
        return type(module).__name__ == "CALayer"

    return replace_modules(descriptor.model, is_attention, make)


def main() -> None:
    """Print the changes to a small, newly initialised RCAN."""
    weights = RCAN(scale=2, n_resgroups=2, n_resblocks=3, n_feats=48, reduction=16, norm=False).state_dict()
    descriptor, x = load_rcan(weights), torch.rand(1, 3, 33, 47)
    print(replace_attention(descriptor))
    print(f"{tuple(x.shape)} -> {tuple(descriptor(x).shape)}")


if __name__ == "__main__":
    main()
