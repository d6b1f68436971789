"""Every count that the paper prints, and the closed formulas behind them.

The formulas are written out here from the paper's figures, not read off the modules.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples.mren.model import MREN, mren, mren_l, mren_s
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
    NoCommunication,
)
from sc_blocks.introspect import complexity
from tests.blocks import count_parameters

PARTS = {"both", "spatial", "channel"}
widths = st.integers(12, 100)


def built(block, *args, **options) -> int:
    """Parameters of a block, without the time it takes to fill them."""
    return count_parameters(block(*args, device="meta", **options))


def conv(c_in: int, c_out: int, k: int = 1, *, groups: int = 1, bias: bool = True) -> int:
    return c_in // groups * c_out * k * k + (c_out if bias else 0)


def scacb(c: int, reduction: int = 6, parts: str = "both", bias: bool = True) -> int:
    w = c // reduction if parts == "both" else 2 * c // reduction
    total = conv(c, w, bias=bias)
    for part, groups in (("channel", 1), ("spatial", w)):
        if parts in ("both", part):
            total += conv(w, w, 1, groups=groups, bias=bias) + 2 * conv(w, w, 3, groups=groups, bias=bias)
            if parts == "both":
                total += conv(3 * w, 3 * w, bias=bias)
    return total + conv(6 * w if parts == "both" else 3 * w, c, bias=bias)


def wsilbv(c: int, reduction: int = 4, bias: bool = True) -> int:
    return conv(c, c // reduction, bias=bias) + conv(c // reduction, c, bias=bias)


def mreb(c: int, distilled: int | None = None, stages: int = 3, parts: str = "both", bias: bool = True) -> int:
    d = c // 4 if distilled is None else distilled
    blocks = stages * scacb(c, parts=parts, bias=bias) + (stages + 1) * conv(c, d, bias=bias)
    return blocks + conv((stages + 1) * d, c, bias=bias) + wsilbv(c, bias=bias)


def rbwa(c_in: int, c_out: int, reduction: int = 4, bias: bool = True) -> int:
    return conv(c_in, c_out, 3, bias=bias) + wsilbv(c_out, reduction, bias) + conv(c_out, c_out, 3, bias=bias)


def mren_count(
    scale: int, c: int = 60, n: int = 6, parts: str = "both", reconstruct: tuple[int, int] | None = None
) -> int:
    first, last = reconstruct or (c, c // 2)
    stages = [(first, first)] if scale == 2 else [(first, first), (first, last)]
    reduce = 0 if reconstruct is None else conv(c, first)
    trunk = conv(3, c, 3) + n * mreb(c, parts=parts) + reduce
    return trunk + sum(rbwa(*stage) for stage in stages) + conv(stages[-1][1], 3, 3)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (MREN(4).head, 1_680),
        (SCACB(60), 8_280),
        (SCACB(60, parts="spatial"), 5_320),
        (SCACB(60, parts="channel"), 12_540),
        (DRACB(60, 15), 915),
        (WSILBV(60), 1_875),
        (WSILB(60), 3_660),
        (MREB(60), 34_035),
        (RBWA(60), 66_795),
        (RBWA(60, 30), 24_817),
        (MREN(2).tail, 1_623),
        (MREN(4).tail, 813),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else f"{value}",
)
def test_blocks_of_the_paper(module: nn.Module, expected: int) -> None:
    assert count_parameters(module) == expected


@pytest.mark.parametrize(
    ("scale", "channels", "printed", "expected"),
    [
        (2, 60, 274, 274_308),
        (3, 60, 298, 298_315),
        (4, 60, 298, 298_315),
        (2, 84, 531, 531_198),
        (3, 84, 579, 578_668),
        (4, 84, 579, 578_668),
    ],
)
def test_tables_5_and_6(scale: int, channels: int, printed: int, expected: int) -> None:
    actual = built(MREN, scale, channels=channels)
    assert actual == expected == mren_count(scale, channels)
    assert round(actual / 1000) == printed


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_named_networks(scale: int) -> None:
    assert count_parameters(mren(scale)) == mren_count(scale)
    assert count_parameters(mren_l(scale)) == mren_count(scale, 84)
    assert count_parameters(mren_s(scale)) == mren_count(scale, reconstruct=(24, 16))


def test_the_narrow_reconstruction() -> None:
    assert count_parameters(mren_s(4)) == 224_463
    with torch.device("meta"):
        macs = complexity(mren_s(4), (1, 3, 180, 320)).macs
    assert round(macs / 1e9, 1) == 19.1  # where the paper's has 49.0
    for wrong in ((24,), 24, (24, 16, 8), "24"):
        with pytest.raises(ValueError, match=r"reconstruct_channels must be two widths.*\(24, 16\)"):
            MREN(4, reconstruct_channels=wrong)
    with pytest.raises(ValueError, match="reconstruct_channels"):
        MREN(4, reconstruct_channels=(24, 0))
    with pytest.raises(TypeError, match="reconstruct_channels"):
        MREN(4, reconstruct_channels=(24, 1.5))


def test_no_other_width_and_depth_fits() -> None:
    found: dict[tuple[int, int], list[tuple[int, int]]] = {(274, 298): [], (531, 579): []}
    for c in range(24, 200):
        for n in range(1, 21):
            printed = tuple(round(mren_count(scale, c, n) / 1000) for scale in (2, 4))
            if printed in found:
                found[printed].append((c, n))
    assert found == {(274, 298): [(60, 6)], (531, 579): [(84, 6)]}


@pytest.mark.parametrize(
    ("num_blocks", "printed", "expected"),
    [(3, 196, 196_210), (4, 230, 230_245), (5, 264, 264_280), (6, 298, 298_315), (7, 332, 332_350), (8, 366, 366_385)],
)
def test_table_1(num_blocks: int, printed: int, expected: int) -> None:
    actual = built(MREN, 4, num_blocks=num_blocks)
    assert actual == expected == mren_count(4, n=num_blocks)
    assert round(actual / 1000) == printed


@pytest.mark.parametrize(
    ("options", "printed", "expected"),
    [
        ({"parts": "spatial"}, 245, 245_035),
        ({"parts": "channel"}, 375, 374_995),
        ({"exchange": None}, 298, 298_315),
        ({"exchange": "inputs"}, 298, 298_315),
        ({}, 298, 298_315),
    ],
    ids=["OSA", "OCA", "SCNC", "SCACB-inputs", "SCACB"],
)
def test_table_3(options: dict, printed: int, expected: int) -> None:
    actual = built(MREN, 4, **options)
    assert actual == expected == mren_count(4, parts=options.get("parts", "both"))
    assert round(actual / 1000) == printed


@pytest.mark.parametrize(
    "options",
    [{"communication": None, "gate": False}, {"communication": None}, {"gate": False}, {}],
    ids=["conv", "conv-gate", "conv-communication", "DRACB"],
)
def test_table_4(options: dict) -> None:
    assert built(MREN, 4, **options) == 298_315


# The blocks at any width


@given(widths, st.integers(1, 12), st.sampled_from(sorted(PARTS)), st.booleans())
def test_scacb(channels: int, reduction: int, parts: str, bias: bool) -> None:
    actual = built(SCACB, channels, reduction=reduction, parts=parts, bias=bias)
    assert actual == scacb(channels, reduction, parts, bias)


@given(widths)
def test_exchange_and_residual_cost_nothing(channels: int) -> None:
    for exchange in ("outputs", "inputs", None):
        for residual in (True, False):
            assert built(SCACB, channels, exchange=exchange, residual=residual) == scacb(channels)


@given(widths, widths, st.booleans())
def test_dracb(c_in: int, c_out: int, bias: bool) -> None:
    assert built(DRACB, c_in, c_out, bias=bias) == conv(c_in, c_out, bias=bias)


@given(widths)
def test_channels(c: int) -> None:
    assert count_parameters(NoCommunication()) == count_parameters(FixedCommunication()) == 0
    assert built(LearnableCommunication, c) == 1
    assert built(LearnableCommunication, c, per_channel=True) == c
    assert built(GatedCommunication, c) == conv(2 * c, c)
    assert built(AdaptedCommunication, c, c, communication=LearnableCommunication) == 1
    assert built(AdaptedCommunication, c + 1, c) == conv(c + 1, c)
    assert built(AdaptedCommunication, c + 1, c, bias=False) == conv(c + 1, c, bias=False)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6), st.booleans())
def test_chain(stages: list[tuple[int, int]], bias: bool) -> None:
    c_in, c_out = (list(column) for column in zip(*stages, strict=True))
    distil = sum(conv(*stage, bias=bias) for stage in stages)
    links = list(pairwise(c_out))
    adapt = sum(conv(*link, bias=bias) for link in links if link[0] != link[1])
    assert built(DRACBChain, c_in, c_out, bias=bias) == distil + adapt
    assert built(DRACBChain, c_in, c_out, bias=bias, communication=None) == distil
    # The first link has no predecessor, and so no weight.
    learned = built(DRACBChain, c_in, c_out, bias=bias, communication=LearnableCommunication)
    assert learned == distil + adapt + len(links)


@given(widths, st.integers(1, 12), st.booleans())
def test_wsilb(channels: int, reduction: int, bias: bool) -> None:
    assert built(WSILB, channels, bias=bias) == conv(channels, channels, bias=bias)
    assert built(WSILBV, channels, reduction=reduction, bias=bias) == wsilbv(channels, reduction, bias)
    assert built(WSILBV, channels, local=(3, 3), reduction=reduction, bias=bias) == wsilbv(channels, reduction, bias)


@given(widths, widths, st.integers(1, 12), st.sampled_from([1, 1.5, 2, 3, Fraction(4, 3)]), st.booleans())
def test_rbwa(c_in: int, c_out: int, reduction: int, scale_factor: float, bias: bool) -> None:
    actual = built(RBWA, c_in, c_out, scale_factor=scale_factor, reduction=reduction, bias=bias)
    assert actual == rbwa(c_in, c_out, reduction, bias)


@given(widths, st.none() | st.integers(1, 30), st.integers(1, 4), st.sampled_from(sorted(PARTS)), st.booleans())
def test_mreb(channels: int, distilled: int | None, stages: int, parts: str, bias: bool) -> None:
    actual = built(MREB, channels, distilled_channels=distilled, num_stages=stages, parts=parts, bias=bias)
    assert actual == mreb(channels, distilled, stages, parts, bias)


@given(st.sampled_from([2, 3, 4]), st.integers(12, 100), st.integers(1, 3), st.sampled_from(sorted(PARTS)))
def test_mren(scale: int, channels: int, num_blocks: int, parts: str) -> None:
    actual = built(MREN, scale, channels=channels, num_blocks=num_blocks, parts=parts)
    assert actual == mren_count(scale, channels, num_blocks, parts)


# Operations


def flops_of_the_paper(net: nn.Module, height: int, width: int) -> int:
    """Operations as the paper's table 6 counts them, found by trying: no text says how.

    A convolution counts output elements x (k^2 + 1) x input channels / groups (its bias once for each input channel), a
    sigmoid 3 for each element, a global pooling 1 for each input element; each WSILB-V pools twice.
    """
    total = 0

    def visit(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            taps = module.kernel_size[0] * module.kernel_size[1] + 1
            total += out.numel() * taps * module.in_channels // module.groups
        elif isinstance(module, nn.Sigmoid):
            total += 3 * out.numel()
        elif isinstance(module, (WSILB, WSILBV)):
            total += 2 * args[0].numel()

    for module in net.modules():
        module.register_forward_hook(visit)
    net(torch.empty(1, 3, height, width, device="meta"))
    return total


@pytest.mark.parametrize(("channels", "printed"), [(60, 23.79), (84, 46.31)])
def test_flops_of_table_6(channels: int, printed: float) -> None:
    net = MREN(2, channels=channels, device="meta")
    assert round(flops_of_the_paper(net, 192, 192) / 1e9, 2) == printed


@pytest.mark.parametrize(("scale", "channels", "giga"), [(2, 60, 105.1), (4, 60, 49.0), (4, 84, 95.5)])
def test_macs_of_a_720p_output(scale: int, channels: int, giga: float) -> None:
    net = MREN(scale, channels=channels, device="meta")
    result = complexity(net, input_size=(1, 3, 720 // scale, 1280 // scale))
    assert round(result.macs / 1e9, 1) == giga
    assert result.flops == 2 * result.macs
    assert result.parameters == mren_count(scale, channels)
