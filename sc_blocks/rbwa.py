"""Reconstruction with attention."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks import _checks
from sc_blocks.wsilb import WSILBV


class RBWA(nn.Module):
    r"""Reconstruction block with attention: bilinear resizing, then two convolutions with attention between them.

    .. math::
        u &= \mathrm{conv}_{3 \times 3}(\mathrm{bilinear}_{\times s}(x)) \\
        y &= \mathrm{conv}_{3 \times 3}(\phi(\mathrm{WSILBV}(u)))

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output, at least ``reduction``; ``None`` for ``in_channels``.
        scale_factor: Factor for height and width: any ratio of integers up to 1000.
        reduction, gate_layer: Options of the attention, see :class:`~sc_blocks.WSILBV`.
        act_layer: Called without arguments to build :math:`\phi` and the activation inside the attention.
        bias: Whether the convolutions have biases.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - input: :math:`(N, C_{in}, H, W)`, any :math:`N`, :math:`H` and :math:`W` multiples of :attr:`size_multiple`;
        - output: :math:`(N, C_{out}, sH, sW)`. Any value range; the output is unbounded.

    Raises:
        ValueError: If an argument is out of range or an input has the wrong shape.
        TypeError: If an argument has the wrong type or an input is not floating-point.

    Number of parameters:
        With ``width = out_channels // reduction``:
        ``out_channels * (9 * (in_channels + out_channels) + 3) + width * (2 * out_channels + 1)``; 66,795 for 60 to 60
        channels, 24,817 for 60 to 30.

    Source:
        Section 3.5 and figure 1 of the MREN paper; the activation is placed as in the authors' earlier PMDN.

    Example:
        >>> import torch
        >>> from sc_blocks import RBWA
        >>> RBWA(60, 30)(torch.rand(1, 60, 24, 17)).shape
        torch.Size([1, 30, 48, 34])
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
        self.in_channels = _checks.check_int("RBWA", "in_channels", in_channels)
        out_channels = self.in_channels if out_channels is None else out_channels
        self.out_channels = _checks.check_int("RBWA", "out_channels", out_channels)
        self._ratio = _integer_ratio(scale_factor)
        self.scale_factor = scale_factor if isinstance(scale_factor, (int, Fraction)) else float(scale_factor)
        bias = _checks.check_flag("RBWA", "bias", bias)
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        reduction = _checks.check_int("RBWA", "reduction", reduction)
        _checks.reduced_width("RBWA", self.out_channels, reduction, name="out_channels")

        self.expand = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, **options)
        self.attention = WSILBV(
            self.out_channels, reduction=reduction, act_layer=act_layer, gate_layer=gate_layer, **options
        )
        self.act = _checks.build_layer("RBWA", "act_layer", act_layer, device=device, dtype=dtype)
        self.project = nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1, **options)

    @property
    def size_multiple(self) -> int:
        """Number that must divide the height and width of inputs: 1 for integer factors, 2 for 1.5."""
        return self._ratio.denominator

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        expanded = self.expand(self.resize(x))
        return self.project(self.act(self.attention(expanded)))

    def _check_input(self, x: Tensor) -> None:
        width = _checks.width_of(self.expand, "in_channels", self.in_channels)
        _checks.check_feature_map("RBWA", x, width, size_multiple=self.size_multiple)

    def resize(self, x: Tensor) -> Tensor:
        """Resize a map bilinearly, the first step of the block."""
        up, down = self._ratio.numerator, self._ratio.denominator
        if down == 1:
            # With an integer factor, the exported graph needs no arithmetic on sizes.
            return F.interpolate(x, scale_factor=up, mode="bilinear", align_corners=False)
        # Integer arithmetic: 0.29 * 100 is 28.999999999999996, which would round down.
        size = (x.shape[2] // down * up, x.shape[3] // down * up)
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, scale_factor={self.scale_factor}"


def _integer_ratio(scale_factor: float | Fraction) -> Fraction:
    hint = "for example 2, 1.5 or 4 / 3"
    exact = Fraction(_checks.check_number("RBWA", "scale_factor", scale_factor, hint=hint))
    ratio = exact.limit_denominator(1000)
    if ratio <= 0 or ratio.numerator > 1000 or abs(ratio - exact) > exact / 10**9:
        wanted = "a positive ratio of integers up to 1000"
        raise ValueError(f"RBWA: scale_factor must be {wanted}, got {float(exact):g}; {hint}.")
    return ratio
