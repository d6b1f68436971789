"""An enlargement and a convolution computed at the smaller size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sc_blocks import _enlarge


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
