r"""Reconstruction with attention: enlarge, mix, attend.

Source: section 3.5 and figure 1 of the MREN paper. The counts determine the layers. The place of the activation is our
reading, after the reconstruction of the authors' earlier PMDN.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks import _checks
from sc_blocks.wsilb import WSILBV


class RBWA(nn.Module):
    r"""Reconstruction block with attention: bilinear resizing, refined by two convolutions with attention between.

    .. math::
        u &= \mathrm{conv}_{3 \times 3}(\mathrm{bilinear}_{\times s}(x)) \\
        y &= \mathrm{conv}_{3 \times 3}(\phi(\mathrm{WSILBV}(u)))

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output, at least ``reduction``; ``None`` for that of the input.
        scale_factor: Factor of the height and the width: any ratio of integers up to 1000. The size of an input must
            be a multiple of :attr:`size_multiple`, so that the result has an integer size: a multiple of 2 for a factor
            of 1.5.
        reduction: Passed to the attention, see :class:`~sc_blocks.WSILBV`.
        act_layer: Called without arguments to build :math:`\phi` and the activation inside the attention.
        gate_layer: Passed to the attention, see :class:`~sc_blocks.WSILBV`.
        bias: Whether the convolutions have biases.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        - input: :math:`(N, C_{in}, H, W)`, any :math:`N`, :math:`H` and :math:`W` multiples of :attr:`size_multiple`;
        - output: :math:`(N, C_{out}, sH, sW)`.

    Any value range; the output is not bounded.

    Raises:
        ValueError: If an argument is out of range or an input has the wrong shape.
        TypeError: If an argument is of another type or an input is not floating-point.

    Number of parameters:
        With ``width = out_channels // reduction``:
        ``out_channels * (9 * (in_channels + out_channels) + 3) + width * (2 * out_channels + 1)``; 66,795 for 60 to 60
        channels, 24,817 for 60 to 30.

    Source:
        Section 3.5 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import RBWA
        >>> block = RBWA(60, 30)
        >>> block(torch.rand(1, 60, 24, 17)).shape
        torch.Size([1, 30, 48, 34])
        >>> sum(p.numel() for p in block.parameters())
        24817
        >>> RBWA(60, scale_factor=1.5)(torch.rand(1, 60, 24, 18)).shape
        torch.Size([1, 60, 36, 27])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        scale_factor: float | Fraction = 2,
        reduction: int = 4,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = _checks.check_positive_int("RBWA", "in_channels", in_channels)
        self.out_channels = _checks.check_positive_int(
            "RBWA", "out_channels", in_channels if out_channels is None else out_channels
        )
        self.scale_factor = scale_factor
        self._ratio = _whole_number_ratio(scale_factor)
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=bias, device=device, dtype=dtype)

        self.expand = conv(self.in_channels, self.out_channels)
        self.attention = WSILBV(
            self.out_channels,
            reduction=reduction,
            act_layer=act_layer,
            gate_layer=gate_layer,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.act = _checks.build_layer("RBWA", "act_layer", act_layer, device=device, dtype=dtype)
        self.project = conv(self.out_channels, self.out_channels)

    @property
    def size_multiple(self) -> int:
        """Number of which the height and the width of an input must be multiples.

        Example:
            >>> from sc_blocks import RBWA
            >>> RBWA(60).size_multiple, RBWA(60, scale_factor=1.5).size_multiple
            (1, 2)
        """
        return self._ratio.denominator

    def forward(self, x: Tensor) -> Tensor:
        _checks.check_feature_map("RBWA", x, self.in_channels, size_multiple=self.size_multiple)
        expanded = self.expand(self.resize(x))
        return self.project(self.act(self.attention(expanded)))

    def resize(self, x: Tensor) -> Tensor:
        """The bilinear enlargement alone."""
        up, down = self._ratio.numerator, self._ratio.denominator
        if down == 1:
            # With an integer factor the exported graph needs no arithmetic on sizes.
            return F.interpolate(x, scale_factor=up, mode="bilinear", align_corners=False)
        # Integer arithmetic: 0.29 * 100 is 28.999999999999996, which would round down.
        size = (x.shape[2] // down * up, x.shape[3] // down * up)
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, scale_factor={self.scale_factor}"


def _whole_number_ratio(scale_factor: float | Fraction) -> Fraction:
    if isinstance(scale_factor, bool) or not isinstance(scale_factor, (int, float, Fraction)):
        raise TypeError(
            f"RBWA: scale_factor must be a number, got {scale_factor!r} ({type(scale_factor).__name__}); for example 2."
        )
    if not 0 < scale_factor < float("inf"):
        raise ValueError(f"RBWA: scale_factor must be positive and finite, got {scale_factor}; for example 2 or 1.5.")
    ratio = Fraction(scale_factor).limit_denominator(1000)
    if abs(ratio - Fraction(scale_factor)) > Fraction(scale_factor) / 10**9 or ratio.numerator > 1000:
        raise ValueError(
            f"RBWA: scale_factor must be a ratio of whole numbers up to 1000, got {scale_factor}; for example "
            "1.5 or 4 / 3."
        )
    return ratio
