"""Gradients are right, and stay finite where the usual formulas break: flat maps, single pixels, half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sc_blocks import WSILB, WSILBV
from tests.blocks import Case, each_case, perturb

HALVES = [torch.float16, torch.bfloat16]


def check_gradients(module: nn.Module, x: Tensor) -> None:
    """Compare the gradients of input and parameters with finite differences, in float64.

    ``fast_mode`` tries random directions rather than every element.
    """
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)

    parameters = [parameter.detach().requires_grad_() for parameter in module.parameters()]
    assert x.dtype == torch.float64
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *parameters), fast_mode=True)


@each_case
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    check_gradients(case.build(dtype=torch.float64), case.input(2, 4, 6, dtype=torch.float64))


@pytest.mark.parametrize("block", [WSILB, WSILBV])
@pytest.mark.parametrize("local", [None, (2, 3)])
def test_gradients_of_every_element_of_the_statistics(block: type[WSILB], local: tuple[int, int] | None) -> None:
    module = perturb(block(4, local=local, dtype=torch.float64))
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)


@each_case
def test_second_derivatives_exist(case: Case) -> None:
    # As a gradient penalty needs them.
    module, x = case.build(dtype=torch.float64), case.input(1, 4, 4, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()
    assert second.abs().max() > 0


@each_case
@pytest.mark.parametrize("fill", [0.0, 1.0, -300.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (8, 6)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_flat_maps(case: Case, fill: float, size: tuple[int, int]) -> None:
    x = case.input(2, *(side * case.size_multiple for side in size)).fill_(fill).requires_grad_()
    module = case.build()
    out = module(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("block", [WSILB, WSILBV])
def test_no_eps_gives_no_gradient_on_flat_maps(block: type[WSILB]) -> None:
    # What eps is for, and proof that the test above can fail.
    x = torch.ones(1, 8, 4, 4, requires_grad=True)
    block(8, eps=0)(x).sum().backward()
    assert x.grad.isnan().any()


def test_eps_zero_is_the_biased_standard_deviation() -> None:
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    module = perturb(WSILBV(8, eps=0, dtype=torch.float64))
    contrast = x.mean((2, 3), keepdim=True) + x.std((2, 3), unbiased=False, keepdim=True)
    gate = torch.sigmoid(module.shared(contrast) + module.shared(x.amax((2, 3), keepdim=True)))
    torch.testing.assert_close(module(x), x * gate, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [WSILB, WSILBV])
def test_flat_windows_far_from_the_mean(block: type[WSILB]) -> None:
    # Here the rounding of the squares is larger than the variance, and could make it negative.
    x = (1e4 * torch.randn(1, 64, 1, 1)).repeat(1, 1, 24, 24)
    x[..., 12:] *= -3.3
    x.requires_grad_()
    out = block(64, local=(7, 5))(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


# Half precision


def statistics(block: WSILB, x: Tensor) -> Tensor:
    """The contrast, then the peak, as the shared layer gets them."""
    seen = []
    hook = block.shared.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        block(x)
    finally:
        hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("block", [WSILB, WSILBV])
@pytest.mark.parametrize("local", [None, (3, 3)])
def test_statistics_of_maps_far_from_zero(block: type[WSILB], local: tuple[int, int] | None) -> None:
    x = 1e4 + torch.rand(1, 8, 24, 24)
    module = block(8, local=local)
    actual = statistics(module, x)
    expected = statistics(module.double(), x.double())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=0.02)


# A spread of 173, and squares that sum to 8e9: half precision ends at 65504.
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("local", [None, (64, 48)])
@pytest.mark.parametrize("shift", [0, 200])
def test_half_precision_on_large_maps(dtype: torch.dtype, local: tuple[int, int] | None, shift: float) -> None:
    x = (torch.rand(1, 4, 512, 512) * 600 - 300 + shift).to(dtype)
    module = WSILBV(4, local=local)
    expected = statistics(module.double(), x.double())
    actual = statistics(module.to(dtype), x)
    assert actual.dtype == dtype
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected, rtol=2e-2, atol=0)
    out = module(x)
    assert out.dtype == dtype
    reference = module.double()(x.double())
    torch.testing.assert_close(out.double(), reference, rtol=2e-2, atol=2e-2 * 300)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("incoming", ["half", "single"])
def test_autocast_on_large_maps(dtype: torch.dtype, incoming: str) -> None:
    x = (torch.rand(1, 4, 512, 512) * 600 - 300).to(dtype if incoming == "half" else torch.float32)
    module = WSILBV(4)
    with torch.autocast("cpu", dtype=dtype):
        actual = statistics(module, x)
        out = module(x)
    expected = statistics(module.double(), x.double())
    torch.testing.assert_close(actual.double(), expected, rtol=2e-2, atol=0)
    assert out.isfinite().all()
    assert out.dtype == x.dtype


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("local", [None, (16, 16)])
def test_half_precision_gradients_on_large_maps(dtype: torch.dtype, local: tuple[int, int] | None) -> None:
    x = (torch.rand(1, 4, 256, 256) * 600 - 300).to(dtype).requires_grad_()
    WSILBV(4, local=local, dtype=dtype)(x).mean().backward()
    assert x.grad.isfinite().all()
