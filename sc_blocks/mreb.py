r"""The multilevel refinement enhancement block, put together from the blocks of this package.

Source: section 3.4 and figure 4 of the MREN paper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sc_blocks._checks import check_feature_map, check_positive_int, check_width
from sc_blocks._pointwise import mix_channels
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
        continued: Whether the chain goes on from that of a block before, see :meth:`carry`. Then the block is no map
            from one tensor to one tensor, but takes two.
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
    """

    def __init__(
        self,
        channels: int,
        *,
        distilled_channels: int | None = None,
        num_stages: int = 3,
        communication: CommunicationLike = PAPER_WEIGHT,
        continued: bool = False,
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
            continued=continued,
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
        return self.carry(x)[0]

    def carry(self, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the block, and return the last attention map too, for a block after it that continues the chain.

        Called like this, the block's own forward hooks do not run; those of its parts do.

        Args:
            x: As for the block.
            previous: The map that the block before returned, of ``distilled_channels``; if the block was built with
                ``continued=True``, and only then.

        Returns:
            The output of the block, and the map of its last stage.

        Raises:
            ValueError: If ``previous`` is missing or too much, or a shape is wrong.
            TypeError: If an input is not floating-point.

        Example:
            >>> import torch
            >>> from sc_blocks import MREB
            >>> first, second = MREB(60), MREB(60, continued=True)
            >>> out, attention_map = second.carry(*first.carry(torch.rand(1, 60, 24, 17)))
            >>> out.shape, attention_map.shape
            (torch.Size([1, 60, 24, 17]), torch.Size([1, 15, 24, 17]))
        """
        check_feature_map("MREB", x, self.channels)
        if (previous is None) == self.refine.continued:
            raise ValueError(
                "MREB: a block built with continued=True needs the attention map of the block before; call carry(x, "
                "previous) with what that one's carry returned."
                if previous is None
                else "MREB: takes no previous attention map, got one; build it with continued=True."
            )
        # Stepped, not given all features at once: each is free as soon as the next stage has read it.
        refined, attention_map = self.refine.step(0, x, previous)
        kept = [refined]
        features = x
        for number, stage in enumerate(self.stages, start=1):
            features = stage(features)
            refined, attention_map = self.refine.step(number, features, attention_map)
            kept.append(refined)
        return x + self.attention(mix_channels(self.fuse, torch.cat(kept, dim=1))), attention_map

    def extra_repr(self) -> str:
        return f"{self.channels}, distilled_channels={self.distilled_channels}, num_stages={self.num_stages}"
