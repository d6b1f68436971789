"""Two convolutions computed as one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sc_blocks import _merge


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
