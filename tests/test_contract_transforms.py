"""What every block promises to function transforms and tracers: torch.func, Jacobians, fake tensors, make_fx."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.functional import hessian as autograd_hessian
from torch.autograd.functional import jacobian as autograd_jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from tests.blocks import BY_NAME, COMPOSED, Case, assert_close, each_case_but, most_cases


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def weighted_loss(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """A loss of parameters and input whose gradient is not the same everywhere, as that of a plain sum is."""

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,)).square().mean()

    return loss


def along_directions(
    case: Case, module: nn.Module, *, directions: int = 3, outputs: int = 4
) -> Callable[[Tensor], Tensor]:
    """The block between few numbers: from steps along directions of the input to projections of the output."""
    x, step = case.small_input(dtype=torch.float64), case.small_input(directions, dtype=torch.float64)
    with torch.no_grad():
        projection = torch.randn(outputs, module(x).numel(), dtype=torch.float64) / 10

    def function(steps: Tensor) -> Tensor:
        return projection @ module(x + torch.einsum("d,dchw->chw", steps, step)).flatten()

    return function


@most_cases
def test_jacobians_agree_in_every_mode(case: Case) -> None:
    function = along_directions(case, case.build(dtype=torch.float64))
    steps, tangent, cotangent = (torch.randn(size, dtype=torch.float64) / 10 for size in (3, 3, 4))
    expected = autograd_jacobian(function, steps)
    assert expected.abs().max() > 0
    assert_close(jacrev(function)(steps), expected)
    assert_close(jacfwd(function)(steps), expected)
    assert_close(autograd_jacobian(function, steps, vectorize=True), expected)
    if "local" not in case.name:
        # The vmap of autograd.functional has no batching rule for nn.MaxPool2d in forward mode; jacfwd has one.
        forward_mode = autograd_jacobian(function, steps, vectorize=True, strategy="forward-mode")
        assert_close(forward_mode, expected)
    out, pull_back = vjp(function, steps)
    assert_close(out, function(steps))
    assert_close(pull_back(cotangent)[0], cotangent @ expected)
    out, pushed = jvp(function, (steps,), (tangent,))
    assert_close(out, function(steps))
    assert_close(pushed, expected @ tangent)


@most_cases
def test_hessians_agree_in_every_mode(case: Case) -> None:
    function = along_directions(case, case.build(dtype=torch.float64))
    steps = torch.randn(3, dtype=torch.float64) / 10

    def loss(steps: Tensor) -> Tensor:
        return function(steps).square().sum()

    expected = autograd_hessian(loss, steps)
    assert expected.abs().max() > 0
    assert_close(expected, expected.T)
    assert_close(hessian(loss)(steps), expected)
    assert_close(jacrev(jacrev(loss))(steps), expected)
    assert_close(autograd_hessian(loss, steps, vectorize=True), expected)


@most_cases
def test_gradients_of_each_sample(case: Case) -> None:
    module, x = case.build(dtype=torch.float64), case.small_input(3, dtype=torch.float64)
    parameters, loss = parameters_of(module), weighted_loss(module)
    each = vmap(grad(lambda parameters, sample: loss(parameters, sample[None])), in_dims=(None, 0))(parameters, x)
    for number, sample in enumerate(x):
        alone = torch.autograd.grad(loss(dict(module.named_parameters()), sample[None]), list(module.parameters()))
        for name, expected in zip(parameters, alone, strict=True):
            assert_close(each[name][number], expected)


@most_cases
def test_curvature_of_the_parameters(case: Case) -> None:
    # A product with the Hessian, forward over reverse and reverse over reverse.
    module, x = case.build(dtype=torch.float64), case.small_input(dtype=torch.float64)
    parameters, loss = parameters_of(module), weighted_loss(module)
    tangents = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    _, product = jvp(grad(lambda parameters: loss(parameters, x)), (parameters,), (tangents,))

    leaves = list(module.parameters())
    first = torch.autograd.grad(loss(dict(module.named_parameters()), x), leaves, create_graph=True)
    along = sum((one * tangent).sum() for one, tangent in zip(first, tangents.values(), strict=True))
    second = torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True)
    assert any(expected.abs().max() > 0 for expected in second)
    for name, expected in zip(parameters, second, strict=True):
        assert_close(product[name], expected)


@most_cases
def test_second_gradients_agree_with_finite_differences(case: Case) -> None:
    function = along_directions(case, case.build(dtype=torch.float64), directions=2, outputs=2)
    steps = (torch.randn(2, dtype=torch.float64) / 10).requires_grad_()
    assert torch.autograd.gradgradcheck(function, steps)


@most_cases
def test_fake_tensors(case: Case) -> None:
    module, x, mode = case.build(), case.small_input(), FakeTensorMode()
    parameters = {name: mode.from_tensor(parameter) for name, parameter in module.named_parameters()}
    fake = mode.from_tensor(x).requires_grad_()
    with mode:
        out = functional_call(module, parameters, (fake,))
        gradients = torch.autograd.grad(out.sum(), (fake, *parameters.values()))
    assert (out.shape, out.dtype) == (case.output_shape(x.shape), x.dtype)
    assert [gradient.shape for gradient in gradients] == [x.shape, *(p.shape for p in module.parameters())]
    assert all(isinstance(tensor, FakeTensor) for tensor in (out, *gradients))


@most_cases
def test_built_of_fake_tensors(case: Case) -> None:
    # Without a device or a type among the arguments: in this mode, torch cannot move even a plain nn.Conv2d.
    with FakeTensorMode():
        module, x = case.build(), case.small_input()
        out = module(x)
    assert all(isinstance(tensor, FakeTensor) for tensor in (out, *module.parameters()))
    assert out.shape == case.output_shape(x.shape)


def step_of(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]]:
    def step(parameters: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
        out = functional_call(module, leaves, (x,))
        gradients = torch.autograd.grad(out.square().mean(), list(leaves.values()))
        return {"": out.detach()} | dict(zip(leaves, gradients, strict=True))

    return step


@each_case_but(COMPOSED)
def test_make_fx_of_forward_and_backward(case: Case) -> None:
    module = case.build(dtype=torch.float64)
    step, parameters = step_of(module), parameters_of(module)
    traced = make_fx(step)(parameters, case.small_input(dtype=torch.float64))
    x = case.small_input(dtype=torch.float64)
    actual, expected = traced(parameters, x), step(parameters, x)
    for name, tensor in expected.items():
        assert_close(actual[name], tensor)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(BY_NAME[name], id=name, marks=[pytest.mark.slow] * (name in ("scacb", "rbwa-x1.5")))
        for name in ("scacb", "chain-bilinear", "wsilbv", "rbwa-x1.5")
    ],
)
def test_make_fx_for_any_size(case: Case) -> None:
    module = case.build(dtype=torch.float64)
    step, parameters = step_of(module), parameters_of(module)
    traced = make_fx(step, tracing_mode="symbolic")(parameters, case.input(7, 18, 26, dtype=torch.float64))
    x = case.input(9, 22, 16, dtype=torch.float64)
    actual, expected = traced(parameters, x), step(parameters, x)
    for name, tensor in expected.items():
        assert_close(actual[name], tensor)
