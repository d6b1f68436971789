"""What every block promises, asked of every block."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sc_blocks
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
)
from sc_blocks.deploy import fold_report
from tests.blocks import Case, assert_close, cases, each_case

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    # Weighted at random: a plain sum has a gradient of ones, which hides errors that cancel.
    out = module(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out.dtype)
    (out * weights).sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@each_case
def test_an_empty_batch(case: Case) -> None:
    x = case.input(0)
    assert case.build()(x).shape == case.output_shape(x.shape)


@each_case
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (5, 9), (17, 3)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_any_size(case: Case, size: tuple[int, int]) -> None:
    x = case.input(2, *(side * case.size_multiple for side in size))
    out = case.build()(x)
    assert out.shape == case.output_shape(x.shape)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (SCACB(24), SCACB(18)),
        (WSILB(12), WSILB(7)),
        (WSILBV(24), WSILBV(16)),
        (RBWA(24, 12), RBWA(18, 8)),
        (MREB(24), MREB(12)),
        (GatedCommunication(12), GatedCommunication(7)),
        (LearnableCommunication(12), LearnableCommunication(7)),
        (LearnableCommunication(12, per_channel=True), LearnableCommunication(7, per_channel=True)),
        (AdaptedCommunication(12, 12), AdaptedCommunication(7, 7)),
        (AdaptedCommunication(12, 24), AdaptedCommunication(7, 9)),
    ],
    ids=lambda block: type(block).__name__,
)
def test_a_block_whose_layers_lost_channels_is_a_narrower_block(wide: nn.Module, narrow: nn.Module) -> None:
    # As packages for structured pruning do it: they give the layers other weights and widths, and the block knows not.
    for ours, theirs in zip(wide.modules(), narrow.modules(), strict=True):
        for name, parameter in theirs.named_parameters(recurse=False):
            setattr(ours, name, parameter)
        if isinstance(ours, nn.Conv2d):
            ours.in_channels, ours.out_channels, ours.groups = theirs.in_channels, theirs.out_channels, theirs.groups
    widths = [narrow.in_channels if isinstance(narrow, RBWA) else narrow.channels]
    if "Communication" in type(narrow).__name__:
        widths.insert(0, narrow.previous_channels if isinstance(narrow, AdaptedCommunication) else widths[0])
    inputs = [torch.rand(1, channels, 6, 5) for channels in widths]
    torch.testing.assert_close(wide(*inputs), narrow(*inputs))
    assert fold_report(wide).rewritten == {}


def test_initialisers_that_go_by_names_pass_over_the_channels() -> None:
    # Of image-to-image code bases: everything that is called Conv or Linear has a weight and a bias.
    def initialise(module: nn.Module) -> None:
        name = type(module).__name__
        if "Conv" in name or "Linear" in name:
            nn.init.normal_(module.weight.data, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias.data)

    for communication in (0.2, None, LearnableCommunication, GatedCommunication):
        MREB(12, communication=communication).apply(initialise)
    AdaptedCommunication(4, 6).apply(initialise)


def test_the_name_of_a_channel_in_0_1_0_is_known() -> None:
    with pytest.warns(DeprecationWarning, match="renamed to FixedCommunication"):
        from sc_blocks import LinearCommunication
    assert (
        LinearCommunication is sc_blocks.communication.LinearCommunication is FixedCommunication
    )  # as pickles find it
    with pytest.raises(AttributeError, match="module 'sc_blocks' has no attribute 'CubicCommunication'"):
        _ = sc_blocks.CubicCommunication


@each_case
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    for name, gradient in gradients(case.build(), case.input()).items():
        assert gradient is not None, f"{name} took no part"
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, f"{name} has no influence"


@each_case
def test_fresh_parameters_get_gradients(case: Case) -> None:
    # What DistributedDataParallel needs: also of parameters that start at zero.
    assert all(gradient is not None for gradient in gradients(case.build(perturbed=False), case.input()).values())


@each_case
def test_input_is_left_alone_and_may_be_a_leaf(case: Case) -> None:
    x = case.input().requires_grad_()
    before = x.detach().clone()
    case.build()(x).sum().backward()
    assert torch.equal(x, before)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@each_case
def test_input_reaches_the_output(case: Case) -> None:
    x, module = case.input(), case.build()
    assert not torch.equal(module(x), module(x + 0.1 * torch.randn_like(x)))


@each_case
def test_repeatable_and_alike_in_train_and_eval(case: Case) -> None:
    x, module = case.input(), case.build()
    module.train()
    trained = module(x)
    assert torch.equal(module(x), trained)
    module.eval()
    assert torch.equal(module(x), trained)


@each_case
def test_samples_do_not_see_each_other(case: Case) -> None:
    x, module = case.input(3, dtype=torch.float64), case.build(dtype=torch.float64)
    alone = torch.cat([module(sample[None]) for sample in x])
    assert_close(module(x), alone)


@each_case
def test_strides_of_the_input_do_not_matter(case: Case) -> None:
    x, module = case.input(dtype=torch.float64), case.build(dtype=torch.float64)
    strided = torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    assert not turned.is_contiguous()
    expected = module(x)
    assert_close(module(strided), expected)
    assert_close(module(turned), expected)


@each_case
def test_channels_last_stays_channels_last(case: Case) -> None:
    x, module = case.input(dtype=torch.float64), case.build(dtype=torch.float64)
    expected = module(x)
    module = module.to(memory_format=torch.channels_last)
    out = module(x.contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last), out.stride()
    assert not out.is_contiguous()
    assert_close(out, expected)


@each_case
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtype_argument(case: Case, dtype: torch.dtype) -> None:
    module, x = case.build(dtype=dtype), case.input(dtype=dtype)
    assert {tensor.dtype for tensor in module.state_dict().values()} <= {dtype}
    out = module(x)
    assert out.dtype == dtype
    assert out.isfinite().all()
    reference = case.build(perturbed=False, dtype=torch.float64)
    reference.load_state_dict(module.state_dict())
    assert_close(out, reference(x.double()).to(dtype))


@pytest.mark.parametrize(
    "build", [lambda: GatedCommunication, lambda: GatedCommunication(4)], ids=["factory", "module"]
)
def test_the_channel_of_a_block_takes_its_dtype(build: Callable[[], Any]) -> None:
    for block in (
        DRACB(12, 4, communication=build(), dtype=torch.float64),
        DRACBChain(12, 4, 2, communication=build(), dtype=torch.float64),
    ):
        assert {parameter.dtype for parameter in block.parameters()} == {torch.float64}


def test_layers_with_parameters_take_the_dtype_of_their_block() -> None:
    for block in (
        SCACB(12, act_layer=nn.PReLU, dtype=torch.float64),
        WSILB(12, gate_layer=nn.PReLU, dtype=torch.float64),
    ):
        assert {parameter.dtype for parameter in block.parameters()} == {torch.float64}


def test_layers_with_parameters_take_the_device_of_their_block() -> None:
    for block in (SCACB(12, act_layer=nn.PReLU, device="meta"), WSILB(12, gate_layer=nn.PReLU, device="meta")):
        assert all(parameter.is_meta for parameter in block.parameters())


@each_case
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_cast_after_construction(case: Case, cast: str) -> None:
    module = getattr(case.build(), cast)()
    x = getattr(case.input(), cast)()
    out = module(x)
    assert out.dtype == x.dtype
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(module, x).values())


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    module, x = case.build(), case.input()
    expected = module(x)
    with torch.autocast("cpu", dtype=dtype):
        out = module(x)
    assert_close(out, expected, dtype=dtype)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
    # Maps that come in at the lower precision, as from a convolution before, leave at it.
    with torch.autocast("cpu", dtype=dtype):
        assert module(x.to(dtype)).dtype == dtype


@each_case
def test_autocast_reaches_every_convolution(case: Case) -> None:
    # Also those that are computed as something else, so that no map inside is kept in twice the memory.
    module, dtypes = case.build(), {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out, name=name: dtypes.__setitem__(name, out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(case.input())
    assert dtypes == dict.fromkeys(dtypes, torch.bfloat16)
    assert dtypes


@each_case
def test_state_dict_round_trip(case: Case) -> None:
    x, module, other = case.input(), case.build(), case.build(perturbed=False)
    expected = module(x)
    state = module.state_dict()
    if state:
        assert not torch.equal(other(x), expected)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(x), expected)


@cases("chain-gated", "mreb")
def test_torch_save_round_trip(case: Case) -> None:
    module, other, file = case.build(), case.build(perturbed=False), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = case.input()
    assert torch.equal(other(x), module(x))


@each_case
def test_safetensors_round_trip(case: Case, tmp_path) -> None:
    module, other = case.build(), case.build(perturbed=False)
    state = module.state_dict()
    # save_file refuses tensors that share memory: a layer used twice must be registered once.
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    save_file(state, tmp_path / "block.safetensors")
    other.load_state_dict(load_file(tmp_path / "block.safetensors"))
    x = case.input()
    assert torch.equal(other(x), module(x))


@each_case
def test_copies_are_equal_and_independent(case: Case) -> None:
    x, module = case.input(), case.build()
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(module(x), expected)


@each_case
@pytest.mark.parametrize("how", ["argument", "context"])
def test_built_on_meta_then_loaded(case: Case, how: str) -> None:
    original = case.build()
    if how == "argument":
        module = case.build(perturbed=False, device="meta")
    else:
        with torch.device("meta"):
            module = case.build(perturbed=False)
    assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    shape = case.output_shape(case.input().shape)
    assert module(case.input(device="meta")).shape == shape
    module = module.to_empty(device="cpu")
    module.load_state_dict(original.state_dict())
    x = case.input()
    assert torch.equal(module(x), original(x))


@pytest.mark.parametrize(
    "block",
    [
        SCACB(14, reduction=4, parts="spatial", residual=False),
        SCACB(12, exchange="inputs"),
        SCACB(12, exchange=None),
        DRACB(12, 5, relay="fused"),
        DRACBChain([12, 8], [4, 6], resample="nearest"),
        DRACBChain(12, 4, 3, takes_map=True),
        WSILB(6, local=(3, 5), eps=0.5),
        WSILBV(12, reduction=3, eps=0),
        RBWA(12, 8, scale_factor=1.5),
        RBWA(12),
        MREB(12, distilled_channels=5, num_stages=2, returns_map=True),
        FixedCommunication(0.7),
        LearnableCommunication(5, per_channel=True, init=0.3),
        GatedCommunication(5, init=0.3),
        AdaptedCommunication(5, 6, resample=None),
    ],
    ids=lambda block: type(block).__name__,
)
def test_extra_repr_is_a_constructor_call(block: nn.Module) -> None:
    name = type(block).__name__
    again = eval(f"{name}({block.extra_repr()})", vars(sc_blocks))
    assert again.extra_repr() == block.extra_repr()
    assert repr(again) == repr(block)
    shapes = [{key: tensor.shape for key, tensor in each.state_dict().items()} for each in (block, again)]
    assert shapes[0] == shapes[1]
