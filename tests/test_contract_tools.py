"""What every block promises to other people's tools: hooks, tracers, counters, and whoever sets its parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import ptflops
import pytest
import torch
import torch.fx
import torchinfo
from torch import Tensor, nn

from examples.mren.model import MREN
from sc_blocks import (
    DRACB,
    MREB,
    RBWA,
    SCACB,
    WSILB,
    WSILBV,
    AdaptedCommunication,
    DRACBChain,
    FixedCommunication,
    GatedCommunication,
    LearnableCommunication,
    NoCommunication,
)
from tests.blocks import Case, each_case, perturb

# Hooks


def expected_calls(module: nn.Module) -> dict[str, int]:
    """How often each module of a block is called: once, but for what the arithmetic shares between several places."""
    calls = {}
    for name, child in module.named_modules():
        path = name.split(".")
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            continue  # containers have no forward
        if isinstance(child, NoCommunication) and "communication" in path:
            continue  # at the head of a chain there is nothing to fuse
        if "shared" in path:
            calls[name] = 2  # both statistics pass through the same layers
        elif path[-1] == "act" and path[-2:-1] in (["spatial"], ["channel"]):
            both = module.get_submodule(".".join(path[:-2])).parts == "both"
            calls[name] = 4 if both else 3  # one activation behind each convolution of a part
        else:
            calls[name] = 1
    return calls


# A chain takes a sequence, in which torch does not look for tensors: it warns that no input requires a gradient.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@each_case
def test_every_hook_fires(case: Case) -> None:
    module, fired = case.build(), Counter()

    def note(kind: str, name: str) -> Callable[..., None]:
        return lambda *_: fired.update([(kind, name)])

    for name, child in module.named_modules():
        if not (isinstance(child, NoCommunication) and "communication" in name):
            child.register_forward_pre_hook(note("before", name))
            child.register_forward_hook(note("after", name))
            child.register_full_backward_pre_hook(note("backward before", name))
            child.register_full_backward_hook(note("backward after", name))
    module(case.input().requires_grad_()).sum().backward()
    kinds = ("before", "after", "backward before", "backward after")
    assert fired == {(kind, name): number for name, number in expected_calls(module).items() for kind in kinds}


def test_hooks_on_a_chain_see_every_step() -> None:
    chain, fired = DRACBChain(12, 4, 2), Counter()
    chain.register_forward_pre_hook(lambda *_: fired.update(["before"]))
    chain.register_forward_hook(lambda *_: fired.update(["after"]))
    chain.register_full_backward_hook(lambda *_: fired.update(["backward"]))
    x = torch.rand(1, 12, 4, 5, requires_grad=True)
    first, attention_map = chain.step(0, x)
    second, _ = chain.step(1, x, attention_map)
    (first + second).sum().backward()
    assert fired == {"before": 2, "after": 2, "backward": 2}


# torch.fx


@each_case
def test_symbolic_trace(case: Case) -> None:
    module, x = case.build(dtype=torch.float64), case.input(dtype=torch.float64)
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(x), module(x), rtol=1e-12, atol=1e-12)
    other = case.input(1, 4, 6, dtype=torch.float64)  # the graph depends on no size
    torch.testing.assert_close(traced(other), module(other), rtol=1e-12, atol=1e-12)


def features(*widths: int, size: tuple[int, int] = (6, 8)) -> Iterator[Tensor]:
    return (torch.rand(1, width, *size) for width in widths)


@pytest.mark.parametrize(
    ("block", "inputs", "wrong"),
    [
        (SCACB(12), [*features(12)], [*features(5)]),
        (DRACB(12, 4), [*features(12, 4)], [*features(12, 5)]),
        (DRACB(12, 4, communication=None), [*features(12)], [*features(5)]),
        (WSILB(12, local=(3, 4)), [*features(12)], [*features(5)]),
        (WSILBV(12), [*features(12)], [*features(5)]),
        (RBWA(12), [*features(12)], [*features(5)]),
        (RBWA(12, scale_factor=1.5), [*features(12)], [*features(12, size=(5, 5))]),
        (MREB(12), [*features(12)], [*features(5)]),
        (MREB(12, takes_map=True, returns_map=True), [*features(12, 3)], [*features(12)]),
        (DRACBChain(12, 4, 2), [[*features(12, 12)]], [[*features(12)]]),
        (DRACBChain(12, 4, 2, takes_map=True, returns_map=True), [[*features(12, 12)], *features(4)], [[*features(5)]]),
        (FixedCommunication(), [*features(4, 4)], [*features(4, 5)]),
        (LearnableCommunication(4), [*features(4, 4)], [*features(4, 5)]),
        (GatedCommunication(4), [*features(4, 4)], [*features(4, 5)]),
        (AdaptedCommunication(3, 4), [*features(3, 4)], [*features(4, 4)]),
        (MREN(3, channels=12, num_blocks=2, chain="network"), [*features(3)], [*features(5)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_traced_block_still_checks_its_input(block: nn.Module, inputs: list, wrong: list) -> None:
    traced = torch.fx.symbolic_trace(block)
    torch.testing.assert_close(traced(*inputs), block(*inputs))
    with pytest.raises(ValueError, match=r"^\w+: "):
        traced(*wrong)


# Counters


@each_case
def test_torchinfo_and_ptflops_count_right(case: Case) -> None:
    module, x = case.build(), case.input(1)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    convolved, activated = 0, 0

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal convolved, activated
        if type(layer) is nn.Conv2d:  # a bias counts as one more multiplication; tools go by the exact type
            convolved += out.numel() * (layer.weight[0].numel() + (layer.bias is not None))
        elif type(layer) is nn.GELU:
            activated += out.numel()

    handles = [layer.register_forward_hook(count) for layer in module.modules()]
    module(x)
    for handle in handles:
        handle.remove()

    assert torchinfo.summary(module, input_data=x, verbose=0).total_params == parameters
    operations, counted = ptflops.get_model_complexity_info(
        module,
        tuple(x.shape[1:]),
        as_strings=False,
        print_per_layer_stat=False,
        backend_specific_config={"count_functional": False},
    )
    assert counted == parameters
    assert operations == convolved + activated


def test_the_counters_say_what_the_paper_says() -> None:
    summary = torchinfo.summary(SCACB(60), input_size=(1, 60, 24, 24), verbose=0)
    assert summary.total_params == 8280
    assert torchinfo.summary(MREB(60), input_size=(1, 60, 24, 24), verbose=0).total_params == 34035


# Initialisation


def parents_first(module: nn.Module) -> None:
    for child in module.modules():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()


def children_first(module: nn.Module) -> None:
    module.apply(lambda child: child.reset_parameters() if hasattr(child, "reset_parameters") else None)


def owners_only(module: nn.Module) -> None:
    for child in module.modules():
        if [*child.parameters(recurse=False)]:
            child.reset_parameters()


@each_case
@pytest.mark.parametrize("reset", [parents_first, children_first, owners_only])
def test_reset_gives_what_the_constructor_gives(case: Case, reset: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    expected = case.build(perturbed=False).state_dict()
    module = case.build(perturbed=False, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    reset(module)
    actual = module.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_a_gate_whose_bias_was_removed_can_be_reset() -> None:
    channel = perturb(GatedCommunication(4))
    channel.weigh.bias = None
    channel.reset_parameters()
    assert not channel.weigh.weight.any()


# Layers that work in place


class InPlace(nn.Module):
    """A layer that overwrites its input, without an attribute that says so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid_()


