"""Double refinement attention communication blocks, single and in a chain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn

from sc_blocks import _checks
from sc_blocks.communication import (
    PAPER_WEIGHT,
    AdaptedCommunication,
    CommunicationLike,
    Resample,
    build_communication,
    works_on_copies,
)

Relay = Literal["raw", "fused"]


class DRACB(nn.Module):
    r"""Double refinement attention communication block: distil, fuse with the predecessor's map, gate.

    One 1x1 convolution distils the features into an attention map. The map is fused with that of the predecessor, and
    the fused map gates itself:

    .. math::
        F_l &= \mathrm{conv}_{1 \times 1}(x_l) \\
        F'_l &= W F_{l-1} + F_l \\
        y_l &= F'_l \odot \sigma(F'_l)

    Args:
        in_channels: Width of the input.
        out_channels: Width of the refined features and of the attention map.
        communication: How the predecessor's map is fused with the block's own.

            - a number: a fixed weight, :class:`~sc_blocks.FixedCommunication`;
            - a factory ``channels -> module``, such as :class:`~sc_blocks.GatedCommunication`;
            - a module with ``forward(previous, current) -> fused``, used as is; it may work in place;
            - ``None``: no communication.
        gate: Whether the fused map gates itself (SiLU with the default sigmoid); otherwise :math:`y_l = F'_l`.
        relay: Which map is passed on.

            - ``"raw"``: :math:`F_l`, as in equation 5;
            - ``"fused"``: :math:`F'_l`, which also carries the maps of earlier blocks.
        gate_layer: Called without arguments to build :math:`\sigma`; the layer may work in place.
        bias: Whether the convolution has a bias.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - input: :math:`(N, C_{in}, H, W)`, any :math:`N`, :math:`H, W \ge 1`;
        - previous: the predecessor's map, :math:`(N, C_{out}, H, W)`, or ``None`` for the first block of a chain: the
          fused map is then the block's own, and the channel's parameters get no gradient;
        - output: the refined features and the attention map, two tensors of :math:`(N, C_{out}, H, W)`.

        Any value range; the outputs are unbounded.

    Raises:
        ValueError: If an argument is out of range, or an input or the channel's output has the wrong shape.
        TypeError: If an argument has the wrong type or an input is not floating-point.

    Number of parameters:
        ``out_channels * (in_channels + 1)``, plus those of the communication channel; 915 for 60 to 15 channels.

    Source:
        Section 3.3, figure 3 and equations 5 and 6 of the MREN paper; variants in tables 2 and 4.

    Example:
        >>> import torch
        >>> from sc_blocks import DRACB
        >>> first, second = DRACB(60, 15, communication=None), DRACB(60, 15)
        >>> refined, attention_map = first(torch.rand(1, 60, 24, 17))
        >>> refined, attention_map = second(torch.rand(1, 60, 24, 17), attention_map)
        >>> refined.shape
        torch.Size([1, 15, 24, 17])
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
        self.in_channels = _checks.check_int("DRACB", "in_channels", in_channels)
        self.out_channels = _checks.check_int("DRACB", "out_channels", out_channels)
        _checks.check_choice("DRACB", "relay", relay, get_args(Relay))
        self.relay: Relay = relay
        gate, bias = _checks.check_flag("DRACB", "gate", gate), _checks.check_flag("DRACB", "bias", bias)

        self.distill = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=bias, device=device, dtype=dtype)
        self.communication = build_communication(
            communication, self.out_channels, block="DRACB", device=device, dtype=dtype
        )
        self.gate = _checks.build_layer("DRACB", "gate_layer", gate_layer, device=device, dtype=dtype) if gate else None

    def forward(self, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _checks.check_feature_map("DRACB", x, _checks.width_of(self.distill, "in_channels", self.in_channels))
        attention_map = self.distill(x)
        fused = attention_map
        if previous is not None:
            maps = (previous, attention_map)
            if works_on_copies(self.communication):
                maps = (previous.clone(), attention_map.clone())
            fused = self.communication(*maps)
            output = f"DRACB: the output of {type(self.communication).__name__}"
            hint = "forward(previous, current) of a communication channel must return a map shaped like current"
            _checks.check_same_shape(output, fused, "the attention map", attention_map, hint=hint)
        # Channels, layers and callers may work in place. The clones protect the map that is passed on.
        refined = fused.clone() if self.gate is None else fused * self.gate(fused.clone())
        return refined, (fused if self.relay == "fused" else attention_map)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, relay={self.relay!r}"


class DRACBChain(nn.Module):
    r"""A chain of :class:`DRACB` modules, one per stage of a network, that passes attention maps from stage to stage.

    .. math::
        y_l, F_l = \mathrm{DRACB}_l(x_l, F_{l-1}), \qquad l = 0, 1, \dots

    The first stage has no :math:`F_{-1}`, unless the chain takes one. If a stage of your network reads the
    refined features of the previous stage, call :meth:`step` for one stage at a time. ``chain.links`` holds the DRACBs.

    Args:
        in_channels: Width of the features, one for all stages or one per stage.
        out_channels: Width of the refined features and of the maps, one for all stages or one per stage. Where two
            consecutive widths differ, an :class:`~sc_blocks.AdaptedCommunication` adapts the map.
        length: Number of stages; needed only if both widths are single numbers.
        communication: As in :class:`DRACB`. Every DRACB has its own communication channel: a factory is called once for
            each, a module is copied. The first DRACB has none unless ``takes_map`` is set.
        resample: As in :class:`~sc_blocks.AdaptedCommunication`; ``None`` if all stages share one height and width.
        takes_map: Whether the first stage takes the last map of another chain, of the same width as its own.
        returns_map: Whether the chain also returns the map of its last stage, for a chain that takes one.
        gate, relay, gate_layer: As in :class:`DRACB`.
        bias: Whether the convolutions have biases.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - features: a sequence of ``length`` maps, the :math:`l`-th :math:`(N, C_{in,l}, H_l, W_l)`;
        - previous: with ``takes_map``, and only then, the last map of the previous chain, :math:`(N, C_{out,0}, H, W)`;
        - stage: set by :meth:`step`, to refine that stage alone;
        - output: a tuple of ``length`` maps, the :math:`l`-th :math:`(N, C_{out,l}, H_l, W_l)`; with ``returns_map``
          that tuple and the map of the last stage. Any value range; the outputs are unbounded.

    Raises:
        ValueError: If the number of widths or features or a shape is wrong, or ``previous`` is missing or unexpected.
        TypeError: If an argument has the wrong type.

    Number of parameters:
        ``length * out_channels * (in_channels + 1)`` if all stages have the same widths, plus those of the
        communication channels; 3,660 for four from 60 to 15 channels.

    Source:
        Figures 3 and 4 of the MREN paper.

    Example:
        >>> import torch
        >>> from sc_blocks import DRACBChain
        >>> chain = DRACBChain(60, 15, 4)
        >>> refined = chain([torch.rand(1, 60, 24, 24) for _ in range(4)])
        >>> len(refined), refined[0].shape
        (4, torch.Size([1, 15, 24, 24]))
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int],
        length: int | None = None,
        *,
        communication: CommunicationLike = PAPER_WEIGHT,
        resample: Resample | None = None,
        takes_map: bool = False,
        returns_map: bool = False,
        gate: bool = True,
        relay: Relay = "raw",
        gate_layer: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = _widths_by_stage(in_channels, out_channels, length)
        self.length = len(self.in_channels)
        _checks.check_choice("DRACBChain", "resample", resample, (*get_args(Resample), None))
        self.resample: Resample | None = resample
        self.takes_map = _checks.check_flag("DRACBChain", "takes_map", takes_map)
        self.returns_map = _checks.check_flag("DRACBChain", "returns_map", returns_map)

        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        link = partial(DRACB, gate=gate, relay=relay, gate_layer=gate_layer, **options)
        links = [] if self.takes_map else [link(self.in_channels[0], self.out_channels[0], communication=None)]
        for stage in range(len(links), self.length):
            before, here = self.out_channels[max(stage - 1, 0)], self.out_channels[stage]
            channel = copy.deepcopy(communication) if isinstance(communication, nn.Module) else communication
            if communication is not None and (before != here or resample is not None):
                channel = partial(AdaptedCommunication, before, communication=channel, resample=resample, **options)
            links.append(link(self.in_channels[stage], here, communication=channel))
        self.links = nn.ModuleList(links)

    def forward(
        self, features: Sequence[Tensor] | Tensor, previous: Tensor | None = None, *, stage: int | None = None
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], Tensor] | tuple[Tensor, Tensor]:
        if stage is not None and not isinstance(stage, torch.fx.Proxy):
            return self.links[self._check_stage(stage, previous)](features, previous)
        _check_features(features, self.length)
        _checks.check_previous_map("DRACBChain", previous, takes_map=self.takes_map)
        attention_map: Any = previous if self.takes_map else None
        refined: list[Tensor] = []
        for number, link in enumerate(self.links):
            if isinstance(link, DRACB):  # a replacement checks its own input
                width = _checks.width_of(link.distill, "in_channels", self.in_channels[number])
                _checks.check_feature_map("DRACBChain", features[number], width, name=f"features[{number}]")
            stage_refined, attention_map = link(features[number], attention_map)
            refined.append(stage_refined)
        return (tuple(refined), attention_map) if self.returns_map else tuple(refined)

    def step(self, stage: int, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Refine one stage, and return its refined features and the attention map for the next step.

        The chain keeps no state between steps, so it cannot detect a skipped step.

        Args:
            stage: Index of the stage, from 0 to ``length - 1``, in order.
            x: Features of the stage, :math:`(N, C_{in}, H, W)`.
            previous: The map that the previous step returned; ``None`` at stage 0 unless the chain takes a map.

        Raises:
            ValueError: If there is no such stage, ``previous`` is missing or unexpected, or a shape is wrong.
            TypeError: If ``stage`` is not an integer.

        Example:
            >>> import torch
            >>> from sc_blocks import DRACBChain
            >>> chain = DRACBChain([32, 64], [8, 16], resample="bilinear")
            >>> refined, attention_map = chain.step(0, torch.rand(1, 32, 24, 24))
            >>> refined, attention_map = chain.step(1, torch.rand(1, 64, 12, 12), attention_map)
            >>> refined.shape
            torch.Size([1, 16, 12, 12])
        """
        stage = _checks.check_int("DRACBChain", "stage", stage, least=0)
        # Through the chain's own call, so that hooks run, wrappers such as FSDP see every step, and compile() has an
        # effect.
        return self(x, previous, stage=stage)

    def _check_stage(self, stage: int, previous: Tensor | None) -> int:
        number = _checks.check_int("DRACBChain", "stage", stage, least=0)
        if number >= self.length:
            raise ValueError(f"DRACBChain: stage must be below {self.length}, got {number}; use length={number + 1}.")
        if number == 0:
            _checks.check_previous_map("DRACBChain", previous, takes_map=self.takes_map)
        elif previous is None:
            needed = f"the map that step({number - 1}, ...) returned"
            raise ValueError(f"DRACBChain: previous must be {needed}, got None; call step({number}, x, previous).")
        return number

    def extra_repr(self) -> str:
        maps = f"takes_map={self.takes_map}, returns_map={self.returns_map}"
        return f"{list(self.in_channels)}, {list(self.out_channels)}, resample={self.resample!r}, {maps}"


def _widths_by_stage(
    in_channels: int | Sequence[int], out_channels: int | Sequence[int], length: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    given = {"in_channels": in_channels, "out_channels": out_channels}
    lengths = [len(widths) for widths in given.values() if isinstance(widths, Sequence) and len(widths) > 0]
    if length is None and not lengths:
        wanted = "length must be given, or in_channels or out_channels as a list with a width for each stage"
        raise ValueError(f"DRACBChain: {wanted}.")
    length = _checks.check_int("DRACBChain", "length", lengths[0] if length is None else length)
    checked: list[tuple[int, ...]] = []
    for name, widths in given.items():
        if not isinstance(widths, Sequence):
            widths = [_checks.check_int("DRACBChain", name, widths)] * length
        elif len(widths) != length:
            raise ValueError(f"DRACBChain: {name} must hold one width for each of {length} stages, got {list(widths)}.")
        checked.append(tuple(_checks.check_int("DRACBChain", f"{name}[{n}]", w) for n, w in enumerate(widths)))
    return checked[0], checked[1]


def _check_features(features: Sequence[Tensor] | Tensor, length: int) -> None:
    if not isinstance(features, (Sequence, Tensor)):
        raise TypeError(f"DRACBChain: features must be a list of {length} tensors, got {type(features).__name__}.")
    got = "one tensor" if isinstance(features, Tensor) else len(features)
    if got != length:
        hint = "to refine one stage at a time use step(stage, x, previous)"
        raise ValueError(f"DRACBChain: features must be a sequence of {length} tensors, got {got}; {hint}.")


# A leaf for torch.fx: a traced chain still checks its features.
torch.fx.wrap("_check_features")
