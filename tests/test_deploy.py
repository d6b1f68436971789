"""Folded networks compute the function of those that they were folded from: at every size, to the border."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from examples.mren.fold import BicubicConv, fold_mren
from examples.mren.model import MREN
from sc_blocks import MREB, RBWA, SCACB, WSILBV, GatedCommunication, LearnableCommunication, to_local
from sc_blocks.deploy import fold, fold_with_tail


def lively(module: nn.Module) -> nn.Module:
    """With weights that make every part count: fresh biases and gates are close to nothing.

    A gain of one keeps the maps of a long chain from growing stage by stage, and float32 well-conditioned: with 1.5
    the plain block alone was 1.6e-5 of its range away from its value in float64.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    return module


def learnable(channels: int) -> LearnableCommunication:
    return LearnableCommunication(channels, per_channel=True)


FOLDED = {
    "scacb": lambda: SCACB(60),
    "scacb-none": lambda: SCACB(30, exchange=None, residual=False, act_layer=nn.SiLU),
    "scacb-wide": lambda: SCACB(96, bias=False),
    "mreb": lambda: MREB(60),
    "mreb-l": lambda: MREB(84, communication=None),
    "mreb-stages": lambda: MREB(24, num_stages=1, distilled_channels=5, gate=False, residual=False),
    "mreb-learnable": lambda: MREB(24, num_stages=4, communication=learnable, gate_layer=nn.Tanh),
    "mreb-share": lambda: MREB(24, communication=LearnableCommunication, exchange=None),
    "mrebs": lambda: nn.Sequential(MREB(24), MREB(24, communication=0.7)),
    "rbwa": lambda: RBWA(60, 30),
    "rbwa-x3": lambda: RBWA(12, 20, scale_factor=3, act_layer=nn.LeakyReLU),
    "rbwa-x4": lambda: RBWA(12, scale_factor=4, bias=False),
    "rbwa-x5": lambda: RBWA(12, scale_factor=5),
    "rbwa-x1.5": lambda: RBWA(12, scale_factor=1.5),
    "rbwa-x1": lambda: RBWA(12, scale_factor=1),
    "mren-x2": lambda: MREN(2, channels=24, num_blocks=2),
    "mren-x3": lambda: MREN(3, channels=24, num_blocks=1),
}
#: Left as they are, because a part of them is not of the kind that can be joined or padded.
LEFT = {
    "scacb-inputs": lambda: SCACB(24, exchange="inputs"),
    "scacb-spatial": lambda: SCACB(24, parts="spatial"),
    "scacb-softmax": lambda: SCACB(24, act_layer=nn.Softmax2d),
    "rbwa-prelu": lambda: RBWA(12, act_layer=nn.PReLU),
    "wsilbv": lambda: WSILBV(24),
}
#: Left as a whole, with folded blocks inside.
PARTLY = {
    "mreb-gated": lambda: MREB(24, communication=GatedCommunication),
    "mreb-fused": lambda: MREB(24, relay="fused"),
}
each = pytest.mark.parametrize("name", [*FOLDED, *LEFT, *PARTLY])


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return lively((FOLDED | LEFT | PARTLY)[name]()).to(dtype)


