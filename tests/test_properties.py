"""Laws that hold for every shape and value, tried by Hypothesis, and oracles that share no code with the library."""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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
    to_global,
    to_local,
)
from tests.blocks import CASES, Case, assert_close, cases, each_case, perturb

sides = st.integers(1, 65)
batches = st.integers(1, 3)
small_sides = st.integers(1, 12)
seeds = st.integers(0, 2**31)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Shapes


@each_case
@settings(max_examples=8)
@given(batches, st.integers(1, 24), st.integers(1, 24))
@torch.no_grad()
def test_shape_law(case: Case, batch: int, height: int, width: int) -> None:
    x = torch.zeros(batch, case.channels, height * case.size_multiple, width * case.size_multiple)
    assert case.build(perturbed=False)(x).shape == case.output_shape(x.shape)


@settings(max_examples=10)
@given(batches, sides, sides)
def test_values_are_finite_at_every_size(batch: int, height: int, width: int) -> None:
    x = noise(batch, 6, height, width, dtype=torch.float32)
    for block in (MREB(6), RBWA(6, 4), WSILBV(6, local=(7, 5))):
        assert block(x).isfinite().all()


@given(st.integers(1, 12), st.integers(1, 12), small_sides, small_sides)
@example(29, 100, 1, 1)  # in floating point, 0.29 * 100 < 29
def test_rbwa_scales_by_any_ratio(up: int, down: int, height: int, width: int) -> None:
    block = RBWA(4, scale_factor=up / down, device="meta")
    ratio = Fraction(up, down)
    assert block.size_multiple == ratio.denominator
    height, width = height * ratio.denominator, width * ratio.denominator
    shape = block(torch.empty(1, 4, height, width, device="meta")).shape
    assert shape == (1, 4, height * ratio, width * ratio)


# Arguments: whatever is handed in, a block is built or a ValueError or TypeError says why not


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["both", "spatial", "outputs", "raw", "bilinear"]),
    st.lists(st.integers(-1, 8), max_size=3),
    st.tuples(st.integers(-1, 8), st.integers(-1, 8)),
    st.binary(max_size=2),
    st.sampled_from([{}, 1j, nn.GELU(), torch.zeros(2)]),
)


#: Arguments that work, of which one or two are replaced. Switches are left out: like Python, they take anything as yes
#: or no.
ARGUMENTS = {
    SCACB: {"channels": 12, "reduction": 6, "parts": "both", "exchange": None, "act_layer": nn.GELU},
    DRACB: {"in_channels": 12, "out_channels": 4, "communication": 0.2, "relay": "raw", "gate_layer": nn.Sigmoid},
    DRACBChain: {
        "in_channels": 12,
        "out_channels": 4,
        "length": 3,
        "communication": None,
        "relay": "raw",
        "resample": None,
    },
    WSILB: {"channels": 12, "local": None, "eps": 1e-6, "gate_layer": nn.Sigmoid},
    WSILBV: {"channels": 12, "local": None, "eps": 1e-6, "reduction": 4, "act_layer": nn.GELU},
    RBWA: {"in_channels": 12, "out_channels": None, "scale_factor": 2, "reduction": 4, "act_layer": nn.GELU},
    MREB: {
        "channels": 12,
        "distilled_channels": None,
        "num_stages": 1,
        "communication": 0.2,
        "relay": "raw",
        "parts": "both",
        "exchange": None,
    },
    FixedCommunication: {"weight": 0.2},
    LearnableCommunication: {"channels": 4, "init": 0.2},
    GatedCommunication: {"channels": 4, "init": 0.2},
    AdaptedCommunication: {"previous_channels": 5, "channels": 4, "communication": 0.2, "resample": None},
}


@pytest.mark.parametrize("block", ARGUMENTS, ids=lambda block: block.__name__)
@settings(max_examples=60)
@given(data=st.data())
def test_bad_arguments_are_value_or_type_errors(block: type, data) -> None:
    names = st.sampled_from(list(ARGUMENTS[block]))
    replaced = data.draw(st.dictionaries(names, junk, min_size=1, max_size=2))
    with suppress(ValueError, TypeError):
        block(**{**ARGUMENTS[block], **replaced})


