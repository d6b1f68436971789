"""RBWA computes its first convolution at the smaller size, and nobody can tell from its results."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sc_blocks import RBWA, WSILBV, _enlarge
from tests.blocks import perturb


def plainly(conv: nn.Conv2d, x: Tensor, factor: int) -> Tensor:
    return conv(F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False))


@settings(deadline=None, max_examples=40)
@given(
    factor=st.sampled_from(_enlarge.FACTORS),
    batch=st.integers(1, 2),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_value_and_gradients(factor: int, batch: int, height: int, width: int, bias: bool, channels_last: bool) -> None:
    conv = nn.Conv2d(5, 4, 3, padding=1, bias=bias, dtype=torch.float64)
    x = torch.randn(batch, 5, height, width, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), *conv.parameters()]
    expected = plainly(conv, x, factor)
    actual = _enlarge.enlarge_then_convolve(x, conv, factor)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, leaves, weight), torch.autograd.grad(expected, leaves, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = _enlarge.enlarge_then_convolve

    def count(x: Tensor, conv: nn.Conv2d, factor: int) -> Tensor:
        calls.append(factor)
        return original(x, conv, factor)

    monkeypatch.setattr(_enlarge, "enlarge_then_convolve", count)
    return calls


def test_it_is_the_way_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    for factor in (2, 3, 4, 5, 1, 1.5, 6):
        RBWA(4, scale_factor=factor)(torch.rand(1, 4, 4, 4))
    assert calls == [2, 3, 4, 5]


def test_listeners_hear_the_convolution_at_the_larger_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, block, x = counted(monkeypatch), RBWA(4), torch.rand(1, 4, 6, 5)
    expected = block(x)
    heard: list[Tensor] = []
    hook = block.expand.register_forward_hook(lambda conv, args, out: heard.append(args[0]))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-6)
    hook.remove()
    torch.testing.assert_close(heard[0], block.resize(x))
    assert calls == [2]


def test_what_was_put_in_its_place_is_called() -> None:
    class Mine(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    block, x = RBWA(4), torch.rand(1, 4, 6, 5)
    mine = Mine(4, 4, 3, padding=1)
    mine.load_state_dict(block.expand.state_dict())
    changed = copy.deepcopy(block)
    changed.expand = mine
    expected = block.project(block.act(block.attention(block.expand(block.resize(x)) + 1)))
    torch.testing.assert_close(changed(x), expected)


def test_a_convolution_of_another_form_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, block, x = counted(monkeypatch), RBWA(4), torch.rand(1, 4, 6, 5)
    for conv in (nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1)):
        block.expand = conv
        torch.testing.assert_close(block(x), block.project(block.act(block.attention(conv(block.resize(x))))))
    assert calls == []


@pytest.mark.parametrize("block", [RBWA(4), RBWA(4, scale_factor=3), WSILBV(4)], ids=["x2", "x3", "wsilbv"])
def test_transforms_of_functions(block: nn.Module) -> None:
    """Forward mode, and gradients of every sample by ``vmap``, though the gradients are written by hand."""
    block = perturb(copy.deepcopy(block)).double()
    x, direction = torch.randn(2, 3, 1, 4, 4, 5, dtype=torch.float64).unbind()
    _, ahead = torch.func.jvp(block, (x[0],), (direction[0],))
    step = 1e-6
    numeric = (block(x[0] + step * direction[0]) - block(x[0] - step * direction[0])) / (2 * step)
    torch.testing.assert_close(ahead, numeric, rtol=1e-6, atol=1e-7)

    each = torch.func.vmap(torch.func.grad(lambda sample: block(sample).square().sum()))(x)
    one_by_one = [torch.func.grad(lambda sample: block(sample).square().sum())(sample) for sample in x]
    torch.testing.assert_close(each, torch.stack(one_by_one))
