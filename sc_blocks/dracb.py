r"""Double refinement with attention communication.

Source: section 3.3, figure 3 and equations 5 and 6 of the MREN paper; the variants are those of tables 2 and 4. The
paper leaves open whether a block hands on its own map or the fused one (``relay``); the channel itself is in
:mod:`sc_blocks.communication`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sc_blocks._checks import build_layer, check_choice, check_feature_map, check_positive_int, check_same_shape
from sc_blocks._pointwise import mix_channels
from sc_blocks.communication import (
    PAPER_WEIGHT,
    AdaptedCommunication,
    CommunicationLike,
    Resample,
    build_communication,
)

Relay = Literal["raw", "fused"]


class DRACB(nn.Module):
    r"""Double refinement attention communication block: distil, listen to the predecessor, gate.

    One 1x1 convolution both distils the features and makes the attention map. The map is fused with that of the
    predecessor, and gates itself:

    .. math::
        F_l &= \mathrm{conv}_{1 \times 1}(x_l) \\
        F'_l &= W F_{l-1} + F_l \\
        y_l &= F'_l \odot \sigma(F'_l)

    Args:
        in_channels: Width of the input.
        out_channels: Width of the refined features and of the attention map.
        communication: How the predecessor's map enters.

            - a number: fixed linear, :class:`~sc_blocks.LinearCommunication`;
            - a factory ``channels -> module``, such as :class:`~sc_blocks.GatedCommunication`;
            - a module with ``forward(previous, current) -> fused``, used as it is;
            - ``None``: not at all.
        gate: Whether the fused map gates itself; without, :math:`y_l = F'_l`.
        relay: Which map is handed on.

            - ``"raw"``: :math:`F_l`, as equation 5 is printed;
            - ``"fused"``: :math:`F'_l`, so that older maps live on.
        gate_layer: Called without arguments to build :math:`\sigma`.
        bias: Whether the convolution has a bias.
        device: Where the parameters are created.
        dtype: Type of the parameters.

    Shape:
        - input: :math:`(N, C_{in}, H, W)`, any :math:`N`, :math:`H, W \ge 1`;
        - previous: the predecessor's map, :math:`(N, C_{out}, H, W)`, or ``None`` for the first block of a chain, whose
          fused map is its own;
        - output: the refined features and the attention map, both :math:`(N, C_{out}, H, W)`.

    Any value range; the outputs are not bounded.

    Raises:
        ValueError: If a width is below 1, an option is unknown, an input has the wrong shape, or the channel returns
            one.
        TypeError: If an argument is of another type or an input is not floating-point.

    Note:
        A first block that is given a channel with parameters leaves them without a gradient, because there is no map to
        weigh. :class:`DRACBChain` builds its first link without a channel; do likewise by hand.

    Number of parameters:
        ``out_channels * (in_channels + 1)``, and what the channel has; 915 for 60 to 15 channels.

    Source:
        Equations 5 and 6 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import DRACB
        >>> first, second = DRACB(60, 15, communication=None), DRACB(60, 15)
        >>> refined, attention_map = first(torch.rand(1, 60, 24, 17))
        >>> refined, attention_map = second(torch.rand(1, 60, 24, 17), attention_map)
        >>> refined.shape
        torch.Size([1, 15, 24, 17])
        >>> sum(p.numel() for p in second.parameters())
        915
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        communication: CommunicationLike = PAPER_WEIGHT,
        gate: bool = True,
        relay: Relay = "raw",
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_positive_int("DRACB", "in_channels", in_channels)
        self.out_channels = check_positive_int("DRACB", "out_channels", out_channels)
        check_choice("DRACB", "relay", relay, get_args(Relay))
        self.relay: Relay = relay

        self.distill = nn.Conv2d(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)
        self.communication = build_communication(communication, out_channels, device=device, dtype=dtype)
        self.gate = build_layer("DRACB", "gate_layer", gate_layer, device=device, dtype=dtype) if gate else None

    def forward(self, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_feature_map("DRACB", x, self.in_channels)
        attention_map = mix_channels(self.distill, x)
        fused = attention_map
        if previous is not None:
            fused = self.communication(previous, attention_map)
            check_same_shape(
                "DRACB",
                attention_map,
                fused,
                reference_name="the attention map",
                name=f"what {type(self.communication).__name__} returned",
                hint="forward(previous, current) of a communication channel returns a map shaped like current",
            )
        refined = fused if self.gate is None else fused * self.gate(fused)
        return refined, (fused if self.relay == "fused" else attention_map)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, relay={self.relay!r}"


class DRACBChain(nn.Module):
    r"""A chain of :class:`DRACB`, one for each stage of a network, along which attention maps are handed on.

    .. math::
        y_l, F_l = \mathrm{DRACB}_l(x_l, F_{l-1}), \qquad l = 0, 1, \dots

    with no :math:`F_{-1}`, unless the chain is ``continued``; ``relay="fused"`` hands on :math:`F'_l` instead.

    Given all stages at once it returns all refined features. While a network runs, the features of the next stage often
    do not exist yet; then :meth:`step` refines one stage and returns the map to carry to the next.

    Args:
        in_channels: Width of the features, one for all stages or one for each.
        out_channels: Width of the refined features and of the maps, one for all stages or one for each. Where two
            consecutive widths differ, an :class:`~sc_blocks.AdaptedCommunication` stands between them.
        length: Number of stages; may be left out when a sequence above tells it.
        communication: The channel of each link, as in :class:`DRACB`. Every link has one of its own: a factory is
            called, a module is copied, once for each. The first link has no predecessor and no channel, unless
            ``continued``.
        resample: How a map of another height or width than the stage's is resized, ``"bilinear"`` or ``"nearest"``;
            ``None`` if all stages have one size.
        continued: Whether the chain goes on from another one, whose last map, as wide as its own first, its first link
            then takes through a channel of its own.
        gate: As in :class:`DRACB`.
        relay: As in :class:`DRACB`.
        gate_layer: As in :class:`DRACB`.
        bias: Whether the convolutions have biases.
        device: Where the parameters are created.
        dtype: Type of the parameters.

    Shape:
        - input: a sequence of ``length`` maps, the :math:`l`-th :math:`(N, C_{in,l}, H_l, W_l)`;
        - previous: for a continued chain, and only for one, the last map of the chain before,
          :math:`(N, C_{out,1}, H, W)`;
        - output: a list of as many, the :math:`l`-th :math:`(N, C_{out,l}, H_l, W_l)`.

    Any value range; the outputs are not bounded.

    Raises:
        ValueError: If the number of widths or of features does not fit the length, a stage is stepped out of order, or
            a shape is wrong.
        TypeError: If an argument is of another type.

    Number of parameters:
        That of its :class:`DRACB`, ``length * out_channels * (in_channels + 1)`` if all stages have the same widths,
        and what the channels have; 3,660 for four from 60 to 15 channels.

    Source:
        Figures 3 and 4 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import DRACBChain
        >>> chain = DRACBChain(60, 15, 4)
        >>> refined = chain([torch.rand(1, 60, 24, 24) for _ in range(4)])
        >>> len(refined), refined[0].shape
        (4, torch.Size([1, 15, 24, 24]))

        Stage by stage, down a U-Net whose levels shrink and widen:

        >>> chain = DRACBChain([32, 64], [8, 16], resample="bilinear")
        >>> refined, attention_map = chain.step(0, torch.rand(1, 32, 24, 24))
        >>> refined, attention_map = chain.step(1, torch.rand(1, 64, 12, 12), attention_map)
        >>> refined.shape
        torch.Size([1, 16, 12, 12])
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int],
        length: int | None = None,
        *,
        communication: CommunicationLike = PAPER_WEIGHT,
        resample: Resample | None = None,
        continued: bool = False,
        gate: bool = True,
        relay: Relay = "raw",
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.length = _chain_length(in_channels, out_channels, length)
        self.in_channels = _per_stage("in_channels", in_channels, self.length)
        self.out_channels = _per_stage("out_channels", out_channels, self.length)
        check_choice("DRACBChain", "resample", resample, (*get_args(Resample), None))
        self.resample: Resample | None = resample
        self.continued = continued

        link = partial(DRACB, gate=gate, relay=relay, gate_layer=gate_layer, bias=bias, device=device, dtype=dtype)
        links = [] if continued else [link(self.in_channels[0], self.out_channels[0], communication=None)]
        for stage in range(len(links), self.length):
            before, here = self.out_channels[max(stage - 1, 0)], self.out_channels[stage]
            channel = copy.deepcopy(communication) if isinstance(communication, nn.Module) else communication
            if communication is not None and (before != here or resample is not None):
                channel = AdaptedCommunication(
                    before, here, communication=channel, resample=resample, bias=bias, device=device, dtype=dtype
                )
            links.append(link(self.in_channels[stage], here, communication=channel))
        self.links = nn.ModuleList(links)

    def forward(self, features: Sequence[Tensor], previous: Tensor | None = None) -> list[Tensor]:
        if isinstance(features, Tensor) or len(features) != self.length:
            came = "one tensor" if isinstance(features, Tensor) else f"{len(features)}"
            raise ValueError(
                f"DRACBChain: features must be a sequence of {self.length} tensors, one for each stage, got {came}; to "
                "refine one stage at a time use step(stage, x, previous)."
            )
        refined: list[Tensor] = []
        attention_map = previous
        for stage, x in enumerate(features):
            stage_refined, attention_map = self.step(stage, x, attention_map)
            refined.append(stage_refined)
        return refined

    def step(self, stage: int, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Refine one stage.

        Nothing is remembered between steps: that a stage was left out, or that a map is of another one, goes unnoticed
        where the widths agree.

        Args:
            stage: Its number, from 0 to ``length - 1``, in order.
            x: Its features, :math:`(N, C_{in}, H, W)`.
            previous: The map that the step before returned. At stage 0 of a continued chain that of the last step of
                the chain before; at stage 0 of any other, and only there, ``None``.

        Returns:
            The refined features, and the attention map to give to the next step.

        Raises:
            ValueError: If there is no such stage, or ``previous`` does not belong to it.
            TypeError: If ``stage`` is not an integer.

        Example:
            >>> import torch
            >>> from sc_blocks import DRACBChain
            >>> chain = DRACBChain(60, 15, 2)
            >>> refined, attention_map = chain.step(0, torch.rand(1, 60, 24, 17))
            >>> refined, attention_map = chain.step(1, torch.rand(1, 60, 24, 17), attention_map)
            >>> attention_map.shape
            torch.Size([1, 15, 24, 17])
        """
        if isinstance(stage, bool) or not isinstance(stage, int):
            raise TypeError(f"DRACBChain: stage must be an integer, 0 to {self.length - 1}, got {stage!r}.")
        if not 0 <= stage < self.length:
            raise ValueError(
                f"DRACBChain: stage must be 0 to {self.length - 1} for a chain of length {self.length}, got {stage}; "
                f"build the chain with length={stage + 1} or more, or start again at stage 0."
            )
        if (previous is None) != (stage == 0 and not self.continued):
            if stage > 0:
                what = (
                    f"stage {stage} needs the attention map that step({stage - 1}, ...) returned; call step({stage}, "
                    "x, previous)."
                )
            elif self.continued:
                what = (
                    "stage 0 of a continued chain needs the last attention map of the chain before; call step(0, x, "
                    "previous), or build the chain with continued=False."
                )
            else:
                what = (
                    "stage 0 takes no previous map, got one; call step(0, x), or build the chain with continued=True."
                )
            raise ValueError(f"DRACBChain: {what}")
        return self.links[stage](x, previous)

    def extra_repr(self) -> str:
        return f"{list(self.in_channels)}, {list(self.out_channels)}, resample={self.resample!r}"


def _chain_length(in_channels: int | Sequence[int], out_channels: int | Sequence[int], length: int | None) -> int:
    if length is not None:
        return check_positive_int("DRACBChain", "length", length)
    for widths in (in_channels, out_channels):
        if isinstance(widths, Sequence) and len(widths) > 0:
            return len(widths)
    raise ValueError("DRACBChain: length must be given when in_channels and out_channels are single numbers.")


def _per_stage(name: str, widths: int | Sequence[int], length: int) -> tuple[int, ...]:
    if not isinstance(widths, Sequence):
        return (check_positive_int("DRACBChain", name, widths),) * length
    if len(widths) != length:
        raise ValueError(f"DRACBChain: {name} must hold one width for each of {length} stages, got {list(widths)}.")
    return tuple(check_positive_int("DRACBChain", f"{name}[{stage}]", width) for stage, width in enumerate(widths))
