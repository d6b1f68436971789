"""What every block promises to activation checkpointing: the same gradients, with hooks in either pass, too."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tests.blocks import Case, each_case

CONVOLUTION = torch.ops.aten.convolution.default


def keep_convolutions(context: object, operation: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation == CONVOLUTION else CheckpointPolicy.PREFER_RECOMPUTE


KINDS = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "non-reentrant": partial(checkpoint, use_reentrant=False),
    "selective": partial(
        checkpoint, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, keep_convolutions)
    ),
    "selective by list": partial(
        checkpoint, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, [CONVOLUTION])
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def gradients(out: Tensor, module: nn.Module, x: Tensor) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    # backward(), because reentrant checkpoints take nothing else.
    (out * weights).sum().backward()
    found = [x.grad, *(parameter.grad for parameter in module.parameters())]
    x.grad = None
    module.zero_grad()
    return found


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    # The same operations in the same order.
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@each_case
@each_kind
def test_checkpointing_leaves_gradients_alone(case: Case, kind: str) -> None:
    module, x = case.build(), case.input().requires_grad_()
    expected = gradients(module(x), module, x)
    assert_equal(gradients(KINDS[kind](module, x), module, x), expected)


@each_case
@each_kind
def test_hooks_in_the_forward_pass_only(case: Case, kind: str) -> None:
    # As of a profiler, or of capture_attention. What is computed again must save the same tensors.
    module, x, calls = case.build(), case.input().requires_grad_(), []
    expected = gradients(module(x), module, x)
    with ExitStack() as hooks:
        for layer in module.modules():
            hooks.enter_context(layer.register_forward_hook(lambda *_: calls.append(1)))
        out = KINDS[kind](module, x)
    assert calls
    assert_equal(gradients(out, module, x), expected)


@each_case
def test_hooks_in_the_backward_pass_only(case: Case) -> None:
    module, x = case.build(), case.input().requires_grad_()
    expected = gradients(module(x), module, x)
    out = checkpoint(module, x, use_reentrant=False)
    with ExitStack() as hooks:
        for layer in module.modules():
            hooks.enter_context(layer.register_forward_hook(lambda *_: None))
        assert_equal(gradients(out, module, x), expected)
