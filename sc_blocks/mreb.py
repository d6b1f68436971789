r"""The multilevel refinement enhancement block, put together from the blocks of this package.

Source: section 3.4 and figure 4 of the MREN paper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sc_blocks._checks import check_feature_map, check_positive_int, check_width
from sc_blocks.communication import PAPER_WEIGHT, CommunicationLike
from sc_blocks.dracb import DRACBChain, Relay
from sc_blocks.scacb import SCACB, Exchange, Parts
from sc_blocks.wsilb import WSILBV


class MREB(nn.Module):
    r"""Multilevel refinement enhancement block: a row of SCACBs, each stage distilled and refined on the way.

    With :math:`x_0 = x` and :math:`x_l = \mathrm{SCACB}_l(x_{l-1})`, a :class:`~sc_blocks.DRACBChain` refines the input
    and every stage, and what it keeps is fused, attended to and added to the input:

    .. math::
        y = x + \mathrm{WSILBV}\bigl( W [\, y_0, y_1, \dots, y_n \,] \bigr), \qquad
        y_l, F_l = \mathrm{DRACB}_l(x_l, F_{l-1})

    Args:
        channels: Width of the input and of the output, at least 6.
        distilled_channels: Width that each stage is distilled to; ``None`` for ``channels // 4``, the paper's.
        num_stages: Number :math:`n` of SCACBs; one DRACB more taps them.
        communication: How attention maps reach the next stage, see :class:`~sc_blocks.DRACB`.
        gate: Of the DRACBs, see there.
        relay: Of the DRACBs, see there.
        parts: Of the SCACBs, see :class:`~sc_blocks.SCACB`.
        exchange: Of the SCACBs, see there.
        residual: Of the SCACBs, see there. The block's own shortcut is always on.
        act_layer: Called without arguments to build each activation.
        gate_layer: Called without arguments to build each gate.
        bias: Whether the convolutions have biases.
        device: Where the parameters are created.
        dtype: Type of the parameters.

    Shape:
        - input, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``, any :math:`N`, :math:`H, W \ge 1`.

    Any value range; the output is not bounded.

    Raises:
        ValueError: If an argument is out of range or an input has the wrong shape.
        TypeError: If an argument is of another type or an input is not floating-point.

    Source:
        Section 3.4. 34,035 parameters at 60 channels.

    Example:
        >>> import torch
        >>> from sc_blocks import MREB
        >>> block = MREB(60)
        >>> block(torch.rand(1, 60, 24, 17)).shape
        torch.Size([1, 60, 24, 17])
        >>> sum(p.numel() for p in block.parameters())
        34035
    """

    def __init__(
        self,
        channels: int,
        *,
        distilled_channels: int | None = None,
        num_stages: int = 3,
        communication: CommunicationLike = PAPER_WEIGHT,
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
        self.channels = check_positive_int("MREB", "channels", channels)
        self.num_stages = check_positive_int("MREB", "num_stages", num_stages)
        if distilled_channels is None:
            distilled_channels = check_width("MREB", channels // 4, channels=channels, reduction=4, at_least=4)
        self.distilled_channels = check_positive_int("MREB", "distilled_channels", distilled_channels)

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

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("MREB", x, self.channels)
        # Stepped, not given all features at once: each is free as soon as the next stage has read it.
        refined, attention_map = self.refine.step(0, x)
        kept = [refined]
        features = x
        for number, stage in enumerate(self.stages, start=1):
            features = stage(features)
            refined, attention_map = self.refine.step(number, features, attention_map)
            kept.append(refined)
        return x + self.attention(self.fuse(torch.cat(kept, dim=1)))

    def extra_repr(self) -> str:
        return f"{self.channels}, distilled_channels={self.distilled_channels}, num_stages={self.num_stages}"
