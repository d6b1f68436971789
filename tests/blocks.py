"""Every public block with its main options, each as a module from one NCHW tensor to one, and what tests need of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.mren.model import MREN
from sc_blocks import (
    DRACB,
    MREB,
    RBWA,
    SCACB,
    WSILB,
    WSILBV,
    AdaptedCommunication,
    DRACBChain,
    FixedCommunication,
    GatedCommunication,
    LearnableCommunication,
)


class Linked(nn.Module):
    """A DRACB with a predecessor, whose map is a part of the input, ``step`` pixels apart."""

    def __init__(self, block: DRACB, *, width: int, step: int = 1) -> None:
        super().__init__()
        self.block, self.width, self.step = block, width, step

    def forward(self, x: Tensor) -> Tensor:
        previous = x[:, -self.width :, :: self.step, :: self.step]
        return torch.cat(self.block(x, previous), dim=1)


class Unlinked(nn.Module):
    """A DRACB at the head of a chain."""

    def __init__(self, block: DRACB) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.block(x), dim=1)


class Chained(nn.Module):
    """A chain whose stages see parts of the input, the l-th ``steps[l]`` pixels apart; its results at full size."""

    def __init__(self, chain: DRACBChain, *, steps: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.chain, self.steps = chain, steps or (1,) * chain.length

    def stages(self, x: Tensor) -> list[Tensor]:
        # The stage's number sets its maps apart, so that swapped stages show.
        return [
            (x[:, :width] + stage)[:, :, ::step, ::step]
            for stage, (width, step) in enumerate(zip(self.chain.in_channels, self.steps, strict=True))
        ]

    def forward(self, x: Tensor) -> Tensor:
        refined = self.chain(self.stages(x))
        if max(self.steps) > 1:
            refined = [F.interpolate(map_, x.shape[2:], mode="nearest") for map_ in refined]
        return torch.cat(refined, dim=1)


class Carried(nn.Module):
    """Two MREBs, the second of which continues the chain of the first; its result and its last map."""

    def __init__(self, channels: int, **options) -> None:
        super().__init__()
        self.first = MREB(channels, returns_map=True, **options)
        self.second = MREB(channels, takes_map=True, returns_map=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.second(*self.first(x)), dim=1)


def linked(*widths: int, previous: int, step: int = 1, **options) -> Linked:
    return Linked(DRACB(*widths, **options), width=previous, step=step)


def unlinked(*widths: int, **options) -> Unlinked:
    return Unlinked(DRACB(*widths, **options))


def chained(*widths, steps: tuple[int, ...] | None = None, **options) -> Chained:
    return Chained(DRACBChain(*widths, **options), steps=steps)


def adapted(channels: int) -> AdaptedCommunication:
    return AdaptedCommunication(6, channels, communication=GatedCommunication)


@dataclass(frozen=True)
class Case:
    """One block, built by ``factory(device=..., dtype=...)``."""

    name: str
    factory: Callable[..., nn.Module]
    channels: int
    out_channels: int
    scale: Fraction = Fraction(1)
    size_multiple: int = 1

    def build(self, *, perturbed: bool = True, **options) -> nn.Module:
        """The block; ``perturbed`` moves its parameters off their starting values, some of which are zero."""
        module = self.factory(**options)
        if perturbed:
            perturb(module)
        return module

    def input(self, batch: int = 2, height: int = 8, width: int = 10, **options) -> Tensor:
        return torch.randn(batch, self.channels, height, width, **options)

    def small_input(self, batch: int = 1, **options) -> Tensor:
        """As small as laws that run a block often can be tested with; no side equals a number of channels."""
        height, width = (5, 7) if self.size_multiple == 1 else (6, 10)
        return self.input(batch, height, width, **options)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        batch, _, height, width = shape
        return batch, self.out_channels, int(height * self.scale), int(width * self.scale)


def perturb(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _case(name: str, factory: Callable[..., nn.Module], *args, out: int | None = None, **options) -> Case:
    case_options = {key: options.pop(key) for key in ("scale", "size_multiple") if key in options}
    channels = args[0] if isinstance(args[0], int) else max(args[0])
    return Case(name, partial(factory, *args, **options), channels, out or channels, **case_options)


def _mren(scale: int, **options) -> Case:
    factory = partial(MREN, scale, channels=12, num_blocks=1, **options)
    return Case("-".join(["mren", f"x{scale}", *options]), factory, 3, 3, Fraction(scale))


CASES = [
    _case("scacb", SCACB, 12),
    _case("scacb-uneven", SCACB, 14),
    _case("scacb-spatial", SCACB, 12, parts="spatial"),
    _case("scacb-channel", SCACB, 12, parts="channel"),
    _case("scacb-inputs", SCACB, 12, exchange="inputs"),
    _case("scacb-apart", SCACB, 12, exchange=None),
    _case("scacb-no_residual", SCACB, 12, residual=False),
    _case("scacb-no_bias", SCACB, 12, bias=False, act_layer=nn.SiLU),
    _case("dracb-first", unlinked, 12, 4, out=8, communication=None),
    _case("dracb-none", linked, 12, 4, previous=4, out=8, communication=None),
    _case("dracb-linear", linked, 12, 4, previous=4, out=8),
    _case("dracb-no_gate", linked, 12, 4, previous=4, out=8, gate=False),
    _case("dracb-fused", linked, 12, 4, previous=4, out=8, relay="fused"),
    _case("dracb-no_bias", linked, 12, 4, previous=4, out=8, bias=False),
    _case("dracb-learnable", linked, 12, 4, previous=4, out=8, communication=LearnableCommunication),
    _case(
        "dracb-per_channel",
        linked,
        12,
        4,
        previous=4,
        out=8,
        communication=partial(LearnableCommunication, per_channel=True),
    ),
    _case("dracb-gated", linked, 12, 4, previous=4, out=8, communication=GatedCommunication),
    _case("dracb-adapted", linked, 12, 4, previous=6, step=2, out=8, communication=adapted),
    _case("chain-none", chained, 12, 4, 3, out=12, communication=None),
    _case("chain-linear", chained, 12, 4, 3, out=12),
    _case("chain-one", chained, 12, 4, 1, out=4),
    _case("chain-module", chained, 12, 4, 3, out=12, communication=FixedCommunication(0.5)),
    _case("chain-learnable", chained, 12, 4, 3, out=12, communication=LearnableCommunication),
    _case("chain-gated", chained, 12, 4, 3, out=12, communication=GatedCommunication, relay="fused"),
    _case("chain-widths", chained, [12, 8, 12], [4, 6, 4], out=14, communication=LearnableCommunication),
    _case("chain-widths-none", chained, [12, 8], [4, 6], out=10, communication=None),
    _case("chain-bilinear", chained, 12, [4, 6, 6], steps=(1, 2, 1), out=16, resample="bilinear"),
    _case("chain-nearest", chained, 12, 4, 3, steps=(2, 1, 4), out=12, resample="nearest"),
    _case("wsilb", WSILB, 6),
    _case("wsilb-no_bias", WSILB, 6, bias=False),
    _case("wsilb-local", WSILB, 6, local=(3, 4)),
    _case("wsilbv", WSILBV, 8),
    _case("wsilbv-uneven", WSILBV, 10, act_layer=nn.SiLU, gate_layer=nn.Tanh),
    _case("wsilbv-local", WSILBV, 8, local=(4, 3)),
    _case("rbwa-x2", RBWA, 8, scale=2),
    _case("rbwa-x2-narrower", RBWA, 8, 4, out=4, scale=2, bias=False),
    _case("rbwa-x1.5", RBWA, 8, scale_factor=1.5, scale=Fraction(3, 2), size_multiple=2),
    _case("rbwa-x1", RBWA, 8, scale_factor=1, scale=1),
    _case("mreb", MREB, 12),
    _case("mreb-gated", MREB, 12, communication=GatedCommunication, relay="fused", exchange="inputs"),
    _case("mreb-stages", MREB, 12, num_stages=2, distilled_channels=5, gate=False, communication=None),
    _case("mreb-carried", Carried, 12, out=15, num_stages=1),
    _case("mreb-carried-gated", Carried, 12, out=15, num_stages=1, communication=GatedCommunication, relay="fused"),
    _case("mreb-spatial", MREB, 12, parts="spatial", residual=False, bias=False, communication=LearnableCommunication),
    _mren(2),
    _mren(3),
    _mren(4),
    _mren(4, communication=LearnableCommunication),
]

BY_NAME = {case.name: case for case in CASES}

each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])

#: Large, and different from others only in parts that other cases try alone.
HEAVY = {"mreb-stages", "mreb-spatial", "mren-x2", "mren-x3", "mren-x4-communication"}
#: Made of blocks that are cases of their own; "mreb-gated" is left.
COMPOSED = HEAVY | {"mreb", "mreb-carried", "mreb-carried-gated", "mren-x4"}


def each_case_but(slow: set[str]) -> pytest.MarkDecorator:
    """Parametrise over all cases, and leave some to the slow tests."""
    marked = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name in slow)) for case in CASES]
    return pytest.mark.parametrize("case", marked)


most_cases = each_case_but(HEAVY)


def cases(*names: str) -> pytest.MarkDecorator:
    """Parametrise over some of the cases."""
    return pytest.mark.parametrize("case", [BY_NAME[name] for name in names], ids=names)


#: Relative and absolute tolerance of one result reached in two ways, by the type that it was computed in.
TOLERANCES = {
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (4e-2, 4e-2),
}


def assert_close(actual: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Equal up to the rounding of ``dtype``, by default that of ``actual``."""
    rtol, atol = TOLERANCES[dtype or actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=dtype is None)