def in_place_hardsigmoid() -> nn.Module:
    return nn.Hardsigmoid(inplace=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda **layers: SCACB(12, act_layer=layers["act_layer"]),
        lambda **layers: SCACB(12, act_layer=layers["act_layer"], exchange="inputs"),
        lambda **layers: SCACB(12, act_layer=layers["act_layer"], parts="spatial"),
        lambda **layers: DRACBChain(12, 4, 3, gate_layer=layers["gate_layer"], communication=None),
        lambda **layers: DRACBChain(12, 4, 3, gate_layer=layers["gate_layer"]),
        lambda **layers: DRACBChain(12, 4, 3, gate_layer=layers["gate_layer"], relay="fused"),
        lambda **layers: WSILB(12, gate_layer=layers["gate_layer"]),
        lambda **layers: WSILBV(12, **layers),
        lambda **layers: WSILBV(12, local=(3, 3), **layers),
        lambda **layers: RBWA(12, **layers),
        lambda **layers: MREB(12, relay="fused", **layers),
    ],
)
@pytest.mark.parametrize(
    ("in_place", "plain"), [(InPlace, nn.Sigmoid), (in_place_hardsigmoid, nn.Hardsigmoid)], ids=["own", "torch"]
)
def test_layers_may_work_in_place(
    build: Callable[..., nn.Module], in_place: Callable[[], nn.Module], plain: type[nn.Module]
) -> None:
    block, expected = build(act_layer=in_place, gate_layer=in_place), build(act_layer=plain, gate_layer=plain)
    expected.load_state_dict(block.state_dict())
    results = []
    for module in (block, expected):
        x = torch.rand(2, 12, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = module([x, x + 1, x + 2]) if isinstance(module, DRACBChain) else module(x)
        out = torch.cat(out, dim=1) if isinstance(out, tuple) else out
        out.square().sum().backward()
        results.append((out, x.grad, *(parameter.grad for parameter in module.parameters())))
    for actual, wanted in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("relay", ["raw", "fused"])
@pytest.mark.parametrize("communication", [None, 0.2])
def test_changing_refined_features_leaves_the_map(gate: bool, relay: str, communication: float | None) -> None:
    block = DRACB(12, 4, gate=gate, relay=relay, communication=communication)
    x, previous = features(12, 4)
    for arguments in ((x,), (x, previous)):
        refined, attention_map = block(*arguments)
        before = attention_map.clone()
        refined.relu_()
        assert torch.equal(attention_map, before)
