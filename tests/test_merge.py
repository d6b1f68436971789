"""RBWA computes its last convolution and the one behind it as one, and nobody can tell from the results."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.mren.model import MREN
from sc_blocks import RBWA, _merge
from tests.blocks import perturb


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The factor of every block whose last convolution is merged."""
    calls: list[int] = []
    original = _merge.convolve_twice

    def count(x: Tensor, first: nn.Conv2d, second: nn.Conv2d, side: int) -> Tensor:
        calls.append(side)
        return original(x, first, second, side)

    monkeypatch.setattr(_merge, "convolve_twice", count)
    return calls


@settings(deadline=None, max_examples=40)
@given(
    side=st.integers(2, 5),
    batch=st.integers(1, 2),
    down=st.integers(1, 4),
    across=st.integers(1, 4),
    biases=st.tuples(st.booleans(), st.booleans()),
    channels_last=st.booleans(),
)
def test_value_and_gradients(
    side: int, batch: int, down: int, across: int, biases: tuple[bool, bool], channels_last: bool
) -> None:
    first = nn.Conv2d(5, 6, 3, padding=1, bias=biases[0], dtype=torch.float64)
    second = nn.Conv2d(6, 2, 3, padding=1, bias=biases[1], dtype=torch.float64)
    x = torch.randn(batch, 5, side * down, side * across, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), *first.parameters(), *second.parameters()]
    actual, expected = _merge.convolve_twice(x, first, second, side), second(first(x))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, leaves, weight), torch.autograd.grad(expected, leaves, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("factor", "side"), [(2, 2), (3, 3), (4, 4), (5, 5), (1.5, 3), (0.5, None), (6, None)])
def test_when_it_is_the_way_taken(merged: list[int], factor: float, side: int | None) -> None:
    block, x = perturb(RBWA(32, scale_factor=factor)), torch.rand(2, 32, 2, 4)
    tail = nn.Conv2d(32, 1, 3, padding=1)
    torch.testing.assert_close(block(x, tail=tail), tail(block(x)), rtol=1e-4, atol=1e-5)
    assert merged == ([side] if side else [])
    assert block(x[:0], tail=tail).shape == (0, 1, 2 * factor, 4 * factor)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_in_mren(merged: list[int], scale: int) -> None:
    net = perturb(MREN(scale, channels=48, num_blocks=1)).double()
    x = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    actual = net(x)
    assert merged == [3 if scale == 3 else 2]
    net.tail.register_forward_hook(lambda module, args, out: None)
    torch.testing.assert_close(net(x), actual)
    assert len(merged) == 1


class Twice(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "tail",
    [
        nn.Conv2d(24, 24, 3, padding=1),
        nn.Conv2d(24, 3, 5, padding=2),
        nn.Conv2d(24, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(24, 3, 3, padding=1, groups=3),
        nn.Conv2d(24, 3, 3, padding=1, stride=2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(24, 3, 3, padding=1)),
        Twice(24, 3, 3, padding=1),
        nn.Sequential(nn.Conv2d(24, 3, 3, padding=1), nn.Tanh()),
    ],
    ids=["wide", "5x5", "reflect", "groups", "stride", "weight-norm", "subclass", "sequence"],
)
def test_other_tails_are_called(merged: list[int], tail: nn.Module) -> None:
    block, x = RBWA(24), torch.rand(1, 24, 6, 5)
    torch.testing.assert_close(block(x, tail=tail), tail(block(x)))
    assert merged == []


def test_listeners_and_half_precision(merged: list[int]) -> None:
    block, tail, x = RBWA(24), nn.Conv2d(24, 3, 3, padding=1), torch.rand(1, 24, 6, 5)
    heard: list[nn.Module] = []
    for conv in (block.project, tail):
        hook = conv.register_forward_hook(lambda conv, args, out: heard.append(conv))
        block(x, tail=tail)
        hook.remove()
    assert heard == [block.project, tail]
    with torch.autocast("cpu", torch.bfloat16):
        block(x, tail=tail)
    block.bfloat16()(x.bfloat16(), tail=tail.bfloat16())
    assert merged == []


def test_a_tail_of_another_width_is_refused_as_ever() -> None:
    with pytest.raises(RuntimeError, match="to have 12 channels, but got 24 channels"):
        RBWA(24)(torch.rand(1, 24, 6, 5), tail=nn.Conv2d(12, 3, 3, padding=1))


def test_another_block_in_the_place_of_the_last() -> None:
    net, x = MREN(4, channels=24, num_blocks=1), torch.rand(1, 3, 6, 5)
    net.reconstruct[1] = nn.Sequential(nn.Conv2d(24, 48, 3, padding=1), nn.PixelShuffle(2))
    assert net.reconstruct(torch.rand(1, 24, 6, 5)).shape == (1, 12, 24, 20)
    assert net(x).shape == (1, 3, 24, 20)


def test_transforms_of_functions() -> None:
    block, tail = perturb(RBWA(12)).double(), nn.Conv2d(12, 1, 3, padding=1, dtype=torch.float64)

    def call(x: Tensor) -> Tensor:
        return block(x, tail=tail)

    x, direction = torch.randn(2, 3, 1, 12, 4, 5, dtype=torch.float64).unbind()
    _, ahead = torch.func.jvp(call, (x[0],), (direction[0],))
    step = 1e-6
    numeric = (call(x[0] + step * direction[0]) - call(x[0] - step * direction[0])) / (2 * step)
    torch.testing.assert_close(ahead, numeric, rtol=1e-6, atol=1e-7)

    each = torch.func.vmap(torch.func.grad(lambda sample: call(sample).square().sum()))(x)
    one_by_one = [torch.func.grad(lambda sample: call(sample).square().sum())(sample) for sample in x]
    torch.testing.assert_close(each, torch.stack(one_by_one))


def test_gradients_of_gradients() -> None:
    block, tail = perturb(RBWA(12)).double(), nn.Conv2d(12, 1, 3, padding=1, dtype=torch.float64)
    x = torch.rand(1, 12, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: block(x, tail=tail), x)


def test_a_copy_has_its_own() -> None:
    net, x = MREN(2, channels=24, num_blocks=1), torch.rand(1, 3, 6, 5)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.tail.weight.zero_()
        copied.tail.bias.zero_()
    enlarged = nn.functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(copied(x), enlarged)
