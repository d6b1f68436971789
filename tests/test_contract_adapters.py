"""What every block promises to tools that change its weights or its code, and to threads."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.blocks import COMPOSED, Case, assert_close, each_case_but, most_cases

if TYPE_CHECKING:
    from peft import PeftModel


def convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}


def train(module: nn.Module, x: Tensor) -> None:
    """One step; every convolution must have taken part in it."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-2)
    module(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer.step()
    optimizer.zero_grad()


def lora(block: nn.Module, names: list[str]) -> PeftModel:
    from peft import LoraConfig, get_peft_model  # imports transformers, too

    # Rank 4: peft wants a multiple of the groups of a depthwise convolution.
    config = LoraConfig(r=4, target_modules=names, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, that grouped convolutions cannot be merged
        adapted = get_peft_model(copy.deepcopy(block), config).double()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * len(names)
    return adapted


@most_cases
def test_lora_on_every_convolution(case: Case) -> None:
    block, x = case.build(dtype=torch.float64), case.small_input(2, dtype=torch.float64)
    adapted = lora(block, list(convolutions(block)))
    train(adapted, x)
    assert (adapted(x) - block(x)).abs().max() > 1e-4
    with adapted.disable_adapter():
        assert_close(adapted(x), block(x))


@most_cases
def test_merged_lora_is_the_unmerged_one(case: Case) -> None:
    block, x = case.build(dtype=torch.float64), case.small_input(2, dtype=torch.float64)
    # peft cannot merge into a plain nn.Conv2d with groups, either.
    adapted = lora(block, [name for name, layer in convolutions(block).items() if layer.groups == 1])
    train(adapted, x)
    unmerged = adapted(x)
    adapted.merge_adapter()
    assert_close(adapted(x), unmerged)
    adapted.unmerge_adapter()
    assert_close(adapted(x), unmerged)
    merged = adapted.merge_and_unload()
    assert_close(merged(x), unmerged)
    assert merged.state_dict().keys() == block.state_dict().keys()


@most_cases
def test_pruning(case: Case) -> None:
    block, x = case.build(dtype=torch.float64), case.small_input(2, dtype=torch.float64)
    keys = block.state_dict().keys()
    before = block(x)
    layers = convolutions(block).values()
    for layer in layers:
        prune.l1_unstructured(layer, "weight", amount=0.5)
    assert (block(x) - before).abs().max() > 1e-4
    train(block, x)
    pruned = block(x)
    for layer in layers:
        prune.remove(layer, "weight")
        assert (layer.weight == 0).sum() == round(0.5 * layer.weight.numel())
    assert_close(block(x), pruned)
    assert block.state_dict().keys() == keys


@most_cases
@pytest.mark.parametrize(
    "parametrization",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=["weight_norm", "spectral_norm", "orthogonal"],
)
def test_parametrizations(case: Case, parametrization: Callable[[nn.Module], nn.Module]) -> None:
    block, x = case.build(dtype=torch.float64), case.small_input(2, dtype=torch.float64)
    keys = set(block.state_dict())
    for layer in convolutions(block).values():
        parametrization(layer)
    train(block.train(), x)
    block.eval()
    expected = block(x)
    for layer in convolutions(block).values():
        parametrize.remove_parametrizations(layer, "weight")
    assert_close(block(x), expected)
    assert set(block.state_dict()) == keys


@each_case_but(COMPOSED)
def test_optimised_torchscript(case: Case) -> None:
    block, x = case.build().eval(), case.small_input(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, which fixes checks of sizes, and of TorchScript's age
        traced = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(block, x)))
    with torch.no_grad():
        for _ in range(3):  # the first runs only profile
            assert_close(traced(x), block(x))


@most_cases
def test_eight_threads_at_once(case: Case) -> None:
    block = case.build(dtype=torch.float64)
    inputs = [case.small_input(2, dtype=torch.float64) + number for number in range(8)]

    def step(x: Tensor) -> list[Tensor]:
        out = block(x)
        return [out.detach(), *torch.autograd.grad(out.square().mean(), list(block.parameters()))]

    expected = [step(x) for x in inputs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        for actual, alone in zip(pool.map(step, inputs), expected, strict=True):
            for one, other in zip(actual, alone, strict=True):
                assert_close(one, other)
