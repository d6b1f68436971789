"""In training on a CPU, 1x1 convolutions are products of matrices, and nobody can tell from their results."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sc_blocks import MREB, SCACB, _pointwise
from sc_blocks._pointwise import mix_channels
from tests.blocks import perturb


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what is computed as a product."""
    shapes: list[torch.Size] = []
    original = _pointwise._product

    def note(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(x.shape)
        return original(x, weight, bias)

    monkeypatch.setattr(_pointwise, "_product", note)
    return shapes


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(0, 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_value_and_gradients(batch: int, size: tuple[int, int], bias: bool, channels_last: bool) -> None:
    conv = nn.Conv2d(5, 4, 1, bias=bias, dtype=torch.float64)
    x = torch.randn(batch, 5, *size, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), *conv.parameters()]
    actual, expected = mix_channels(conv, x), conv(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    assert actual.stride() == expected.stride() or min(actual.shape) <= 1
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, leaves, weight), torch.autograd.grad(expected, leaves, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_when_it_is_the_way_taken(products: list[torch.Size], monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    block, x = MREB(24), torch.rand(2, 24, 4, 4)
    block(x)
    assert len(products) == 3 * 4 + 4 + 1  # of each stage four, then of each link one, and the last
    with torch.no_grad():
        block(x)
    assert len(products) == threads * 17
    products.clear()
    with torch.autocast("cpu", torch.bfloat16):
        block(x)
    block(x.to(memory_format=torch.channels_last))
    block.bfloat16()(x.bfloat16())
    assert products == []


@torch.no_grad()
def test_recorded_without_gradients(products: list[torch.Size]) -> None:
    block, x = MREB(24).eval(), torch.rand(2, 24, 4, 4)
    torch.compiler.reset()
    recorded = torch.compile(block, fullgraph=True, backend="eager")(x)
    assert torch.export.export(block, (x,)).module()(x).shape == recorded.shape
    assert products == []


def test_hooks_hear_the_same_numbers(products: list[torch.Size]) -> None:
    block, x = perturb(MREB(24)), torch.rand(2, 24, 4, 4)
    expected, heard = block(x), []
    for module in block.modules():
        module.register_forward_hook(lambda module, args, out: heard.append(module))
    products.clear()
    assert torch.equal(block(x), expected)
    assert len(products) == 17
    assert {block.fuse, block.refine.links[0].distill} <= set(heard)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 2, 3, padding=1),
        nn.Conv2d(8, 2, 1, groups=2),
        nn.Conv2d(8, 2, 1, padding_mode="reflect"),
        nn.Sequential(nn.Conv2d(8, 3, 1), nn.GELU(), nn.Conv2d(3, 2, (1, 3), padding=(0, 1))),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 2, 1)),
    ],
    ids=["3x3", "groups", "reflect", "sequence", "weight-norm"],
)
def test_what_was_put_in_its_place_is_called(conv: nn.Module) -> None:
    x = torch.rand(2, 8, 4, 5)
    torch.testing.assert_close(mix_channels(conv, x), conv(x))
    block = SCACB(8, reduction=4)
    block.compress = conv
    assert block(x).shape == x.shape


def test_strides_and_padding_are_kept(products: list[torch.Size]) -> None:
    x = torch.rand(2, 8, 4, 5)
    for conv in (nn.Conv2d(8, 2, 1, stride=2), nn.Conv2d(8, 2, 1, padding=1), nn.Conv2d(8, 2, 1, padding="same")):
        assert torch.equal(mix_channels(conv, x), conv(x))
    assert products == []