# Not the adapters around DRACB and its chain, which cut their input to pieces before the block sees it; nor the example
# network, whose check is shorter.
@cases(*(case.name for case in CASES if not case.name.startswith(("dracb", "chain", "mren"))))
@given(data=st.data())
@settings(max_examples=20)
def test_bad_inputs_are_value_or_type_errors(case: Case, data) -> None:
    side = st.integers(0, 4)
    channels = st.sampled_from([case.channels, case.channels + 1])
    shape = data.draw(st.one_of(st.tuples(st.integers(0, 2), channels, side, side), st.lists(side, max_size=5)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.int64, torch.bool]))
    assume(dtype != torch.float32 or len(shape) != 4 or shape[1] != case.channels or 0 in shape[2:])
    with pytest.raises((ValueError, TypeError)):
        case.build(perturbed=False)(torch.zeros(tuple(shape), dtype=dtype))


# SCACB


@pytest.mark.parametrize("exchange", ["outputs", "inputs", None])
@given(st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=10)
def test_scacb_moves_with_its_input(exchange: str | None, down: int, right: int) -> None:
    block = perturb(SCACB(12, exchange=exchange, dtype=torch.float64))
    x = noise(1, 12, 16, 16)
    shifted = torch.roll(x, (down, right), (2, 3))
    expected = torch.roll(block(x), (down, right), (2, 3))
    # Two 3x3 convolutions see 2 pixels far: beyond these the border and the roll's seam show.
    inner = ..., slice(down + 2, 14), slice(right + 2, 14)
    assert_close(block(shifted)[inner], expected[inner])
    if down:
        assert not torch.allclose(block(shifted)[:, :, down], expected[:, :, down])


@pytest.mark.parametrize("parts", ["both", "spatial", "channel"])
@pytest.mark.parametrize("exchange", ["outputs", "inputs", None])
def test_scacb_sees_two_pixels_far(parts: str, exchange: str | None) -> None:
    block = perturb(SCACB(12, parts=parts, exchange=exchange, dtype=torch.float64))
    x = noise(1, 12, 13, 13).requires_grad_()
    block(x)[0, :, 6, 6].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    expected = torch.zeros(13, 13, dtype=torch.bool)
    expected[4:9, 4:9] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("parts", ["both", "spatial", "channel"])
def test_scacb_flips_with_its_input_once_its_kernels_do(parts: str) -> None:
    block = perturb(SCACB(12, parts=parts, dtype=torch.float64))
    x = noise(2, 12, 7, 9)
    expected = block(x).flip(3)
    assert not torch.allclose(block(x.flip(3)), expected)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.ndim == 4:
                parameter.copy_(parameter.flip(3))
    assert_close(block(x.flip(3)), expected)


