"""The multilevel refinement enhancement block, built from the other blocks of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sc_blocks import _checks
from sc_blocks.communication import PAPER_WEIGHT, CommunicationLike
from sc_blocks.dracb import DRACBChain, Relay
from sc_blocks.scacb import SCACB, Exchange, Parts
from sc_blocks.wsilb import WSILBV


class MREB(nn.Module):
    r"""Multilevel refinement enhancement block: a sequence of SCACBs whose outputs are distilled, refined and fused.

    With :math:`x_0 = x` and :math:`x_l = \mathrm{SCACB}_l(x_{l-1})`, a :class:`~sc_blocks.DRACBChain` refines the input
    and the output of every SCACB. The refined features are fused, reweighted by WSILB-V and added to the input:

    .. math::
        y = x + \mathrm{WSILBV}\bigl( W [\, y_0, y_1, \dots, y_n \,] \bigr), \qquad
        y_l, F_l = \mathrm{DRACB}_l(x_l, F_{l-1})

    Args:
        channels: Width of the input and of the output, at least 6, or 4 if the SCACBs have one part.
        distilled_channels: Width of each stage's distilled features; ``None`` for the paper's ``channels // 4``.
        num_stages: Number :math:`n` of SCACBs; the chain has one more DRACB, for the input.
        communication: As in :class:`~sc_blocks.DRACBChain`.
        takes_map: Whether the block takes the last attention map of the block before it as a second input.
        returns_map: Whether the block also returns its last attention map, for a block that takes one.
        gate, relay: As in :class:`~sc_blocks.DRACB`.
        parts, exchange, residual: As in :class:`~sc_blocks.SCACB`. The MREB's own residual connection is always on.
        act_layer, gate_layer: Called without arguments to build each activation and each gate.
        bias: Whether the convolutions have biases.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`;
        - previous, with ``takes_map``, and the second output, with ``returns_map``: an attention map,
          :math:`(N, C', H, W)` with :math:`C'` = ``distilled_channels``.

        Any value range; the output is unbounded.

    Raises:
        ValueError: If an argument or a shape is out of range, or ``previous`` is missing or unexpected.
        TypeError: If an argument has the wrong type or an input is not floating-point.

    Number of parameters:
        ``num_stages * scacb + (num_stages + 1) * distilled_channels * (2 * channels + 1) + channels + wsilbv``, with
        the counts of an SCACB and a WSILBV, plus those of the communication channels; 34,035 at 60 channels.

    Source:
        Section 3.4 and figure 4 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import MREB
        >>> MREB(60)(torch.rand(1, 60, 24, 17)).shape
        torch.Size([1, 60, 24, 17])

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
        # The minimum width of SCACB and WSILBV. Their own errors would name a reduction, which an MREB does not take.
        self.channels = _checks.check_int("MREB", "channels", channels, least=6 if parts == "both" else 4)
        self.num_stages = _checks.check_int("MREB", "num_stages", num_stages)
        if distilled_channels is None:
            distilled_channels = self.channels // 4
        self.distilled_channels = _checks.check_int("MREB", "distilled_channels", distilled_channels)
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}

        self.stages = nn.ModuleList(
            SCACB(self.channels, parts=parts, exchange=exchange, residual=residual, act_layer=act_layer, **options)
            for _ in range(self.num_stages)
        )
        self.refine = DRACBChain(
            self.channels,
            self.distilled_channels,
            self.num_stages + 1,
            communication=communication,
            takes_map=takes_map,
            returns_map=returns_map,
            gate=gate,
            relay=relay,
            gate_layer=gate_layer,
            **options,
        )
        self.fuse = nn.Conv2d((self.num_stages + 1) * self.distilled_channels, self.channels, 1, **options)
        self.attention = WSILBV(self.channels, act_layer=act_layer, gate_layer=gate_layer, **options)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        _checks.check_feature_map("MREB", x, _checks.width_of(self.fuse, "out_channels", self.channels))
        _checks.check_previous_map("MREB", previous, takes_map=self.refine.takes_map)
        features = [x]
        for stage in self.stages:
            features.append(stage(features[-1]))
        if not self.refine.returns_map:
            return x + self.attention(self.fuse(torch.cat(self.refine(features, previous), dim=1)))
        refined, attention_map = self.refine(features, previous)
        return x + self.attention(self.fuse(torch.cat(refined, dim=1))), attention_map

    def extra_repr(self) -> str:
        sizes = f"{self.channels}, distilled_channels={self.distilled_channels}, num_stages={self.num_stages}"
        return f"{sizes}, takes_map={self.refine.takes_map}, returns_map={self.refine.returns_map}"
