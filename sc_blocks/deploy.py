r"""Exact rewrites of trained blocks for inference.

:func:`fold` copies a network and puts in the place of its blocks others that compute the same function with less
arithmetic and less traffic to memory. What is rewritten, and why it is the same function:

- **Bilinear enlargement and the convolution behind it** (:class:`~sc_blocks.RBWA`) both are convolutions, of the input
  with zeros put between its pixels, so they commute: a transposed convolution at low resolution, then a fixed blur of
  each channel. That takes a quarter of the multiplications at a factor of 2, and the enlarged features are never
  written. Within one pixel of the border, where the convolution reads zeros and the enlargement does not, the frame is
  computed the plain way.
- **Two convolutions without an activation between them** are one, with the two kernels convolved. Here too the frame is
  computed the plain way.
- **Widths** are padded to what the matrix products of processors like, with weights of zero.
- Both parts of an :class:`~sc_blocks.SCACB` that exchange at the outputs weigh the same sums: one product instead of
  two.
- On a CPU, large maps are worked off a few rows or pixels at a time, which stay in its caches meanwhile.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from sc_blocks._folded import FoldedAlone, FoldedMREB, FoldedMREBs
from sc_blocks._folded_rbwa import FoldedRBWA
from sc_blocks.communication import LearnableCommunication, LinearCommunication, NoCommunication
from sc_blocks.dracb import DRACB, DRACBChain
from sc_blocks.mreb import MREB
from sc_blocks.rbwa import RBWA
from sc_blocks.scacb import SCACB
from sc_blocks.wsilb import WSILBV

# Without parameters, and the same for every value: they may be applied to padded or joined maps.
_ELEMENTWISE = (
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Identity,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Tanh,
)
_KNOWN = {
    *_ELEMENTWISE,
    DRACB,
    DRACBChain,
    LearnableCommunication,
    LinearCommunication,
    MREB,
    NoCommunication,
    nn.ModuleDict,
    RBWA,
    SCACB,
    WSILBV,
    nn.Conv2d,
    nn.ModuleList,
    nn.Sequential,
}


def fold(module: nn.Module) -> nn.Module:
    r"""Copy a network for inference, with its blocks rewritten to compute the same function faster.

    Rewritten are :class:`~sc_blocks.SCACB` (both parts, exchanging at the outputs or not at all), the
    :class:`~sc_blocks.MREB` made of such, and :class:`~sc_blocks.RBWA`, each at its exact class and with activations
    that treat every value alike. Everything else stays as it is, and so does what is around the SCACBs of MREBs along
    which one chain runs on.

    Args:
        module: A block, or any network with blocks in it. It is not changed, and stays trainable.

    Returns:
        A copy in eval mode, without gradients. Its state dict is its own; keep the weights of the original. Windowed
        statistics (:func:`~sc_blocks.to_local`) have to be chosen before, and hooks are not carried over.

    Raises:
        TypeError: If ``module`` is not a module.

    Example:
        >>> import torch
        >>> from sc_blocks import RBWA
        >>> from sc_blocks.deploy import fold
        >>> block, x = RBWA(60, 30), torch.rand(1, 60, 24, 17)
        >>> folded = fold(block)
        >>> torch.allclose(folded(x), block(x), atol=1e-5)
        True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"fold: module must be a torch.nn.Module, got {type(module).__name__}.")
    # Blocks that hand a map on to each other keep their form, `carry` and all; their SCACBs do not.
    whole = not any(isinstance(block, MREB) and block.refine.takes_map for block in module.modules())
    with torch.no_grad():
        return _fold(copy.deepcopy(module).eval().requires_grad_(False), {}, whole)


def fold_with_tail(block: RBWA, tail: nn.Conv2d, *, tile: tuple[int, int] = (1, 1)) -> nn.Module:
    """Fold an RBWA together with the 3x3 convolution that directly follows it.

    Args:
        block: The block.
        tail: The convolution, with a padding of 1.
        tile: Rows and columns that are written at once. Height and width of the result must be multiples of them, as
            they are of the factor by which a network enlarges. With few channels, as many pixels as make their product
            a multiple of 8 are fastest.

    Returns:
        A module that computes ``tail(block(x))``.

    Raises:
        ValueError: If the convolution is of another form, or the block is not one that :func:`fold` rewrites.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sc_blocks import RBWA
        >>> from sc_blocks.deploy import fold_with_tail
        >>> block, tail, x = RBWA(60, 30), nn.Conv2d(30, 3, 3, padding=1), torch.rand(1, 60, 24, 18)
        >>> folded = fold_with_tail(block, tail, tile=(2, 4))
        >>> torch.allclose(folded(x), tail(block(x)), atol=1e-5)
        True
    """
    _check_tail(block, tail, tile)
    with torch.no_grad():
        block, tail = copy.deepcopy((block, tail))
        return FoldedRBWA(block, tail, tile).eval().requires_grad_(False)


def _fold(module: nn.Module, done: dict[nn.Module, nn.Module], whole: bool) -> nn.Module:
    if module not in done:
        if type(module) is MREB and whole and _known_inside(module) and _of_one_kind(module):
            done[module] = FoldedMREB(module)
        elif type(module) is SCACB and _known_inside(module) and _both_parts(module):
            done[module] = FoldedAlone(module)
        elif type(module) is RBWA and _known_inside(module):
            done[module] = FoldedRBWA(module)
        else:
            done[module] = module
            # Not named_children, which lists a module that stands in two places once.
            for name, child in module._modules.items():  # pyright: ignore[reportPrivateUsage]
                if child is not None:
                    setattr(module, name, _fold(child, done, whole))
            if type(module) is nn.Sequential:
                done[module] = _joined(module)
    return done[module].eval().requires_grad_(False)


def _joined(row: nn.Sequential) -> nn.Module:
    """A row of modules; MREBs of one width are one module if there is nothing else in it."""
    blocks = [block for block in row if isinstance(block, FoldedMREB)]
    alike = len(blocks) == len(row) > 1 and len({block.channels for block in blocks}) == 1
    return FoldedMREBs(blocks) if alike else row


def _known_inside(block: nn.Module) -> bool:
    """Whether a block is made of what it is built of, and of activations that treat every value alike."""
    return all(type(part) in _KNOWN for part in block.modules())


def _of_one_kind(block: MREB) -> bool:
    return all(map(_both_parts, block.stages)) and all(link.relay == "raw" for link in block.refine.links)


def _both_parts(block: nn.Module) -> bool:
    return isinstance(block, SCACB) and block.parts == "both" and block.exchange != "inputs"


def _check_tail(block: RBWA, tail: nn.Conv2d, tile: tuple[int, int]) -> None:
    if len(tile) != 2 or not all(isinstance(side, int) and side > 0 for side in tile):
        raise ValueError(f"fold_with_tail: tile must be two positive integers, got {tile!r}; for example (2, 4).")
    if type(block) is not RBWA or not _known_inside(block):
        raise ValueError(f"fold_with_tail: block must be an RBWA with elementwise activations, got {block}.")
    form = (tail.in_channels, tail.kernel_size, tail.padding, tail.stride, tail.dilation, tail.groups)
    needed = (block.out_channels, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    if form != needed or tail.padding_mode != "zeros":
        raise ValueError(
            f"fold_with_tail: tail must be nn.Conv2d({block.out_channels}, ..., 3, padding=1), got {tail}."
        )
