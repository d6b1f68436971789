r"""The multilevel refinement enhancement block, built from the other blocks of this package.

Source: section 3.4 and figure 4 of the MREN paper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sc_blocks import _checks
from sc_blocks.communication import PAPER_WEIGHT, CommunicationLike
from sc_blocks.dracb import DRACBChain, Relay
from sc_blocks.scacb import SCACB, Exchange, Parts
from sc_blocks.wsilb import WSILBV


class MREB(nn.Module):
    r"""Multilevel refinement enhancement block: a row of SCACBs whose stages are distilled, refined and fused.

    With :math:`x_0 = x` and :math:`x_l = \mathrm{SCACB}_l(x_{l-1})`, a :class:`~sc_blocks.DRACBChain` refines the input
    and the output of every SCACB. The refined features are fused, pass an attention and are added to the input:

    .. math::
        y = x + \mathrm{WSILBV}\bigl( W [\, y_0, y_1, \dots, y_n \,] \bigr), \qquad
        y_l, F_l = \mathrm{DRACB}_l(x_l, F_{l-1})

    Args:
        channels: Width of the input and of the output, at least 6.
        distilled_channels: Width of each stage's distilled features; ``None`` for the paper's ``channels // 4``.
        num_stages: Number :math:`n` of SCACBs; the chain has one DRACB more, for the input.
        communication: How attention maps reach the next stage, see :class:`~sc_blocks.DRACB`.
        takes_map: Whether the block takes the last attention map of the block before it as a second input, so that its
            chain continues that one.
        returns_map: Whether the block returns its last attention map too, for a block that takes one.
        gate: Passed to the DRACBs, see :class:`~sc_blocks.DRACB`.
        relay: Passed to the DRACBs, see there.
        parts: Passed to the SCACBs, see :class:`~sc_blocks.SCACB`.
        exchange: Passed to the SCACBs, see there.
        residual: Passed to the SCACBs, see there. The shortcut of the MREB itself is always on.
        act_layer: Called without arguments to build each activation.
        gate_layer: Called without arguments to build each gate.
        bias: Whether the convolutions have biases.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`;
        - previous: with ``takes_map``, and only then, the map of the block before,
          :math:`(N, C', H, W)` with :math:`C'` = ``distilled_channels``;
        - attention map: with ``returns_map``, the second output, of the shape of ``previous``.

    Any value range; the output is not bounded.

    Raises:
        ValueError: If an argument is out of range, an input has the wrong shape, or ``previous`` is missing or was not
            expected.
        TypeError: If an argument is of another type or an input is not floating-point.

    Number of parameters:
        With ``scacb`` and ``wsilbv`` for those of its parts:
        ``num_stages * scacb + (num_stages + 1) * distilled_channels * (2 * channels + 1) + channels + wsilbv``, and
        what the channels have; 34,035 at 60 channels.

    Source:
        Section 3.4 and figure 4 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import MREB
        >>> block = MREB(60)
        >>> block(torch.rand(1, 60, 24, 17)).shape
        torch.Size([1, 60, 24, 17])
        >>> sum(p.numel() for p in block.parameters())
        34035

        One chain through two blocks:

        >>> first, second = MREB(60, returns_map=True), MREB(60, takes_map=True)
        >>> out, attention_map = first(torch.rand(1, 60, 24, 17))
        >>> second(out, attention_map).shape
        torch.Size([1, 60, 24, 17])
    """

    def __init__(
        self,
        channels: int,
        *,
        distilled_channels: int | None = None,
        num_stages: int = 3,
        communication: CommunicationLike = PAPER_WEIGHT,
        takes_map: bool = False,
        returns_map: bool = False,
        gate: bool = True,
        relay: Relay = "raw",
        parts: Parts = "both",
        exchange: Exchange | None = "outputs",
        residual: bool = True,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = _checks.check_positive_int("MREB", "channels", channels)
        self.num_stages = _checks.check_positive_int("MREB", "num_stages", num_stages)
        if distilled_channels is None:
            distilled_channels = _checks.check_width("MREB", channels // 4, channels=channels, reduction=4, at_least=4)
        self.distilled_channels = _checks.check_positive_int("MREB", "distilled_channels", distilled_channels)

        self.stages = nn.ModuleList(
            SCACB(
                channels,
                parts=parts,
                exchange=exchange,
                residual=residual,
                act_layer=act_layer,
                bias=bias,
                device=device,
                dtype=dtype,
            )
            for _ in range(num_stages)
        )
        self.refine = DRACBChain(
            channels,
            distilled_channels,
            num_stages + 1,
            communication=communication,
            takes_map=takes_map,
            returns_map=returns_map,
            gate=gate,
            relay=relay,
            gate_layer=gate_layer,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.fuse = nn.Conv2d((num_stages + 1) * distilled_channels, channels, 1, bias=bias, device=device, dtype=dtype)
        self.attention = WSILBV(
            channels, act_layer=act_layer, gate_layer=gate_layer, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        _checks.check_feature_map("MREB", x, self.channels)
        _checks.check_previous_map("MREB", previous, takes_map=self.refine.takes_map)
        features = [x]
        for stage in self.stages:
            features.append(stage(features[-1]))
        if self.refine.returns_map:
            refined, attention_map = self.refine(features, previous)
            return self._correct(x, refined), attention_map
        return self._correct(x, self.refine(features, previous))

    def _correct(self, x: Tensor, refined: tuple[Tensor, ...]) -> Tensor:
        return x + self.attention(self.fuse(torch.cat(refined, dim=1)))

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, distilled_channels={self.distilled_channels}, num_stages={self.num_stages}, "
            f"takes_map={self.refine.takes_map}, returns_map={self.refine.returns_map}"
        )
