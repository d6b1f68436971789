"""The communication channel: how an attention map reaches the next block.

A channel is any module with ``forward(previous, current) -> fused``: it takes the maps of the previous and the current
block, and returns a map of the shape of ``current``. Custom channels receive copies, so they may work in place.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks import _checks

Resample = Literal["bilinear", "nearest"]

#: Type of every ``communication`` argument, see :class:`~sc_blocks.DRACB`.
CommunicationLike = nn.Module | Callable[[int], nn.Module] | float | None

#: Default of every ``communication`` argument: the paper's :math:`W` in equation 5.
PAPER_WEIGHT = 0.2
_HINT = f"the paper's is {PAPER_WEIGHT}"
_WANTED = "a module with forward(previous, current), a factory channels -> module, a number or None"


class NoCommunication(nn.Module):
    r"""No communication: :math:`F' = F_l`. ``communication=None`` builds this channel.

    Shape:
        - current: :math:`(N, C, H, W)`; the output is ``current`` itself, and ``previous`` is not read.

    Number of parameters:
        ``0``.

    Source:
        The third row of table 4 of the MREN paper: a chain with gates and without communication.

    Example:
        >>> import torch
        >>> from sc_blocks import NoCommunication
        >>> previous, current = torch.rand(2, 1, 15, 8, 8)
        >>> NoCommunication()(previous, current) is current
        True
    """

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        return current


class FixedCommunication(nn.Module):
    r"""The paper's communication with a fixed weight: :math:`F' = W F_{l-1} + F_l`. A number builds this channel.

    Args:
        weight: :math:`W`, any finite number; the paper tries 0 to 1 in table 2.

    Shape:
        - previous, current, output: :math:`(N, C, H, W)`.

    Raises:
        ValueError: If ``weight`` is not finite, or the maps differ in shape.
        TypeError: If ``weight`` is not a number.

    Number of parameters:
        ``0``.

    Source:
        Equation 5 of the MREN paper, with :math:`W = 0.2`.

    Example:
        >>> import torch
        >>> from sc_blocks import FixedCommunication
        >>> channel = FixedCommunication(0.2)
        >>> channel(torch.ones(1, 15, 8, 8), torch.ones(1, 15, 8, 8)).unique()
        tensor([1.2000])
    """

    def __init__(self, weight: float = PAPER_WEIGHT) -> None:
        super().__init__()
        self.weight = _checks.check_number("FixedCommunication", "weight", weight, hint=_HINT)

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        _check_maps("FixedCommunication", previous, current)
        return current + self.weight * previous

    def extra_repr(self) -> str:
        return f"{self.weight}"


LinearCommunication = FixedCommunication  # renamed since 0.1.0: some initialisers took it for a linear layer


class LearnableCommunication(nn.Module):
    r"""Communication with a learned weight: :math:`F' = W \odot F_{l-1} + F_l`.

    Args:
        channels: Width of the maps.
        per_channel: Whether each channel has its own weight; otherwise all share one.
        init: Initial value of the weights. Exclude them from weight decay, which would pull them to 0. Rules that
            exempt one-dimensional parameters miss them, because their shape is ``(C, 1, 1)``.
        device, dtype: Device and dtype of the parameter.

    Shape:
        - previous, current, output: :math:`(N, C, H, W)` with :math:`C` = ``channels`` if ``per_channel``; a shared
          weight accepts maps of any width.

    Raises:
        ValueError: If ``channels`` is below 1, ``init`` is not finite, or a map has the wrong shape.
        TypeError: If an argument has the wrong type.

    Number of parameters:
        ``channels if per_channel else 1``.

    Source:
        Ours.

    Example:
        >>> import torch
        >>> from sc_blocks import LearnableCommunication
        >>> channel = LearnableCommunication(15, per_channel=True)
        >>> channel(torch.rand(1, 15, 8, 8), torch.rand(1, 15, 8, 8)).shape
        torch.Size([1, 15, 8, 8])
        >>> channel.weight.shape
        torch.Size([15, 1, 1])
    """

    def __init__(
        self,
        channels: int,
        *,
        per_channel: bool = False,
        init: float = PAPER_WEIGHT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = _checks.check_int("LearnableCommunication", "channels", channels)
        self.per_channel = _checks.check_flag("LearnableCommunication", "per_channel", per_channel)
        self.init = _checks.check_number("LearnableCommunication", "init", init, hint=_HINT)
        self.weight = nn.Parameter(torch.empty(self.channels if per_channel else 1, 1, 1, device=device, dtype=dtype))
        if abs(self.init) > torch.finfo(self.weight.dtype).max:
            raise ValueError(f"LearnableCommunication: init must fit {self.weight.dtype}, got {self.init:g}; {_HINT}.")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights to ``init``."""
        nn.init.constant_(self.weight, self.init)

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        # A shared weight accepts maps of any width, such as those of a pruned block.
        width = self.weight.shape[0] if self.per_channel else None
        _check_maps("LearnableCommunication", previous, current, width)
        # .to(): under autocast the maps have lower precision than the weight, and the result must not be promoted.
        return current + self.weight.to(current.dtype) * previous

    def extra_repr(self) -> str:
        return f"{self.channels}, per_channel={self.per_channel}, init={self.init}"