def sample(name: str, *size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    channels = next(build(name).parameters()).shape[1]
    multiple = 2 if name == "rbwa-x1.5" else 1
    batch, height, width = size
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(batch, channels, height * multiple, width * multiple, generator=generator, dtype=dtype)


def in_range(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within a share of the range of what is expected."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    reach = max(1.0, (expected.max() - expected.min()).item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * reach)


@each
@torch.no_grad()
def test_computes_the_same(name: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        module = build(name, dtype)
        folded = fold(module)
        for size in ((1, 12, 17), (3, 5, 8)):
            x = sample(name, *size, dtype=dtype)
            before = x.clone()
            in_range(folded(x), module(x), tolerance)
            assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["scacb", "mreb", "mrebs", "rbwa", "rbwa-x3", "rbwa-x5", "rbwa-x1.5"])
@settings(deadline=None, max_examples=12)
@given(batch=st.integers(1, 3), height=st.integers(1, 19), width=st.integers(1, 19))
@torch.no_grad()
def test_at_any_size(name: str, batch: int, height: int, width: int) -> None:
    module, x = build(name), sample(name, batch, height, width)
    in_range(fold(module)(x), module(x), 1e-13)


@pytest.mark.parametrize("name", ["scacb", "mreb", "rbwa", "rbwa-x4", "mren-x2"])
@pytest.mark.parametrize("size", [(2, 9, 6), (1, 33, 7), (1, 3, 61)])
@torch.no_grad()
def test_strips_join_without_a_seam(name: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = build(name), sample(name, *size)
    expected = module(x)
    monkeypatch.setattr("sc_blocks._folded.STRIP", 1)  # as small as they get
    monkeypatch.setattr("sc_blocks._folded.PIECE", 1)
    monkeypatch.setattr("sc_blocks._statistics.STRIP", 1)
    in_range(fold(module)(x), expected, 1e-13)


@pytest.mark.parametrize("scale", [2, 3, 4])
@settings(deadline=None, max_examples=5)
@given(height=st.integers(1, 13), width=st.integers(1, 13))
@torch.no_grad()
def test_whole_networks(scale: int, height: int, width: int) -> None:
    net = lively(MREN(scale, channels=16, num_blocks=2)).double()
    x = torch.rand(2, 3, height, width, dtype=torch.float64)
    in_range(fold_mren(net)(x), net(x), 1e-12)


@torch.no_grad()
def test_shipped_network_in_float32() -> None:
    from examples.mren.model import load_mren

    net, x = load_mren(4), torch.rand(1, 3, 24, 31)
    in_range(fold_mren(net)(x), net(x), 1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4])
@torch.no_grad()
def test_bicubic_as_a_convolution(factor: int) -> None:
    for size in ((1, 1), (2, 5), (9, 4)):
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        expected = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
        in_range(BicubicConv(factor, dtype=torch.float64)(x), expected, 1e-14)


@pytest.mark.parametrize(("scale", "tile"), [(2, (2, 2)), (3, (3, 1)), (4, (2, 4)), (1.5, (1, 1))])
@torch.no_grad()
def test_merged_with_the_convolution_behind(scale: float, tile: tuple[int, int]) -> None:
    block, tail = lively(RBWA(8, 6, scale_factor=scale)).double(), lively(nn.Conv2d(6, 5, 3, padding=1)).double()
    for size in ((2, 2), (4, 10), (14, 6)):
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        in_range(fold_with_tail(block, tail, tile=tile)(x), tail(block(x)), 1e-13)


@pytest.mark.parametrize("name", ["mreb", "rbwa", "mren-x2"])
@torch.no_grad()
def test_windowed_statistics(name: str) -> None:
    module = to_local(build(name), sample(name, 1, 6, 6), factor=0.7)
    x = sample(name, 2, 14, 19)
    in_range(fold(module)(x), module(x), 1e-12)


@pytest.mark.parametrize("name", ["mreb", "rbwa", "rbwa-x3"])
@torch.no_grad()
def test_compiled_and_exported(name: str) -> None:
    module, x = build(name), sample(name, 2, 12, 17)
    folded = fold(module)
    in_range(torch.compile(folded, fullgraph=True, backend="eager")(x), module(x), 1e-13)
    exported = torch.export.export(folded, (x,), dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},))
    other = sample(name, 3, 9, 23)
    in_range(exported.module()(other), module(other), 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mreb", "rbwa"])
@torch.no_grad()
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    module, x = build(name, torch.float32), sample(name, 1, 12, 17, dtype=torch.float32)
    expected = module(x)
    folded = fold(module).to(dtype)(x.to(dtype))
    assert folded.dtype == dtype
    # As exact as the block itself at that precision, which rounds at other places.
    plain = (module.to(dtype)(x.to(dtype)).float() - expected).square().mean().sqrt()
    assert (folded.float() - expected).square().mean().sqrt() < 1.5 * plain


@pytest.mark.parametrize("name", ["scacb", "mreb", "rbwa", "mren-x2"])
def test_the_original_is_untouched(name: str) -> None:
    module = build(name).train()
    state = copy.deepcopy(module.state_dict())
    folded = fold(module)
    assert module.training
    assert not folded.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    x = sample(name, 1, 6, 7)
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    with torch.no_grad():
        before = folded(x)
        for parameter in module.parameters():
            parameter.zero_()
        assert torch.equal(folded(x), before), "the copy shares storage with the original"
    assert state.keys() == module.state_dict().keys()


@pytest.mark.parametrize("name", ["scacb", "mrebs", "rbwa"])
def test_inputs_have_gradients(name: str) -> None:
    module, x = build(name), sample(name, 1, 6, 7).requires_grad_()
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    (actual,) = torch.autograd.grad(fold(module)(x).square().sum(), x)
    in_range(actual, expected, 1e-12)


@pytest.mark.parametrize("name", FOLDED)
def test_rewrites_what_it_says(name: str) -> None:
    folded = fold(build(name))
    assert not any(type(part) in (SCACB, MREB, RBWA) for part in folded.modules())


@pytest.mark.parametrize("name", LEFT)
def test_leaves_what_it_cannot_rewrite(name: str) -> None:
    module = build(name)
    assert [type(part) for part in fold(module).modules()] == [type(part) for part in module.modules()]


@pytest.mark.parametrize("name", PARTLY)
def test_rewrites_the_blocks_inside_what_it_leaves(name: str) -> None:
    folded = fold(build(name))
    assert isinstance(folded, MREB)
    assert not any(isinstance(part, SCACB) for part in folded.modules())


def test_subclasses_are_left_alone() -> None:
    class Mine(SCACB):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    module, x = Mine(24), torch.rand(1, 24, 5, 5)
    assert torch.equal(fold(module)(x), module(x))


def test_a_module_that_stands_in_two_places_stays_one() -> None:
    block = SCACB(24)
    folded = fold(nn.Sequential(block, nn.ReLU(), block))
    assert folded[0] is folded[2]


def test_wrong_inputs_are_named() -> None:
    for module in (fold(SCACB(24)), fold(MREB(24)), fold(RBWA(24)), fold(nn.Sequential(MREB(24), MREB(24)))):
        with pytest.raises(ValueError, match="must have 24 channels"):
            module(torch.rand(1, 23, 8, 8))
    with pytest.raises(TypeError, match=r"fold: module must be a torch\.nn\.Module, got function"):
        fold(lively)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"tail must be nn\.Conv2d\(24, ..., 3, padding=1\), got Conv2d\(24, 3, kernel_size=\(1"
    ):
        fold_with_tail(RBWA(24), nn.Conv2d(24, 3, 1))
    with pytest.raises(ValueError, match="tile must be two positive integers"):
        fold_with_tail(RBWA(24), nn.Conv2d(24, 3, 3, padding=1), tile=(0, 2))
    with pytest.raises(ValueError, match=r"multiples of the tile \(2, 4\), got 16 x 18"):
        fold_with_tail(RBWA(24), nn.Conv2d(24, 3, 3, padding=1), tile=(2, 4))(torch.rand(1, 24, 8, 9))
