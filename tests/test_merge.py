"""RBWA computes its last convolution and the one behind it as one, and nobody can tell from the results."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.mren.model import MREN
from sc_blocks import RBWA, _merge, call_with_tail
from sc_blocks.deploy import fold
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


def lively(*modules: nn.Module) -> None:
    """In double precision, with biases and gates that are not zero."""
    for module in modules:
        perturb(module).double()


@pytest.mark.parametrize(("factor", "side"), [(2, 2), (3, 3), (4, 4), (5, 5), (1.5, 3), (0.5, None), (6, None)])
def test_when_it_is_the_way_taken(merged: list[int], factor: float, side: int | None) -> None:
    block, tail = RBWA(32, scale_factor=factor), nn.Conv2d(32, 1, 3, padding=1)
    lively(block, tail)
    x = torch.rand(2, 32, round(60 / factor) * 2, 56, dtype=torch.float64)
    torch.testing.assert_close(call_with_tail(block, tail, x), tail(block(x)))
    assert merged == ([side] if side else [])
    assert call_with_tail(block, tail, x[:0]).shape == (0, 1, round(x.shape[2] * factor), 56 * factor)


def test_not_where_it_would_take_longer(merged: list[int]) -> None:
    block, tail = RBWA(32), nn.Conv2d(32, 1, 3, padding=1)
    call_with_tail(block, tail, torch.rand(1, 32, 39, 40))
    call_with_tail(block, nn.Conv2d(32, 9, 3, padding=1), torch.rand(1, 32, 40, 40))
    assert merged == []
    call_with_tail(block, tail, torch.rand(1, 32, 40, 40))
    assert merged == [2]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_in_mren(merged: list[int], scale: int) -> None:
    net, x = MREN(scale, channels=48, num_blocks=1), torch.rand(2, 3, 40, 32, dtype=torch.float64)
    lively(net)
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
        nn.Conv2d(24, 1, 5, padding=2),
        nn.Conv2d(24, 1, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(24, 2, 3, padding=1, groups=2),
        nn.Conv2d(24, 1, 3, padding=1, stride=2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(24, 1, 3, padding=1)),
        Twice(24, 1, 3, padding=1),
        nn.Sequential(nn.Conv2d(24, 1, 3, padding=1), nn.Tanh()),
    ],
    ids=["wide", "5x5", "reflect", "groups", "stride", "weight-norm", "subclass", "sequence"],
)
def test_other_tails_are_called(merged: list[int], tail: nn.Module) -> None:
    block, x = RBWA(24), torch.rand(1, 24, 48, 48)
    torch.testing.assert_close(call_with_tail(block, tail, x), tail(block(x)))
    assert merged == []


def conv(*args: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(*args, 3, **options)


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(RBWA(24), nn.Identity()),
        nn.Sequential(),
        nn.PixelShuffle(2),
        torch.compile(nn.Sequential(RBWA(24)), backend="eager"),
        nn.DataParallel(RBWA(24)),
    ],
    ids=["ends otherwise", "empty", "no rbwa", "compiled", "wrapped"],
)
def test_other_blocks_are_called(merged: list[int], block: nn.Module) -> None:
    x = torch.rand(1, 24, 40, 40)
    tail = conv(block(x).shape[1], 1, padding=1)
    torch.testing.assert_close(call_with_tail(block, tail, x), tail(block(x)))
    assert merged == []


def test_a_row_that_ends_in_rbwa(merged: list[int]) -> None:
    row, tail, x = nn.Sequential(conv(3, 24, padding=1), RBWA(24)), conv(24, 1, padding=1), torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(call_with_tail(row, tail, x), tail(row(x)), rtol=0, atol=1e-5)
    assert merged == [2]
    row[1].expand = conv(24, 24)  # without padding the size of the result is another one
    row[1].project = conv(24, 24, padding=1)
    assert call_with_tail(row, tail, torch.rand(1, 3, 41, 41)).shape == (1, 1, 80, 80)
    row[1].expand = conv(24, 24, padding=2)
    row[1].resize = lambda x: nn.functional.interpolate(x, size=(83, 83))
    assert call_with_tail(row, tail, torch.rand(1, 3, 41, 41)).shape == (1, 1, 85, 85)


def test_who_listens_hears_what_there_is_to_hear(merged: list[int]) -> None:
    row, tail, x = nn.Sequential(RBWA(24)), conv(24, 1, padding=1), torch.rand(1, 24, 48, 48)
    expected = row(x)
    for module in (row, row[0], row[0].project):
        heard: list[Tensor] = []
        hook = module.register_forward_hook(lambda module, args, out, heard=heard: heard.append(out))
        call_with_tail(row, tail, x)
        hook.remove()
        torch.testing.assert_close(heard, [expected])
    everything: list[type] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, out: everything.append(type(module)))
    call_with_tail(row, tail, x)
    hook.remove()
    assert everything.count(nn.Conv2d) == 7  # those in the attention are called twice
    forward = tail.forward
    tail.forward = lambda x: 2 * forward(x)
    torch.testing.assert_close(call_with_tail(row, tail, x), 2 * forward(expected))
    assert merged == []


def test_half_precision_and_formats(merged: list[int]) -> None:
    block, tail, x = RBWA(24), conv(24, 1, padding=1), torch.rand(2, 24, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        call_with_tail(block, tail, x)
    for module in (block, tail):
        module.to(memory_format=torch.channels_last)
    assert call_with_tail(block, tail, x).stride() == tail(block(x)).stride()
    assert merged == []
    x = x.to(memory_format=torch.channels_last)
    assert call_with_tail(block, tail, x).stride() == tail(block(x)).stride()
    assert merged == [2]
    call_with_tail(block.bfloat16(), tail.bfloat16(), x.bfloat16())
    assert merged == [2]


def test_a_tail_of_another_width_is_refused_as_ever() -> None:
    with pytest.raises(RuntimeError, match="to have 12 channels, but got 24 channels"):
        call_with_tail(RBWA(24), conv(12, 1, padding=1), torch.rand(1, 24, 48, 48))


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(TypeError, match=r"call_with_tail: block must be a torch.nn.Module, got NoneType; for example"):
        call_with_tail(None, nn.Identity(), torch.rand(1, 24, 8, 8))
    with pytest.raises(TypeError, match=r"call_with_tail: tail must be a torch.nn.Module, got Tensor"):
        call_with_tail(RBWA(24), torch.rand(3), torch.rand(1, 24, 8, 8))


def test_folded_compiled_exported(merged: list[int]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enlarge, self.last = RBWA(24), conv(24, 1, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return call_with_tail(self.enlarge, self.last, x)

    net, x = Net().eval(), torch.rand(1, 24, 44, 45, dtype=torch.float64)
    lively(net)
    expected = net.last(net.enlarge(x))
    torch.testing.assert_close(fold(net)(x), expected)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
    assert merged == []
    torch.testing.assert_close(net(x), expected)
    assert merged == [2]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the map."""
    monkeypatch.setattr(_merge, "FEWEST", 1)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("names", [["expand.weight"], ["project.bias"], ["tail.weight", "tail.bias"], None])