class GatedCommunication(nn.Module):
    r"""Gated communication: a gate computed from both maps weights every value of the previous map.

    .. math::
        F' = \sigma(W_g [F_{l-1}, F_l] + b_g) \odot F_{l-1} + F_l

    :math:`W_g` is initialised to zero, and :math:`b_g` such that the gate equals ``init`` everywhere.

    Args:
        channels: Width of the maps.
        init: The gate's value before training, strictly between 0 and 1.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - previous, current, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``.

    Raises:
        ValueError: If ``channels`` is below 1, ``init`` is out of range, or a map has the wrong shape.
        TypeError: If an argument has the wrong type.

    Number of parameters:
        ``channels * (2 * channels + 1)``; 465 at 15 channels.

    Source:
        Ours.

    Example:
        >>> import torch
        >>> from sc_blocks import GatedCommunication
        >>> channel = GatedCommunication(15)
        >>> channel(torch.ones(1, 15, 8, 8), torch.ones(1, 15, 8, 8)).unique()
        tensor([1.2000], grad_fn=<Unique2Backward0>)
    """

    def __init__(
        self,
        channels: int,
        *,
        init: float = PAPER_WEIGHT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = _checks.check_int("GatedCommunication", "channels", channels)
        self.init = _checks.check_number("GatedCommunication", "init", init, hint=_HINT)
        if not 0 < self.init < 1:
            raise ValueError(f"GatedCommunication: init must lie strictly between 0 and 1, got {self.init}; {_HINT}.")
        self.weigh = nn.Conv2d(2 * self.channels, self.channels, 1, device=device, dtype=dtype)
        # Not a subclass of nn.Conv2d: many tools reset parameters module by module and check for exact types.
        self.weigh.reset_parameters = self._reset_weigh
        self.gate = nn.Sigmoid()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gate to ``init`` everywhere."""
        nn.init.zeros_(self.weigh.weight)
        if self.weigh.bias is not None:
            nn.init.constant_(self.weigh.bias, math.log(self.init / (1 - self.init)))

    def _reset_weigh(self) -> None:
        nn.Conv2d.reset_parameters(self.weigh)  # draws as many random numbers as the constructor did
        self.reset_parameters()

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        _check_maps(
            "GatedCommunication", previous, current, _checks.width_of(self.weigh, "out_channels", self.channels)
        )
        gate = self.gate(self.weigh(torch.cat([previous, current], dim=1)))
        return current + gate * previous

    def extra_repr(self) -> str:
        return f"{self.channels}, init={self.init}"


class AdaptedCommunication(nn.Module):
    r"""A channel for maps of different widths or sizes: adapts the previous map to the current one, then fuses them.

    .. math::
        F' = \mathrm{channel}(\mathrm{resample}(P F_{l-1}),\; F_l)

    :math:`P` is a 1x1 convolution if the widths differ, and the identity otherwise.

    Args:
        previous_channels: Width of the previous map.
        channels: Width of the current map.
        communication: The channel that fuses the adapted map, in any form that :class:`~sc_blocks.DRACB` takes.
        resample: How the previous map is resized to the height and width of the current one.

            - ``"bilinear"``: interpolated with ``align_corners=False``, without antialiasing when downsampling;
            - ``"nearest"``: nearest-neighbour interpolation;
            - ``None``: not resized; maps of different sizes are an error.
        bias: Whether the projection has a bias.
        device, dtype: Device and dtype of the parameters.

    Shape:
        - previous: :math:`(N, C', H', W')` with :math:`C'` = ``previous_channels``;
        - current, output: :math:`(N, C, H, W)` with :math:`C` = ``channels``.

    Raises:
        ValueError: If a width is below 1, ``resample`` is unknown, or a map has the wrong shape.
        TypeError: If an argument has the wrong type.

    Number of parameters:
        ``channels * (previous_channels + 1) if previous_channels != channels else 0``, plus those of the channel.

    Source:
        Ours.

    Example:
        >>> import torch
        >>> from sc_blocks import AdaptedCommunication
        >>> channel = AdaptedCommunication(30, 15)
        >>> channel(torch.rand(1, 30, 8, 8), torch.rand(1, 15, 16, 16)).shape
        torch.Size([1, 15, 16, 16])
    """

    def __init__(
        self,
        previous_channels: int,
        channels: int,
        *,
        communication: CommunicationLike = PAPER_WEIGHT,
        resample: Resample | None = "bilinear",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.previous_channels = _checks.check_int("AdaptedCommunication", "previous_channels", previous_channels)
        self.channels = _checks.check_int("AdaptedCommunication", "channels", channels)
        _checks.check_choice("AdaptedCommunication", "resample", resample, (*get_args(Resample), None))
        self.resample: Resample | None = resample
        bias = _checks.check_flag("AdaptedCommunication", "bias", bias)
        self.project: nn.Module = nn.Identity()
        if self.previous_channels != self.channels:
            self.project = nn.Conv2d(self.previous_channels, self.channels, 1, bias=bias, device=device, dtype=dtype)
        self.communication = build_communication(
            communication, self.channels, block="AdaptedCommunication", device=device, dtype=dtype
        )

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        # The projection has the widths, even after pruning; without one they are equal, and the channel checks that.
        before, now = (getattr(self.project, name, None) for name in ("in_channels", "out_channels"))
        _checks.check_feature_map("AdaptedCommunication", previous, before, name="previous")
        _checks.check_feature_map("AdaptedCommunication", current, now, name="current")
        adapted = self.project(previous)
        if self.resample is not None:
            align_corners = False if self.resample == "bilinear" else None
            adapted = F.interpolate(adapted, current.shape[2:], mode=self.resample, align_corners=align_corners)
        return self.communication(adapted, current)

    def extra_repr(self) -> str:
        return f"{self.previous_channels}, {self.channels}, resample={self.resample!r}"


def build_communication(
    communication: CommunicationLike,
    channels: int,
    *,
    block: str = "build_communication",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Build the module for a ``communication`` argument.

    The classes :class:`~sc_blocks.NoCommunication` and :class:`~sc_blocks.FixedCommunication` take no width, and are
    called without arguments.

    Args:
        communication: A module, factory, number or ``None``, as in :class:`~sc_blocks.DRACB`.
        channels: Width of the maps, passed to a factory.
        block: Name at the start of error messages.
        device: Device of the parameters; ``None`` leaves it unchanged.
        dtype: Type of the parameters; ``None`` leaves it unchanged.

    Raises:
        TypeError: If ``communication`` is none of these, a factory does not return a module, or the ``forward`` of the
            module does not take two maps.
        ValueError: If the module is for maps of another width.

    Example:
        >>> from sc_blocks import LearnableCommunication
        >>> from sc_blocks.communication import build_communication
        >>> build_communication(0.2, 15), build_communication(LearnableCommunication, 15)
        (FixedCommunication(0.2), LearnableCommunication(15, per_channel=False, init=0.2))
    """
    if communication is None or communication is NoCommunication:
        return NoCommunication()
    if communication is FixedCommunication:
        return FixedCommunication()  # a width would be taken for the weight
    if isinstance(communication, nn.Module):
        _check_channel(block, communication, channels)
        return _checks.moved(communication, device, dtype)
    if isinstance(communication, Real) and not isinstance(communication, bool):
        return FixedCommunication(cast(float, communication))
    if not callable(communication):
        got = f"{_checks.shown(communication)} ({type(communication).__name__})"
        raise TypeError(f"{block}: communication must be {_WANTED}, got {got}; {_HINT}.")
    try:
        built: Any = communication(channels)
    except TypeError as error:
        if not _checks.is_mismatch(error):
            raise
        got = f"{_checks.shown(communication)}, which fails for {channels} channels: {error}"
        raise TypeError(f"{block}: communication must be {_WANTED}, got {got}.") from error
    _checks.check_module(block, f"what the factory {communication!r} returns for {channels} channels", built)
    _check_channel(block, built, channels)
    return _checks.moved(built, device, dtype)


def _check_channel(block: str, channel: nn.Module, channels: int) -> None:
    """Raise unless the forward of a channel can be called with two maps, and is not for maps of another width."""
    if isinstance(channel, torch.jit.ScriptModule):  # its signature is missing or wrong
        return
    parameters = inspect.signature(channel.forward)
    try:
        parameters.bind(None, None)
    except TypeError as error:
        got = f"{type(channel).__name__}, whose forward takes {parameters}"
        raise TypeError(f"{block}: communication must be {_WANTED}, got {got}; {_HINT}.") from error
    width = _width_of(channel)
    if width not in (None, channels):
        got = f"{type(channel).__name__} for {width}"
        hint = "pass the class or a functools.partial of it, which is called with the width"
        raise ValueError(f"{block}: communication must be for maps of {channels} channels, got {got}; {hint}.")


def _width_of(channel: nn.Module) -> int | None:
    """Return the width of the maps that a channel takes; ``None`` if it takes any, or has a forward of its own."""
    forward = type(channel).forward  # not the type: parametrizations make a subclass
    if isinstance(channel, LearnableCommunication) and forward is LearnableCommunication.forward:
        # A shared weight takes any width, such as that of a pruned block.
        return channel.weight.shape[0] if channel.per_channel else None
    if isinstance(channel, GatedCommunication) and forward is GatedCommunication.forward:
        return _checks.width_of(channel.weigh, "out_channels", channel.channels)
    if isinstance(channel, AdaptedCommunication) and forward is AdaptedCommunication.forward:
        if isinstance(channel.project, nn.Identity):
            return _width_of(channel.communication)
        return _checks.width_of(channel.project, "out_channels", channel.channels)
    return None


def works_on_copies(channel: nn.Module) -> bool:
    """Whether a channel receives copies of the maps. All but those of this library do: they may work in place.

    Example:
        >>> from torch import nn
        >>> from sc_blocks import FixedCommunication
        >>> from sc_blocks.communication import works_on_copies
        >>> works_on_copies(FixedCommunication()), works_on_copies(nn.Bilinear(4, 4, 4))
        (False, True)
    """
    if type(channel) is AdaptedCommunication:
        return works_on_copies(channel.communication)
    return type(channel) not in (NoCommunication, FixedCommunication, LearnableCommunication, GatedCommunication)


def _check_maps(block: str, previous: Tensor, current: Tensor, channels: int | None = None) -> None:
    _checks.check_feature_map(block, current, channels, name="current")
    _checks.check_feature_map(block, previous, None, name="previous")
    adapter = "AdaptedCommunication(previous_channels, channels)"
    other = f"wrap the channel in {adapter}, or build a DRACBChain with resample='bilinear'"
    hint = f"pass maps of the same batch; for other widths or sizes, {other}"
    _checks.check_same_shape(f"{block}: previous", previous, "current", current, hint=hint)
