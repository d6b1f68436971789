"""Folded networks compute the function of those that they were folded from: at every size, to the border."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import accelerate
import pytest
import torch
import torch.fx
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from examples.mren.fold import BicubicConv, fold_mren, pad_widths
from examples.mren.model import MREN, load_mren
from sc_blocks import DRACB, MREB, RBWA, SCACB, WSILBV, GatedCommunication, LearnableCommunication, to_local
from sc_blocks.deploy import fold, fold_report, folding
from sc_blocks.deploy.rbwa import FoldedRBWA, NarrowConv
from sc_blocks.introspect import capture_attention
from sc_blocks.surgery import replace_modules


def lively(module: nn.Module) -> nn.Module:
    """With weights that make every part count: fresh biases and gates are close to nothing.

    A gain of one keeps the maps of a long chain from growing stage by stage, and float32 well-conditioned: with 1.5
    the plain block alone was 1.6e-5 of its range away from its value in float64.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    return module


def conv3(*widths: int, **options) -> nn.Conv2d:
    return nn.Conv2d(*widths, 3, padding=1, **options)


NETWORKS = {
    "scacb": lambda: SCACB(24),
    "scacb-none": lambda: SCACB(30, exchange=None, residual=False, act_layer=nn.SiLU),
    "scacb-inputs": lambda: SCACB(24, exchange="inputs", bias=False),
    "scacb-spatial": lambda: SCACB(24, parts="spatial", act_layer=nn.ReLU),
    "mreb": lambda: MREB(24),
    "mreb-gated": lambda: MREB(24, communication=GatedCommunication, relay="fused"),
    "mreb-stages": lambda: MREB(24, num_stages=1, distilled_channels=5, gate=False, residual=False),
    "wsilbv": lambda: WSILBV(24),
    "rbwa": lambda: RBWA(20, 10),
    "rbwa-x3": lambda: RBWA(12, 20, scale_factor=3, act_layer=nn.LeakyReLU, gate_layer=nn.Tanh),
    "rbwa-x4": lambda: RBWA(12, scale_factor=4, bias=False),
    "rbwa-x5": lambda: RBWA(12, scale_factor=5),
    "rbwa-x1.5": lambda: RBWA(12, scale_factor=1.5),
    "rbwa-x1": lambda: RBWA(12, scale_factor=1),
    "tail": lambda: nn.Sequential(RBWA(16), conv3(16, 1)),
    "tail-x3": lambda: nn.Sequential(RBWA(24, scale_factor=3, bias=False), conv3(24, 1, bias=False), nn.Tanh()),
    "tail-x1.5": lambda: nn.Sequential(RBWA(24, scale_factor=1.5), conv3(24, 1)),
    "tails": lambda: nn.Sequential(conv3(3, 24), SCACB(24), RBWA(24, scale_factor=2), RBWA(24, 16), conv3(16, 1)),
    "mren-x3": lambda: MREN(3, channels=24, num_blocks=1),
}
SLOW = pytest.mark.slow
each = pytest.mark.parametrize("name", NETWORKS)


def some(*names: str, slow: int = 0) -> pytest.MarkDecorator:
    """Some of the networks, of which the last ones take minutes."""
    quick = len(names) - slow
    return pytest.mark.parametrize("name", [*names[:quick], *(pytest.param(n, marks=SLOW) for n in names[quick:])])


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return lively(NETWORKS[name]()).to(dtype).eval()


def sample(name: str, *size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    channels = next(build(name).parameters()).shape[1]
    batch, height, width = (side * (2 if "x1.5" in name and place else 1) for place, side in enumerate(size))
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)


def in_small_strips(folded: nn.Module) -> nn.Module:
    """As if every map were large."""
    for module in folded.modules():
        if hasattr(module, "strip_values"):
            module.strip_values = module.least_values = 1
    return folded