def test_derivatives_in_forward_mode_by_parameters(names: list[str] | None, merged: list[int]) -> None:
    net = nn.ModuleDict({"block": RBWA(12), "tail": conv(12, 1, padding=1)})
    lively(net)
    values = {name: value.detach() for name, value in net.named_parameters()}
    chosen = [name for name in values if names is None or name.removeprefix("block.") in names]
    x = torch.rand(1, 12, 3, 4, dtype=torch.float64)

    def call(*given: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(net, dict(zip(chosen, given, strict=True))):
            return call_with_tail(net["block"], net["tail"], x)

    start = tuple(values[name] for name in chosen)
    directions = tuple(map(torch.randn_like, start))
    _, ahead = torch.func.jvp(call, start, directions)
    assert merged == []
    step = 1e-6
    there, back = (
        call(*(value + sign * step * way for value, way in zip(start, directions, strict=True))) for sign in (1, -1)
    )
    assert merged == [2, 2]
    torch.testing.assert_close(ahead, (there - back) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("always")
def test_gradients_of_each_sample(merged: list[int]) -> None:
    block, tail = RBWA(12), conv(12, 1, padding=1)
    lively(block, tail)
    x = torch.randn(3, 1, 12, 4, 5, dtype=torch.float64)
    each = torch.func.vmap(torch.func.grad(lambda sample: call_with_tail(block, tail, sample).square().sum()))(x)
    assert merged == [2]
    one_by_one = [torch.func.grad(lambda sample: tail(block(sample)).square().sum())(sample) for sample in x]
    torch.testing.assert_close(each, torch.stack(one_by_one))


@pytest.mark.usefixtures("always")
def test_gradients_of_gradients(merged: list[int]) -> None:
    block, tail = RBWA(12), conv(12, 1, padding=1)
    lively(block, tail)
    x = torch.rand(1, 12, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = block.project.weight[:2, :2], tail.bias

    def call(x: Tensor, corner: Tensor, bias: Tensor) -> Tensor:
        weight = torch.cat([torch.cat([corner, block.project.weight[:2, 2:]], 1), block.project.weight[2:]])
        return torch.func.functional_call(Both(block, tail), {"block.project.weight": weight, "tail.bias": bias}, (x,))

    given = [weight.detach().clone().requires_grad_() for weight in weights]
    assert torch.autograd.gradgradcheck(call, (x, *given))
    assert merged


class Both(nn.Module):
    def __init__(self, block: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.block, self.tail = block, tail

    def forward(self, x: Tensor) -> Tensor:
        return call_with_tail(self.block, self.tail, x)