@given(seeds)
def test_scacb_parts_meet_only_by_exchange(seed: int) -> None:
    # Without exchange the spatial half of what is fused does not depend on the channel part.
    x = noise(1, 12, 6, 6, seed=seed)
    for exchange, meet in [(None, False), ("outputs", True), ("inputs", True)]:
        block = perturb(SCACB(12, exchange=exchange, dtype=torch.float64))
        with torch.no_grad():
            block.fuse.weight[:, block.fuse.in_channels // 2 :] = 0
        before = block(x)
        with torch.no_grad():
            block.channel.conv3.weight.mul_(1.5)
        assert torch.equal(block(x), before) != meet


def test_scacb_without_residual_is_the_correction() -> None:
    block, bare = SCACB(12, dtype=torch.float64), SCACB(12, residual=False, dtype=torch.float64)
    bare.load_state_dict(block.state_dict())
    x = noise(2, 12, 5, 6)
    assert_close(block(x), x + bare(x))


def scacb_by_hand(state: dict[str, Tensor], x: Tensor, exchange: str | None) -> Tensor:
    """The formulas of the docstring, written out with functional convolutions."""

    def conv(name: str, x: Tensor, *, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)

    z = F.gelu(conv("compress", x))
    w = z.shape[1]
    halves = {"spatial": w, "channel": 1}
    other = {"spatial": "channel", "channel": "spatial"}
    mix = {p: {"inputs": other[p]}.get(exchange) for p in halves}
    one = {p: F.gelu(conv(f"{p}.conv1", z, groups=g)) for p, g in halves.items()}
    three = {p: F.gelu(conv(f"{p}.conv3", z + one[mix[p]] if mix[p] else z, groups=g)) for p, g in halves.items()}
    five = {
        p: F.gelu(conv(f"{p}.conv5", three[p] + three[mix[p]] if mix[p] else three[p], groups=g))
        for p, g in halves.items()
    }
    weighed = []
    for p in halves:
        levels = [level[p] + level[other[p]] if exchange == "outputs" else level[p] for level in (one, three, five)]
        weighed.append(F.gelu(conv(f"{p}.weighing", torch.cat(levels, 1))))
    return x + conv("fuse", torch.cat(weighed, 1))


@pytest.mark.parametrize("exchange", ["outputs", "inputs", None])
def test_scacb_is_its_formula(exchange: str | None) -> None:
    block, x = perturb(SCACB(14, exchange=exchange, dtype=torch.float64)), noise(2, 14, 6, 7)
    assert_close(block(x), scacb_by_hand(block.state_dict(), x, exchange))


# WSILB and WSILB-V


def statistics_by_hand(x: np.ndarray, window: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Contrast and peak at each position, one window after the other; a window at the border is moved inward."""
    height, width = x.shape[2:]
    tall, wide = (height, width) if window is None else (min(window[0], height), min(window[1], width))
    contrast, peak = np.empty_like(x), np.empty_like(x)
    for row in range(height):
        for column in range(width):
            top = min(max(row - (tall - 1) // 2, 0), height - tall)
            left = min(max(column - (wide - 1) // 2, 0), width - wide)
            patch = x[:, :, top : top + tall, left : left + wide]
            contrast[:, :, row, column] = patch.mean((2, 3)) + np.sqrt(patch.var((2, 3)) + 1e-6)
            peak[:, :, row, column] = patch.max((2, 3))
    return contrast, peak


@torch.no_grad()
def attend_by_hand(block: WSILB, x: Tensor) -> Tensor:
    contrast, peak = (torch.from_numpy(each) for each in statistics_by_hand(x.detach().numpy(), block.local))
    return x * torch.sigmoid(block.shared(contrast) + block.shared(peak))


@given(seeds, small_sides, small_sides, st.one_of(st.none(), st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_wsilb_is_its_formula(seed: int, height: int, width: int, window: tuple[int, int] | None) -> None:
    x = noise(2, 4, height, width, seed=seed)
    for block in (WSILB(4, local=window, dtype=torch.float64), WSILBV(4, local=window, dtype=torch.float64)):
        assert_close(block(x), attend_by_hand(block, x))


@given(seeds, st.floats(-300, 300), st.floats(0.1, 50))
def test_contrast_is_mean_plus_standard_deviation(seed: int, mean: float, spread: float) -> None:
    # Read off through weights of one and a gate that is the identity: the scaling is contrast + peak.
    x = mean + spread * noise(1, 1, 11, 13, seed=seed)
    block = WSILB(1, gate_layer=nn.Identity, dtype=torch.float64)
    with torch.no_grad():
        block.shared.weight.fill_(1)
        block.shared.bias.zero_()
    contrast = (block(x) / x)[0, 0, 0, 0] - x.max()
    expected = x.mean() + x.std(unbiased=False)
    torch.testing.assert_close(contrast, expected, rtol=1e-3, atol=1e-3 * spread)


@given(seeds, small_sides, small_sides, st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_window_over_the_whole_map_is_global_bit_for_bit(seed: int, height: int, width: int, more: tuple) -> None:
    x = noise(2, 8, height, width, seed=seed, dtype=torch.float32)
    block = perturb(WSILBV(8))
    expected = block(x)
    block.local = (height + more[0], width + more[1])
    assert torch.equal(block(x), expected)


@given(seeds)
def test_sigmoid_gate_shrinks_and_keeps_the_sign(seed: int) -> None:
    x = noise(2, 8, 5, 6, seed=seed)
    for block in (WSILB(8), WSILBV(8), WSILB(8, local=(2, 3)), WSILBV(8, local=(3, 2))):
        scaling = perturb(block.double())(x) / x
        assert ((scaling > 0) & (scaling < 1)).all()


@given(st.permutations(range(30)))
def test_global_gate_ignores_where_pixels_are(order: list[int]) -> None:
    x = noise(2, 8, 5, 6)
    block = perturb(WSILBV(8, dtype=torch.float64))
    shuffled = x.flatten(2)[..., order].unflatten(2, (5, 6))
    assert_close(block(shuffled), block(x).flatten(2)[..., order].unflatten(2, (5, 6)))


def test_local_gate_minds_where_pixels_are() -> None:
    x, block = noise(1, 8, 5, 6), perturb(WSILBV(8, local=(3, 3), dtype=torch.float64))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert not torch.allclose(block(x[..., order]), block(x)[..., order])
    # An odd and square window has no handedness.
    assert_close(block(x.flip(3)).flip(3), block(x))
    assert_close(block(x.transpose(2, 3)).transpose(2, 3), block(x))


@given(st.integers(0, 3), st.integers(0, 3))
def test_local_gate_moves_with_its_input(down: int, right: int) -> None:
    x, block = noise(1, 8, 12, 12), perturb(WSILBV(8, local=(3, 5), dtype=torch.float64))
    moved = block(x.roll((down, right), (2, 3)))
    expected = block(x).roll((down, right), (2, 3))
    inner = ..., slice(down + 1, 11), slice(right + 2, 10)
    assert_close(moved[inner], expected[inner])


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.5, 3))
@settings(max_examples=10)
def test_to_local_sizes_windows_by_each_blocks_map(height: int, width: int, factor: float) -> None:
    net = nn.Sequential(WSILBV(4), RBWA(4), WSILB(4))
    assert to_local(net, torch.zeros(1, 4, height, width), factor=factor) is net
    small = max(1, round(height * factor)), max(1, round(width * factor))
    large = max(1, round(2 * height * factor)), max(1, round(2 * width * factor))
    assert [net[0].local, net[1].attention.local, net[2].local] == [small, large, large]
    to_global(net)
    assert net[0].local is net[1].attention.local is net[2].local is None


def test_to_local_where_blocks_are_called_by_keyword_or_compiled() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = WSILBV(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x=x)

    net = Keyword()
    to_local(net, torch.zeros(1, 4, 6, 10))
    assert net.block.local == (9, 15)
    to_global(net)
    compiled = torch.compile(net, backend="eager")
    compiled(torch.zeros(1, 4, 6, 10))
    assert to_local(compiled, torch.zeros(1, 4, 6, 10)) is compiled
    assert net.block.local == (9, 15)
    assert_close(compiled(torch.ones(1, 4, 20, 20)), net(torch.ones(1, 4, 20, 20)))


# Communication


@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_linear_channels_are_linear(seed: int, a: float, b: float) -> None:
    p, q, r, s = noise(4, 2, 5, 4, 4, seed=seed)
    for channel in (
        NoCommunication(),
        FixedCommunication(0.7),
        perturb(LearnableCommunication(5, per_channel=True, dtype=torch.float64)),
        AdaptedCommunication(5, 5, communication=0.7),
    ):
        assert_close(channel(a * p + b * q, a * r + b * s), a * channel(p, r) + b * channel(q, s))


@given(seeds)
def test_an_empty_previous_map_changes_nothing(seed: int) -> None:
    current = noise(2, 5, 4, 4, seed=seed)
    for channel in (
        NoCommunication(),
        FixedCommunication(0.7),
        LearnableCommunication(5, per_channel=True),
        GatedCommunication(5),
        AdaptedCommunication(3, 5, bias=False),
    ):
        channel = perturb(channel.double())
        width = getattr(channel, "previous_channels", 5)
        assert_close(channel(torch.zeros(2, width, 4, 4, dtype=torch.float64), current), current)


@given(seeds, st.floats(0.05, 0.95))
def test_untrained_channels_are_the_fixed_one(seed: int, weight: float) -> None:
    previous, current = noise(2, 2, 5, 4, 4, seed=seed)
    expected = current + weight * previous
    for channel in (
        FixedCommunication(weight),
        LearnableCommunication(5, init=weight, dtype=torch.float64),
        LearnableCommunication(5, init=weight, per_channel=True, dtype=torch.float64),
        GatedCommunication(5, init=weight, dtype=torch.float64),
        AdaptedCommunication(5, 5, communication=weight),
    ):
        assert_close(channel(previous, current), expected)


@given(seeds)
def test_gate_lets_in_a_share_of_the_previous_map(seed: int) -> None:
    previous, current = noise(2, 2, 5, 4, 4, seed=seed)
    channel = perturb(GatedCommunication(5, dtype=torch.float64))
    share = (channel(previous, current) - current) / previous
    assert ((share > 0) & (share < 1)).all()
    assert share.std() > 1e-3


@given(seeds)
def test_gated_channel_is_its_formula(seed: int) -> None:
    previous, current = noise(2, 2, 5, 4, 4, seed=seed)
    channel = perturb(GatedCommunication(5, dtype=torch.float64))
    gate = torch.sigmoid(F.conv2d(torch.cat([previous, current], 1), channel.weigh.weight, channel.weigh.bias))
    assert_close(channel(previous, current), current + gate * previous)


@given(small_sides, small_sides, small_sides, small_sides, st.sampled_from(["bilinear", "nearest"]))
def test_adapter_fits_any_size(h: int, w: int, to_h: int, to_w: int, resample: str) -> None:
    channel = AdaptedCommunication(3, 5, resample=resample, dtype=torch.float64)
    previous, current = noise(2, 3, h, w), noise(2, 5, to_h, to_w)
    projected = F.conv2d(previous, channel.project.weight, channel.project.bias)
    expected = current + 0.2 * F.interpolate(projected, (to_h, to_w), mode=resample)
    assert_close(channel(previous, current), expected)


# DRACB and its chain


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("relay", ["raw", "fused"])
@given(seed=seeds)
def test_dracb_is_its_formula(gate: bool, relay: str, seed: int) -> None:
    block = DRACB(6, 4, communication=0.3, gate=gate, relay=relay, dtype=torch.float64)
    x, previous = noise(2, 6, 5, 4, seed=seed), noise(2, 4, 5, 4, seed=seed + 1)
    raw = F.conv2d(x, block.distill.weight, block.distill.bias)
    for before, fused in ((None, raw), (previous, raw + 0.3 * previous)):
        refined, handed_on = block(x, before)
        assert_close(refined, F.silu(fused) if gate else fused)
        assert_close(handed_on, fused if relay == "fused" else raw)


chains = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@given(
    chains,
    st.sampled_from([0.2, None, LearnableCommunication, GatedCommunication, FixedCommunication(0.4)]),
    st.sampled_from(["raw", "fused"]),
    seeds,
)
def test_chain_is_its_links_by_hand(stages: list, communication: object, relay: str, seed: int) -> None:
    c_in, c_out = (list(column) for column in zip(*stages, strict=True))
    chain = DRACBChain(c_in, c_out, communication=communication, relay=relay, dtype=torch.float64)
    perturb(chain)
    features = [noise(1, width, 3, 4, seed=seed + stage) for stage, width in enumerate(c_in)]
    together = chain(features)
    carried = None
    for stage, (x, expected) in enumerate(zip(features, together, strict=True)):
        refined, by_link = chain.links[stage](x, carried)
        stepped, carried = chain.step(stage, x, carried)
        assert torch.equal(stepped, expected)
        assert torch.equal(refined, expected)
        assert torch.equal(by_link, carried)


@pytest.mark.parametrize(("relay", "reach"), [("raw", 1), ("fused", 3)])
def test_how_far_a_map_is_carried(relay: str, reach: int) -> None:
    chain = DRACBChain(6, 4, 4, relay=relay, dtype=torch.float64)
    features = [noise(1, 6, 3, 3, seed=stage) for stage in range(4)]
    before = chain(features)
    after = chain([features[0] + 1, *features[1:]])
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [stage <= reach for stage in range(4)]


@given(seeds)
def test_weight_zero_is_no_communication(seed: int) -> None:
    features = [noise(1, 6, 3, 3, seed=seed + stage) for stage in range(3)]
    closed, zero = DRACBChain(6, 4, 3, communication=None), DRACBChain(6, 4, 3, communication=0.0)
    zero.load_state_dict(closed.state_dict())
    for a, b in zip(closed.double()(features), zero.double()(features), strict=True):
        assert torch.equal(a, b)


# RBWA and MREB


@given(seeds, st.sampled_from([1, 1.5, 2, 3]), st.integers(1, 4), st.integers(1, 4))
def test_rbwa_is_its_formula(seed: int, scale_factor: float, height: int, width: int) -> None:
    block = perturb(RBWA(5, 4, scale_factor=scale_factor, dtype=torch.float64))
    x = noise(2, 5, 2 * height, 2 * width, seed=seed)
    size = [math.floor(2 * side * scale_factor) for side in (height, width)]
    enlarged = F.interpolate(x, size, mode="bilinear", align_corners=False)
    mixed = attend_by_hand(block.attention, F.conv2d(enlarged, block.expand.weight, block.expand.bias, padding=1))
    expected = F.conv2d(F.gelu(mixed), block.project.weight, block.project.bias, padding=1)
    assert_close(block(x), expected)


@given(seeds, st.sampled_from([0.2, None]))
@settings(max_examples=10)
def test_mreb_is_its_formula(seed: int, communication: float | None) -> None:
    block = perturb(MREB(12, communication=communication, dtype=torch.float64))
    x = noise(2, 12, 4, 5, seed=seed)
    features = [x]
    for stage in block.stages:
        features.append(scacb_by_hand(stage.state_dict(), features[-1], "outputs"))
    convs = [link.distill for link in block.refine.links]
    maps = [F.conv2d(x, conv.weight, conv.bias) for x, conv in zip(features, convs, strict=True)]
    weight = communication or 0
    fused = [maps[0], *(now + weight * before for before, now in pairwise(maps))]
    joined = F.conv2d(torch.cat([F.silu(each) for each in fused], 1), block.fuse.weight, block.fuse.bias)
    assert_close(block(x), x + attend_by_hand(block.attention, joined))