def in_range(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within a share of the range of what is expected."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    reach = max(1.0, (expected.max() - expected.min()).item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * reach)


@each
@torch.no_grad()
def test_computes_the_same(name: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        module = build(name, dtype)
        folded = fold(module)
        for size in ((1, 12, 17), (2, 53, 48)):
            x = sample(name, *size, dtype=dtype)
            before = x.clone()
            in_range(folded(x), module(x), tolerance)
            assert torch.equal(x, before)


@each
@settings(deadline=None, max_examples=8)
@given(batch=st.integers(1, 3), height=st.integers(1, 60), width=st.integers(1, 12), channels_last=st.booleans())
@torch.no_grad()
def test_at_any_size_in_strips(name: str, batch: int, height: int, width: int, channels_last: bool) -> None:
    module, x = build(name), sample(name, batch, height, width)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    in_range(in_small_strips(fold(module))(x), module(x), 1e-13)


@each
@torch.no_grad()
def test_as_it_lies_in_memory(name: str) -> None:
    module = build(name)
    folded = in_small_strips(fold(module))
    x = sample(name, 2, 40, 9)
    assert folded(x).is_contiguous()
    x = x.to(memory_format=torch.channels_last)
    assert folded(x).stride() == module(x).stride()


@some("scacb", "mreb", "wsilbv", "rbwa", "rbwa-x1.5", "tail", "mren-x3")
@torch.no_grad()
def test_windowed_statistics(name: str) -> None:
    module = to_local(build(name), sample(name, 1, 6, 6), factor=0.7) if name != "scacb" else build(name)
    x = sample(name, 2, 34, 9)
    in_range(in_small_strips(fold(module))(x), module(x), 1e-12)


def test_windows_come_before_folding() -> None:
    net, x = build("tail"), sample("tail", 1, 20, 6)
    folded = in_small_strips(fold(net))
    with pytest.raises(
        ValueError, match=r"to_local: module must not be folded yet, .*; call to_local first, then fold"
    ):
        to_local(folded, x)
    assert folded[0].attention.local is None
    to_local(fold(net), x)  # so small a map that the folded block works as it was written


def test_a_copy_that_was_made_in_inference_mode_takes_other_weights_and_passes_gradients_on() -> None:
    net, x = build("tail"), sample("tail", 1, 20, 6)
    with torch.inference_mode():
        folded = fold(net)
    folded.load_state_dict(net.state_dict())
    x.requires_grad_()
    in_range(torch.autograd.grad(folded(x).sum(), x)[0], torch.autograd.grad(net(x).sum(), x)[0], 1e-12)


def test_a_folded_block_keeps_its_name_in_messages() -> None:
    with pytest.raises(ValueError, match=r"^WSILBV: x must have 12 channels .*, or build WSILBV for 3"):
        fold(WSILBV(12))(torch.zeros(1, 3, 5, 6))


def test_of_no_samples_and_on_no_device() -> None:
    for name in NETWORKS:
        module, x = build(name, torch.float32), sample(name, 1, 40, 8, dtype=torch.float32)
        folded = in_small_strips(fold(module))
        assert folded(x[:0]).shape == module(x[:0]).shape
        assert folded.to("meta")(x.to("meta")).shape == module(x).shape


class Operations(TorchDispatchMode):
    """Lists what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_as_written_on_another_device() -> None:
    """A GPU gains nothing from the rewrites, and a CUDA graph cannot hold values that are sent from the CPU."""
    for name in NETWORKS:
        module, x = build(name, torch.float32).to("meta"), sample(name, 1, 40, 8, dtype=torch.float32).to("meta")
        folded = in_small_strips(fold(module))
        with torch.no_grad(), Operations() as written:
            module(x)
        with torch.no_grad(), Operations() as rewritten:
            folded(x)
        assert rewritten.names == written.names, name


def operations(net: nn.Module, x: Tensor, kind: str) -> int:
    """How many operations of a kind a network takes."""
    with torch.no_grad(), Operations() as done:
        net(x)
    return sum(kind in name for name in done.names)


def test_one_weighing_takes_one_convolution_less() -> None:
    block, x = SCACB(24).eval(), torch.rand(1, 24, 40, 40)
    assert operations(fold(block), x, "convolution") == operations(block, x, "convolution") - 1


# Maps of many channels are large in few pixels, and quick to process.


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
@torch.no_grad()
def test_large_maps_are_enlarged_in_fewer_multiplications(factor: int) -> None:
    block, x = RBWA(256, 4, scale_factor=factor).eval(), torch.rand(1, 256, 32, 32)
    folded = fold(block)
    with FlopCounterMode(display=False) as written:
        block(x)
    with FlopCounterMode(display=False) as rewritten:
        folded(x)
    assert rewritten.get_total_flops() < 0.6 * written.get_total_flops()


@pytest.fixture
def one_thread() -> Iterator[None]:
    # Each thread adds to the height of a strip.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("block", "size", "kind"),
    [
        (SCACB(8192, reduction=8192), (64, 16), "convolution"),
        (SCACB(8192, reduction=8192, exchange=None), (64, 16), "convolution"),
        (WSILBV(1024, reduction=1024), (128, 16), "mean"),
    ],
    ids=["scacb", "scacb-none", "wsilbv"],
)
def test_large_maps_are_processed_in_strips(block: SCACB | WSILBV, size: tuple[int, int], kind: str) -> None:
    x = torch.rand(1, block.channels, *size)
    assert operations(fold(block), x, kind) > 2 * operations(block, x, kind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@some("scacb", "mreb", "rbwa", "tail")
@torch.no_grad()
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    module, x = build(name, torch.float32), sample(name, 1, 36, 17, dtype=torch.float32)
    expected = module(x)
    folded = in_small_strips(fold(module)).to(dtype)(x.to(dtype))
    assert folded.dtype == dtype
    # As exact as the block itself at that precision, which rounds at other places.
    plain = (module.to(dtype)(x.to(dtype)).float() - expected).square().mean().sqrt()
    assert (folded.float() - expected).square().mean().sqrt() < 2 * plain


@some("wsilbv", "rbwa")
@torch.no_grad()
def test_values_whose_squares_overflow_in_half_precision(name: str) -> None:
    module, x = build(name, torch.float16), 1000 * sample(name, 1, 36, 17, dtype=torch.float16)
    in_range(in_small_strips(fold(module))(x), module(x), 1e-2)


@some("scacb", "mreb", "rbwa", "tail", "mren-x3")
@torch.no_grad()
def test_autocast(name: str) -> None:
    module, x = build(name, torch.float32), sample(name, 1, 36, 17, dtype=torch.float32)
    expected, folded = module(x), in_small_strips(fold(module))
    with torch.autocast("cpu", torch.bfloat16):
        actual, plain = folded(x), module(x)
    assert actual.dtype == plain.dtype
    error = (plain.float() - expected).square().mean().sqrt()
    assert (actual.float() - expected).square().mean().sqrt() < 2 * error


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@some("scacb", "wsilbv", "tail", "rbwa", "mreb", "rbwa-x5", "tail-x3", "mren-x3", slow=5)
def test_compiled_traced_exported(name: str) -> None:
    module, x = build(name), sample(name, 2, 12, 18)
    folded = in_small_strips(fold(module))
    with torch.no_grad():
        in_range(torch.compile(folded, fullgraph=True, backend="eager")(x), module(x), 1e-13)
        other = sample(name, 3, 37, 23)
        in_range(torch.jit.trace(folded, (x,))(other), module(other), 1e-13)
        sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
        exported = torch.export.export(folded, (x,), dynamic_shapes=sizes, strict=False)
        for size in ((37, 23), (3, 3), (1, 1)):
            other = sample(name, 3, *size)
            in_range(exported.module()(other), module(other), 1e-13)


@some("scacb", "wsilbv", "rbwa", "rbwa-x1.5", "tail", "mreb")
def test_traced_by_fx(name: str) -> None:
    module, x = build(name), sample(name, 2, 12, 18)
    traced = torch.fx.symbolic_trace(in_small_strips(fold(module)))
    for other in (x, sample(name, 1, 37, 23)):
        in_range(traced(other), module(other), 1e-13)


@pytest.mark.filterwarnings("error:There is a performance drop")
@some("scacb", "wsilbv", "rbwa", "tail")
@torch.no_grad()
def test_over_samples_and_networks_by_vmap(name: str) -> None:
    x = sample(name, 3, 36, 17)
    module = build(name)
    folded = in_small_strips(fold(module))
    for layout in (torch.contiguous_format, torch.channels_last):
        samples = x.contiguous(memory_format=layout)[:, None]
        in_range(torch.vmap(folded)(samples)[:, 0], module(x), 1e-13)
    parameters = {key: torch.stack([each, each / 2]) for key, each in module.named_parameters()}
    both = torch.vmap(lambda weights: functional_call(folded, weights, (x,)))(parameters)
    halved = {key: each / 2 for key, each in module.named_parameters()}
    in_range(both[1], functional_call(module, halved, (x,)), 1e-13)


@some("scacb", "wsilbv", "rbwa", "tail")
def test_forward_mode_derivatives(name: str) -> None:
    x = sample(name, 1, 36, 17)
    direction, module = x.cos(), build(name).requires_grad_(False)
    folded = in_small_strips(fold(module))
    _, expected = torch.func.jvp(module, (x,), (direction,))
    in_range(torch.func.jvp(folded, (x,), (direction,))[1], expected, 1e-13)
    _, of_samples = torch.func.jvp(torch.vmap(folded), (x[None],), (direction[None],))
    in_range(of_samples[0], expected, 1e-13)
    weights = dict(module.named_parameters())
    changes = {key: weight.cos() for key, weight in weights.items()}
    of_weights = [
        torch.func.jvp(lambda weights, net=net: functional_call(net, weights, (x,)), (weights,), (changes,))[1]
        for net in (folded, module)
    ]
    in_range(*of_weights, 1e-12)


class Tagged(Tensor):
    """A subclass of the user's."""


@some("scacb", "wsilbv", "rbwa", "tail")
@torch.no_grad()
def test_results_lie_where_the_input_lies(name: str) -> None:
    module, x = build(name), sample(name, 1, 36, 17)
    folded, expected = in_small_strips(fold(module)), module(x)
    with torch.device("meta"):  # as torch.set_default_device does, for example on a machine with a GPU
        in_range(folded(x), expected, 1e-13)
    assert isinstance(folded(x.as_subclass(Tagged)), Tagged)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
@some("mreb", "rbwa-x3", "tails")
def test_both_exporters_to_onnx(name: str, dynamo: bool) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module, x = build(name, torch.float32), sample(name, 2, 8, 10, dtype=torch.float32)
    file = io.BytesIO()
    sides = {0: "batch", 2: "height", 3: "width"}
    if dynamo:
        shapes = {"dynamic_shapes": (dict.fromkeys(sides, Dim.DYNAMIC),)}
    else:
        shapes = {"dynamic_axes": {"x": sides}, "opset_version": 17}
    torch.onnx.export(fold(module), (x,), file, dynamo=dynamo, input_names=["x"], external_data=False, **shapes)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in ((2, 8, 10), (1, 41, 6)):
        x = sample(name, *size, dtype=torch.float32)
        (actual,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            in_range(torch.from_numpy(actual), module(x), 1e-5)


def test_several_threads_at_once() -> None:
    module = build("tails")
    folded, inputs = in_small_strips(fold(module)), [sample("tails", 1, 30 + number, 8) for number in range(8)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for actual, x in zip(pool.map(torch.no_grad()(folded), inputs), inputs, strict=True):
            in_range(actual, module(x), 1e-13)


@each
def test_gradients_reach_the_input(name: str) -> None:
    module, x = build(name), sample(name, 1, 34, 7).requires_grad_()
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    (actual,) = torch.autograd.grad(in_small_strips(fold(module))(x).square().sum(), x)
    in_range(actual, expected, 1e-12)


def test_the_original_is_untouched_and_the_parameters_are_the_networks() -> None:
    for name in NETWORKS:
        module = build(name).train()
        folded = fold(module)
        assert module.training
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert not any(part.training for part in folded.modules())
        assert not any(parameter.requires_grad for parameter in folded.parameters())
        assert [part for part, _ in folded.named_modules()] == [part for part, _ in module.named_modules()]
        with torch.no_grad():  # other weights may be loaded, and count
            for parameter in module.parameters():
                parameter.mul_(0.9)
            folded.load_state_dict(module.state_dict())
            x = sample(name, 1, 34, 6)
            in_range(in_small_strips(folded)(x), module.eval()(x), 1e-13)


def test_containers_stay_containers() -> None:
    row = fold(build("tails"))
    assert isinstance(row, nn.Sequential)
    assert len(row) == 5
    for part, cls in zip(row, (nn.Conv2d, SCACB, RBWA, RBWA, nn.Conv2d), strict=True):
        assert isinstance(part, cls)
    assert row[2].size_multiple == 1
    x = sample("tails", 1, 20, 9)
    with torch.no_grad():
        in_range(row[3:](row[:3](x)), row(x), 1e-13)
        for part in row:
            x = part(x)
        in_range(x, row(sample("tails", 1, 20, 9)), 1e-13)
    copied = copy.deepcopy(row)
    assert isinstance(copied, type(row))
    file = io.BytesIO()
    torch.save(row, file)
    file.seek(0)
    assert [type(part) for part in torch.load(file, weights_only=False)] == [type(part) for part in row]


def test_folding_twice_is_folding_once() -> None:
    once = fold(build("tails"))
    twice = fold(once)
    assert [type(part) for part in twice.modules()] == [type(part) for part in once.modules()]
    assert set(fold_report(once).left.values()) == {"is folded already"}


def test_hooks_that_came_later_and_maps_of_a_folded_block() -> None:
    block, x = build("mreb"), sample("mreb", 1, 40, 6)
    with torch.no_grad(), capture_attention(block) as expected:
        block(x)
    folded = in_small_strips(fold(block))
    with torch.no_grad(), capture_attention(folded) as actual:
        folded(x)
    assert list(actual) == list(expected)
    for name in expected:
        in_range(actual[name], expected[name], 1e-13)


# -- what is not of the known form ---


class Louder(SCACB):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class LouderConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class LouderRow(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def convolutions(net: nn.Module) -> list[nn.Conv2d]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def spatial(net: nn.Module, number: int) -> nn.Conv2d:
    found = [conv for conv in convolutions(net) if conv.kernel_size == (3, 3)]
    return found[number % len(found)]


def activation(net: nn.Module, number: int) -> tuple[nn.Module, str]:
    found = [(module, name) for module in net.modules() for name in ("act", "gate") if getattr(module, name, None)]
    return found[number % len(found)]


def wrapped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: 1.5 * function(*args, **options)


def circular(conv: nn.Conv2d) -> None:
    """As users of diffusers do for images that tile without seams."""

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias, groups=conv.groups)

    conv._conv_forward = forward


def other_options(conv: nn.Conv2d, **options) -> None:
    for name, value in options.items():
        setattr(conv, name, value)


def swap_activation(net: nn.Module, number: int, new: nn.Module) -> None:
    module, name = activation(net, number)
    setattr(module, name, new)


def replace_gates(net: nn.Module, number: int) -> None:
    replace_modules(net, lambda name, module: name.endswith("gate"), lambda old, name: nn.Hardsigmoid())


def pruned(conv: nn.Conv2d, *, finally_removed: bool) -> None:
    prune.random_unstructured(conv, "weight", 0.3)
    if finally_removed:
        prune.remove(conv, "weight")


def tied(net: nn.Module, number: int) -> None:
    first, second = spatial(net, number), spatial(net, number + 1)
    if first.weight.shape == second.weight.shape:
        second.weight = first.weight


CHANGES: dict[str, Callable[[nn.Module, int], object]] = {
    "padding_mode": lambda net, n: setattr(spatial(net, n), "padding_mode", "reflect"),
    "replicate": lambda net, n: [other_options(conv, padding_mode="replicate") for conv in [spatial(net, n)]],
    "dilation": lambda net, n: other_options(spatial(net, n), dilation=(2, 2), padding=(2, 2)),
    "stride": lambda net, n: other_options(spatial(net, -1), stride=(2, 2)),
    "conv_forward": lambda net, n: circular(spatial(net, n)),
    "forward": lambda net, n: setattr(spatial(net, n), "forward", wrapped(spatial(net, n).forward)),
    "forward of a block": lambda net, n: setattr(net[n % 4], "forward", wrapped(net[n % 4].forward)),
    "subclass": lambda net, n: setattr(spatial(net, n), "__class__", LouderConv),
    "subclass of a block": lambda net, n: setattr(net[0], "__class__", Louder),
    "subclass of the row": lambda net, n: setattr(net, "__class__", LouderRow),
    "hook": lambda net, n: spatial(net, n).register_forward_hook(lambda module, args, out: out + 1),
    "pre-hook": lambda net, n: spatial(net, n).register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "hook of a block": lambda net, n: net[n % 5].register_forward_hook(lambda module, args, out: out.square()),
    "pre-hook of a block": lambda net, n: net[n % 5].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "hook of the row": lambda net, n: net.register_forward_hook(lambda module, args, out: -out),
    "spectral_norm": lambda net, n: nn.utils.spectral_norm(spatial(net, n)),
    "weight_norm": lambda net, n: nn.utils.weight_norm(spatial(net, n)),
    "parametrized spectral_norm": lambda net, n: parametrizations.spectral_norm(spatial(net, n)),
    "parametrized weight_norm": lambda net, n: parametrizations.weight_norm(spatial(net, n)),
    "pruned": lambda net, n: pruned(spatial(net, n), finally_removed=False),
    "pruned for good": lambda net, n: pruned(spatial(net, n), finally_removed=True),
    "global activation": lambda net, n: swap_activation(net, n, Swish()),
    "softmax": lambda net, n: swap_activation(net, n, nn.Softmax2d()),
    "other activation": lambda net, n: swap_activation(net, n, nn.LeakyReLU(0.3, inplace=True)),
    "learned activation": lambda net, n: swap_activation(net, n, nn.PReLU(init=0.4).double()),
    "activation with a hook": lambda net, n: activation(net, n)[0].register_forward_hook(lambda m, a, out: 3 * out),
    "gates": replace_gates,
    "tied weights": tied,
    "one block twice": lambda net, n: net.insert(1, net[0]),
    "one tail twice": lambda net, n: net.extend([conv3(1, 24).double(), net[3], net[4]]),
    "windows": lambda net, n: setattr(net[2].attention, "local", (5, 7)),
    "eps": lambda net, n: setattr(net[3].attention, "eps", 0.5),
    "flag": lambda net, n: setattr(net[0], "residual", not net[0].residual),
    "compiled": lambda net, n: net[n % 4].compile(backend="eager"),
    "resize": lambda net, n: setattr(
        net[2], "resize", lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    ),
    "expand": lambda net, n: setattr(net[3], "expand", nn.Conv2d(24, 16, 5, padding=2).double()),
    "project": lambda net, n: setattr(net[3], "project", nn.Sequential(net[3].project, nn.Tanh())),
    "shared": lambda net, n: setattr(net[2].attention, "shared", nn.Identity()),
    "scale_factor": lambda net, n: setattr(net[2], "scale_factor", 3),
    "dropout in train mode": lambda net, n: net.insert(4, nn.Dropout(0.5)),
    "attribute": lambda net, n: setattr(net[2], "note", "harmless"),
    "forward of the row": lambda net, n: setattr(net, "forward", lambda x: net[4](torch.tanh(net[:4](x)))),
}


def network() -> nn.Sequential:
    return lively(nn.Sequential(SCACB(24), MREB(24, num_stages=1), RBWA(24), RBWA(24, 16), conv3(16, 1))).double()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@given(
    changes=st.lists(st.tuples(st.sampled_from(list(CHANGES)), st.integers(0, 9)), min_size=2, max_size=2),
    training=st.booleans(),
)
@torch.no_grad()
def test_changed_networks_are_left_or_folded_to_themselves(changes: list[tuple[str, int]], training: bool) -> None:
    net = network()
    for name, number in changes:
        # Two changes may not go together.
        with suppress(AttributeError, IndexError, KeyError, RuntimeError, ValueError, TypeError):
            CHANGES[name](net, number)
    x = torch.randn(1, 24, 33, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    folded = in_small_strips(fold(net.train(training)))
    try:
        expected = net.eval()(x)
    except (RuntimeError, ValueError, TypeError) as error:
        with pytest.raises(type(error)):
            folded(x)
        return
    in_range(folded(x), expected, 1e-11)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_each_change(change: str) -> None:
    x = torch.randn(1, 24, 33, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for number in range(3):
        net = network()
        CHANGES[change](net, number)
        in_range(in_small_strips(fold(net))(x), net.eval()(x), 1e-11)


def test_blocks_whose_parametrizations_were_removed_are_folded() -> None:
    net = lively(nn.Sequential(RBWA(24, 16), conv3(16, 1)))
    for conv in (net[0].expand, net[1]):
        parametrizations.weight_norm(conv)
        nn.utils.parametrize.remove_parametrizations(conv, "weight")
    assert fold_report(net).rewritten.keys() == {"0", "0.attention", "1"}


def test_usual_activations_are_no_reason_to_leave_a_block() -> None:
    for act_layer in (nn.ELU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Tanh):
        assert fold_report(SCACB(12, act_layer=act_layer)).rewritten, act_layer
    for gate_layer in (nn.Hardsigmoid, nn.Identity, nn.Sigmoid, nn.Tanh):
        assert fold_report(WSILBV(12, gate_layer=gate_layer)).rewritten, gate_layer


def test_a_class_that_was_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: 2 * forward(self, x))
    report = fold_report(network())
    assert not report.rewritten
    assert "whose forward was replaced" in report.left["0"]


@pytest.mark.parametrize(
    "tail",
    [
        conv3(24, 24),
        nn.Conv2d(24, 1, 5, padding=2),
        conv3(24, 1, padding_mode="reflect"),
        conv3(24, 2, groups=2),
        conv3(24, 1, stride=2),
        parametrizations.weight_norm(conv3(24, 1)),
        LouderConv(24, 1, 3, padding=1),
    ],
    ids=["wide", "5x5", "reflect", "groups", "stride", "weight_norm", "subclass"],
)
def test_other_tails_are_called(tail: nn.Conv2d) -> None:
    row = nn.Sequential(RBWA(24), tail)
    folded = fold(row)
    assert type(folded) is nn.Sequential
    assert fold_report(row).left.keys() == {"1"}
    x = torch.rand(1, 24, 8, 8)
    with torch.no_grad():
        in_range(in_small_strips(folded)(x), row(x), 1e-5)


@pytest.mark.parametrize(("factor", "merged"), [(2 / 3, False), (1.4, False), (6, True)])
@torch.no_grad()
def test_tails_behind_other_factors(factor: float, merged: bool) -> None:
    row = lively(nn.Sequential(RBWA(24, scale_factor=factor), conv3(24, 1))).double()
    report = fold_report(row)
    assert ("1" in report.rewritten) == merged
    assert ("no square of pixels fits" in report.left.get("1", "")) != merged
    folded = in_small_strips(fold(row))
    for height, width in ((1, 1), (1, 4), (9, 2)):
        x = torch.randn(1, 24, height * row[0].size_multiple, width * row[0].size_multiple, dtype=torch.float64)
        in_range(folded(x), row(x), 1e-13)


@torch.no_grad()
def test_a_tail_that_is_merged_in_one_place_only() -> None:
    tail = conv3(24, 1)
    row = lively(nn.Sequential(RBWA(24), tail, RBWA(1, 24, scale_factor=1), tail)).double()
    x = torch.randn(1, 24, 9, 12, dtype=torch.float64)
    in_range(in_small_strips(fold(row))(x), row(x), 1e-13)


# -- the report and the check ---


def test_report() -> None:
    net = network()
    net[1].stages[0].spatial.conv5.padding_mode = "reflect"
    net[2].project.register_forward_hook(lambda module, args, out: None)
    report = fold_report(net)
    assert report.rewritten.keys() == {"0", "1.attention", "2.attention", "3", "3.attention", "4"}
    assert report.left["1.stages.0"] == "spatial.conv5.padding_mode is 'reflect', not 'zeros'"
    assert report.left["2"].startswith("project differs from its class in forward hooks")
    for name in (*report.rewritten, *report.left):
        assert f"  {name}: " in str(report)
    assert str(fold_report(nn.ReLU())) == "nothing to rewrite"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_the_report_says_what_is_done(change: str) -> None:
    net = network()
    CHANGES[change](net, 0)
    report, folded = fold_report(net), fold(net)
    pairs = zip(net.named_modules(), folded.modules(), strict=True)
    rewritten = {name for (name, before), after in pairs if type(after) is not type(before)}
    assert rewritten - {""} == report.rewritten.keys()  # a row is not listed, what it merges is


def test_an_example_is_run_and_compared() -> None:
    net = network()
    x = torch.randn(2, 24, 20, 6, dtype=torch.float64)
    folded = fold(net, example=x, tolerance=1e-12)
    assert not any({"strip_values", "least_values"} & vars(module).keys() for module in folded.modules())
    with pytest.raises(ValueError, match=r"fold: the folded network differs from the original by .* on the example"):
        fold(net, example=x, tolerance=1e-30)

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = RBWA(24)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
            return {"sum": self.block(x) + y, "both": (self.block(x), [y]), "mask": y > 0.5, "count": 2}

    fold(Many(), example=(torch.rand(1, 24, 40, 6), torch.rand(1, 24, 80, 12)))
    with pytest.raises(ValueError, match="fold: the folded network differs"):
        fold(Many().double(), example=(x, x.repeat(1, 1, 2, 2)), tolerance=1e-30)

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = RBWA(24)

        def forward(self, inputs: dict[str, Sequence[Tensor]]) -> Tensor:
            assert not torch.is_grad_enabled()
            return self.block(inputs["x"][0].add_(1))

    before = x.clone()
    for several in ([x], (x,)):
        fold(InPlace().double(), example=({"x": several},), tolerance=1e-12)
        assert torch.equal(x, before)


def test_an_example_by_keyword() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = WSILBV(24)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.block(x.sub_(0.5))

    x = torch.rand(1, 24, 40, 6)
    before = x.clone()
    folded = fold(Named(), example={"x": x})
    assert to_local(folded, {"x": x}).block.local == (60, 9)
    assert torch.equal(x, before)
    with pytest.raises(TypeError, match="example must be a tensor, a list of arguments, or a mapping of keyword"):
        fold(Named(), example="x")


@pytest.mark.parametrize("shape", [(1, 24, 40, 6), [1, 24, 40, 6], torch.Size([1, 24, 40, 6])], ids=repr)
def test_a_shape_is_no_example(shape: Sequence[int]) -> None:
    # complexity takes one.
    with pytest.raises(TypeError, match=r"fold: example must be an input, .* pass torch.zeros\(1, 24, 40, 6\)"):
        fold(WSILBV(24), example=shape)
    with pytest.raises(TypeError, match=r"to_local: example must be an input, .* pass torch.zeros\(1, 24, 40, 6\)"):
        to_local(WSILBV(24), shape)


@pytest.mark.parametrize("cut", [False, True])
def test_weights_that_are_offloaded_afterwards_are_used(cut: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), MREB(12), RBWA(12), nn.Conv2d(12, 3, 3, padding=1)).eval()
    folded, x = fold(net), torch.rand(1, 3, 80, 60)
    for part in folded.modules():
        if cut and hasattr(part, "strip_values"):  # as on a large map
            part.strip_values = part.least_values = 1
    wanted = net(x)
    accelerate.cpu_offload(folded, execution_device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(folded(x), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_tail_that_is_offloaded_alone_is_used() -> None:
    row, x = lively(nn.Sequential(RBWA(24), conv3(24, 1))), torch.rand(1, 24, 9, 12)
    folded = in_small_strips(fold(row))
    accelerate.cpu_offload(folded[1], execution_device=torch.device("cpu"))
    in_range(folded(x), row(x), 1e-5)


class Restless(nn.Module):
    """Changes its input, counts its runs, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = WSILBV(24)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.runs * self.block(x.sub_(0.5)) + torch.rand_like(x)


def test_an_example_that_the_network_changes_is_compared_as_it_was() -> None:
    net, x = Restless(), torch.rand(1, 24, 40, 6)
    before, state = x.clone(), torch.get_rng_state()
    folded = fold(net, example=x)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert folded.runs == 0


class Finally(nn.Module):
    """A WSILBV and something behind it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self.function = WSILBV(24), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.block(x))


def test_results_of_every_type_are_compared() -> None:
    x = torch.rand(1, 24, 40, 6)
    for function in (torch.fft.rfft2, lambda y: (255 * y).round().to(torch.uint8)):
        fold(Finally(function), example=x)
    with pytest.raises(ValueError, match="fold: the folded network differs"):
        fold(nn.Sequential(RBWA(24), Finally(torch.fft.rfft2)), example=x, tolerance=1e-30)
    with pytest.raises(ValueError, match="fold: results for the example must be finite, got infinities or NaN"):
        fold(Finally(torch.log), example=torch.zeros(1, 24, 40, 6))
    for nothing in (x[:0], x):
        fold(Finally(lambda y: y[:, :0]), example=nothing)


def test_a_result_of_one_value_is_compared_by_its_size() -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        net = nn.Sequential(lively(RBWA(24, 16)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))
        x = torch.rand(1, 24, 24, 6)
        fold(net, example=x)


def test_the_tolerance_is_a_share_of_the_range_of_the_result() -> None:
    x = torch.rand(1, 24, 24, 6)
    fold(nn.Sequential(RBWA(24), Finally(lambda y: 1e6 * y)), example=x)
    with pytest.raises(ValueError, match="fold: the folded network differs"):
        fold(nn.Sequential(RBWA(24), Finally(lambda y: 1e-6 * y)), example=x, tolerance=1e-9)


@pytest.mark.parametrize(
    "change",
    [lambda y: y + 1, lambda y: y - 1, lambda y: y * 1.001, lambda y: y * torch.nan],
    ids=["+", "-", "a thousandth", "NaN"],
)
def test_rewritten_blocks_that_compute_something_else_are_noticed(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Tensor] = []

    def second_one_changed(*args: Any) -> Tensor:
        runs.append(dry_run(*args))
        return change(runs[-1]) if len(runs) == 2 else runs[-1]

    dry_run = folding.dry_run
    monkeypatch.setattr(folding, "dry_run", second_one_changed)
    with pytest.raises(ValueError, match=r"fold: the folded network differs from the original by .* on the example"):
        fold(WSILBV(24), example=torch.rand(1, 24, 24, 6))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "change", [partial(prune.identity, name="weight"), nn.utils.weight_norm], ids=["pruned", "normed"]
)
def test_weights_that_hooks_compute_after_a_training_step(change: Callable[[nn.Module], object]) -> None:
    net, x = network(), torch.randn(2, 24, 20, 6, dtype=torch.float64)
    change(net[2].project)
    net(x).sum().backward()  # leaves a weight that belongs to a graph
    folded = in_small_strips(fold(net, example=x))
    assert not isinstance(folded[2], FoldedRBWA)
    in_range(folded(x), net(x).detach(), 1e-13)


def test_wrong_inputs_are_named() -> None:
    for module in (fold(SCACB(24)), fold(MREB(24)), fold(RBWA(24)), fold(WSILBV(24))):
        with pytest.raises(ValueError, match="must have 24 channels"):
            module(torch.rand(1, 23, 8, 8))
        with pytest.raises(ValueError, match="must have 4 dimensions"):
            module(torch.rand(24, 8, 8))
        with pytest.raises(TypeError, match="must be a tensor"):
            module(None)
    for function in (fold, fold_report):
        with pytest.raises(TypeError, match=rf"{function.__name__}: module must be a torch\.nn\.Module, got function"):
            function(lively)


# -- MREN ---


@pytest.mark.parametrize("scale", [2, 3, 4])
@settings(deadline=None, max_examples=5)
@given(height=st.integers(1, 40), width=st.integers(1, 13))
@torch.no_grad()
def test_whole_networks(scale: int, height: int, width: int) -> None:
    net = lively(
        MREN(scale, channels=48, num_blocks=1 + (scale == 2), chain="network" if scale == 2 else "block")
    ).double()
    x = torch.rand(2, 3, height, width, dtype=torch.float64)
    folded = fold_mren(net)
    assert any(type(module) is NarrowConv for module in folded.modules())  # the tail is merged
    in_range(in_small_strips(folded)(x), net(x), 1e-12)


@torch.no_grad()
def test_shipped_network_in_float32() -> None:
    net, x = load_mren(4), torch.rand(1, 3, 64, 71)
    in_range(fold_mren(net)(x), net(x), 1e-5)


@pytest.mark.parametrize("factor", [2, 3, 4])
@torch.no_grad()
def test_bicubic_as_a_convolution(factor: int) -> None:
    for size in ((1, 1), (2, 5), (9, 4)):
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        expected = F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
        in_range(BicubicConv(factor, dtype=torch.float64)(x), expected, 1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reconstruct_channels": (24, 16)},
        {"channels": 84},
        {"communication": "gated", "chain": "network"},
        {"communication": partial(LearnableCommunication, per_channel=True)},
        {"communication": None, "exchange": "inputs", "gate": False, "relay": "fused"},
        {"parts": "spatial", "channels": 50},
    ],
)
@pytest.mark.parametrize("scale", [2, 3])
def test_padded_widths_change_nothing(options: dict[str, Any], scale: int) -> None:
    x = torch.rand(1, 3, 14, 17, dtype=torch.float64)
    net = to_local(lively(MREN(scale, num_blocks=2, **options)).double().eval(), x)
    padded = pad_widths(net)
    widths = {module.in_channels for module in padded.modules() if isinstance(module, (RBWA, DRACB))}
    assert not any(width % 16 for width in widths)
    with torch.no_grad():
        in_range(padded(x), net(x), 1e-12)
        in_range(fold_mren(padded)(x), net(x), 1e-12)


def test_what_is_no_mren_is_neither_folded_as_one_nor_padded() -> None:
    class Clamped(MREN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(0, 1)

    net = MREN(2, channels=12, num_blocks=1)
    for wrong in (Clamped(2, channels=12, num_blocks=1), fold_mren(net), nn.Sequential(net), None):
        with pytest.raises(TypeError, match=f"fold_mren: net must be an MREN, .* got {type(wrong).__name__}; "):
            fold_mren(wrong)
    with pytest.raises(TypeError, match="pad_widths: net must be an MREN, got FoldedMREN; pad first, then fold"):
        pad_widths(fold_mren(net))
    with pytest.raises(ValueError, match="pad_widths: multiple must be at least 1, got 0"):
        pad_widths(net, 0)


def test_a_network_with_other_modules_is_not_padded() -> None:
    net = MREN(2, channels=12, num_blocks=1)
    net.body[0].attention.gate = nn.Hardsigmoid()
    trunk = MREN(2, channels=12, num_blocks=1)
    trunk.body = nn.Sequential(nn.Identity())
    for changed in (net, trunk):
        with pytest.raises(ValueError, match="pad_widths: net must be built of MREN's own modules"):
            pad_widths(changed)


def test_parts_with_other_activations_are_weighed_apart() -> None:
    block = lively(SCACB(24)).double().eval()
    block.channel["act"] = nn.LeakyReLU(0.3)
    x = torch.randn(1, 24, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        in_range(in_small_strips(fold(block))(x), block(x), 1e-13)
