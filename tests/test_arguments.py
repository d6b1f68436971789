"""Arguments: none is dead, all are named alike, and a wrong one is told so in words that help."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial, wraps
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sc_blocks
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
    to_global,
    to_local,
)
from sc_blocks.communication import build_communication
from sc_blocks.deploy import fold
from sc_blocks.introspect import complexity
from sc_blocks.tiling import tiled
from tests.blocks import perturb

CLASSES = [item for item in (getattr(sc_blocks, name) for name in sc_blocks.__all__) if isinstance(item, type)]

each_class = pytest.mark.parametrize("block", CLASSES, ids=[block.__name__ for block in CLASSES])

PLACED = {"device": "meta", "dtype": torch.float64}
CONV = {"bias": False, **PLACED}

#: For each block the arguments to start from, and for each of its arguments the value that must make a difference.
CHANGES: dict[type, tuple[dict, dict]] = {
    SCACB: (
        {"channels": 12},
        {
            "channels": 18,
            "reduction": 4,
            "parts": "spatial",
            "exchange": "inputs",
            "residual": False,
            "act_layer": nn.SiLU,
            **CONV,
        },
    ),
    DRACB: (
        {"in_channels": 12, "out_channels": 4},
        {
            "in_channels": 13,
            "out_channels": 5,
            "communication": 0.3,
            "gate": False,
            "relay": "fused",
            "gate_layer": nn.Tanh,
            **CONV,
        },
    ),
    DRACBChain: (
        {"in_channels": 12, "out_channels": 4, "length": 3, "resample": "bilinear"},
        {
            "in_channels": 13,
            "out_channels": [4, 5, 4],
            "length": 2,
            "communication": 0.3,
            "resample": "nearest",
            "takes_map": True,
            "returns_map": True,
            "gate": False,
            "relay": "fused",
            "gate_layer": nn.Tanh,
            **CONV,
        },
    ),
    WSILB: (
        {"channels": 12},
        {"channels": 13, "local": (3, 4), "eps": 0.5, "gate_layer": nn.Tanh, **CONV},
    ),
    WSILBV: (
        {"channels": 12},
        {
            "channels": 16,
            "reduction": 3,
            "local": (3, 4),
            "eps": 0.5,
            "act_layer": nn.SiLU,
            "gate_layer": nn.Tanh,
            **CONV,
        },
    ),
    RBWA: (
        {"in_channels": 12},
        {
            "in_channels": 13,
            "out_channels": 8,
            "scale_factor": 1.5,
            "reduction": 3,
            "act_layer": nn.SiLU,
            "gate_layer": nn.Tanh,
            **CONV,
        },
    ),
    MREB: (
        {"channels": 12},
        {
            "channels": 16,
            "distilled_channels": 4,
            "num_stages": 2,
            "communication": 0.3,
            "takes_map": True,
            "returns_map": True,
            "gate": False,
            "relay": "fused",
            "parts": "channel",
            "exchange": None,
            "residual": False,
            "act_layer": nn.SiLU,
            "gate_layer": nn.Tanh,
            **CONV,
        },
    ),
    NoCommunication: ({}, {}),
    FixedCommunication: ({}, {"weight": 0.3}),
    LearnableCommunication: ({"channels": 4}, {"channels": 5, "per_channel": True, "init": 0.3, **PLACED}),
    GatedCommunication: ({"channels": 4}, {"channels": 5, "init": 0.3, **PLACED}),
    AdaptedCommunication: (
        {"previous_channels": 3, "channels": 4},
        {
            "previous_channels": 4,
            "channels": 5,
            "communication": LearnableCommunication,
            "resample": "nearest",
            **CONV,
        },
    ),
    MREN: (
        {"scale": 2, "channels": 12, "num_blocks": 2},
        {
            "scale": 4,
            "channels": 16,
            "num_blocks": 1,
            "reconstruct_channels": (8, 8),
            "chain": "network",
            "parts": "channel",
            "exchange": None,
            "residual": False,
            "communication": 0.3,
            "gate": False,
            "relay": "fused",
            **PLACED,
        },
    ),
}


def results(block: type, arguments: dict) -> list[Tensor]:
    """State and outputs of a block that is built and fed by the same seed each time."""
    torch.manual_seed(0)
    module = block(**arguments)
    state = list(module.state_dict().values())
    torch.manual_seed(1)
    options = {"device": arguments.get("device"), "dtype": arguments.get("dtype")}
    make = partial(torch.randn, **options)
    if isinstance(module, DRACBChain):
        sizes = ((6, 8), (3, 4), (5, 5))
        features = [make(2, width, *size) for width, size in zip(module.in_channels, sizes, strict=False)]
        out = module(features, make(2, module.out_channels[0], 6, 8) if module.takes_map else None)
        return [*state, *(*out[0], out[1])] if module.returns_map else [*state, *out]
    if isinstance(module, MREB):
        x, previous = make(2, module.channels, 6, 8), make(2, module.distilled_channels, 6, 8)
        out = module(x, previous if module.refine.takes_map else None)
        return [*state, *out] if module.refine.returns_map else [*state, out]
    if isinstance(module, DRACB):
        return state + list(module(make(2, module.in_channels, 6, 8), make(2, module.out_channels, 6, 8)))
    if "Communication" in block.__name__:
        width = getattr(module, "channels", 4)
        size = (3, 5) if block is AdaptedCommunication else (6, 8)
        return [*state, module(make(2, getattr(module, "previous_channels", width), *size), make(2, width, 6, 8))]
    width = 3 if isinstance(module, MREN) else getattr(module, "channels", None) or module.in_channels
    return [*state, module(make(2, width, 6, 8))]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    kinds = [[(tensor.shape, tensor.dtype, tensor.device) for tensor in each] for each in (first, second)]
    return kinds[0] == kinds[1] and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("block", "argument"), [(block, name) for block, (_, changes) in CHANGES.items() for name in changes]
)
def test_no_argument_is_dead(block: type, argument: str) -> None:
    start, changes = CHANGES[block]
    before, after = results(block, start), results(block, {**start, argument: changes[argument]})
    assert same(before, results(block, start)), "the comparison itself is not repeatable"
    assert not same(before, after)


@pytest.mark.parametrize("block", [*CLASSES, MREN], ids=lambda block: block.__name__)
def test_no_argument_is_left_out_above(block: type) -> None:
    assert set(signature(block)) == set(CHANGES[block][1])


@pytest.mark.parametrize("build", [MREB, RBWA])
def test_layers_reach_every_part_of_a_block(build: Callable[..., nn.Module]) -> None:
    block = build(12, act_layer=nn.Mish, gate_layer=nn.Tanh)
    assert not {nn.GELU, nn.Sigmoid} & {type(part) for part in block.modules()}


# Names


def signature(block: type) -> dict[str, inspect.Parameter]:
    return {} if block is NoCommunication else dict(inspect.signature(block).parameters)


WIDTHS = {
    DRACB: ["in_channels", "out_channels"],
    DRACBChain: ["in_channels", "out_channels", "length"],
    RBWA: ["in_channels", "out_channels"],
    AdaptedCommunication: ["previous_channels", "channels"],
    FixedCommunication: ["weight"],  # has no width
    NoCommunication: [],
}

#: All keyword-only arguments, with their defaults. One name means one thing in every block.
VOCABULARY = {
    "act_layer": {nn.GELU},
    "bias": {True},
    "communication": {0.2},
    "device": {None},
    "distilled_channels": {None},
    "dtype": {None},
    "eps": {1e-6},
    "exchange": {"outputs"},
    "gate": {True},
    "gate_layer": {nn.Sigmoid},
    "init": {0.2},
    "local": {None},
    "num_stages": {3},
    "parts": {"both"},
    "per_channel": {False},
    "reduction": {4, 6},  # 6 in SCACB
    "relay": {"raw"},
    "resample": {None, "bilinear"},  # a chain resamples on demand, an adapter always
    "residual": {True},
    "returns_map": {False},
    "scale_factor": {2},
    "takes_map": {False},
}


@each_class
def test_width_first_and_the_rest_by_keyword(block: type) -> None:
    positional = [
        name for name, argument in signature(block).items() if argument.kind is argument.POSITIONAL_OR_KEYWORD
    ]
    assert positional == WIDTHS.get(block, ["channels"])
    assert all(
        argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        for argument in signature(block).values()
    )


@each_class
def test_one_vocabulary(block: type) -> None:
    for name, argument in signature(block).items():
        if argument.kind is argument.KEYWORD_ONLY:
            assert argument.default in VOCABULARY[name], name


@each_class
def test_placement_comes_last(block: type) -> None:
    if block not in (NoCommunication, FixedCommunication):
        assert list(signature(block))[-2:] == ["device", "dtype"]


@each_class
def test_unknown_keywords_are_rejected(block: type) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'rd_ratio'"):
        block(**CHANGES[block][0], rd_ratio=4)


@each_class
def test_options_are_keyword_only(block: type) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        block(*[12] * 4)


# Words. What is matched is what helps: the argument, what came, and what would work.


class Shrinking(nn.Module):
    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        return current[:, :1]


class Pooling(nn.Module):
    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        return (previous + current).mean((2, 3), keepdim=True)


class TwoSizes(nn.Module):
    """Calls one block at two sizes, as recursive networks may."""

    def __init__(self) -> None:
        super().__init__()
        self.block = WSILB(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x)[:, :, ::2, ::2])


WRONG_ARGUMENTS = [
    # sizes
    (lambda: SCACB(0), ValueError, r"SCACB: channels must be at least 1, got 0"),
    (lambda: SCACB(12.0), TypeError, r"SCACB: channels must be a positive integer, got 12.0 \(float\)"),
    (lambda: MREN(2.0), TypeError, r"MREN: scale must be a positive integer, got 2.0 \(float\)"),
    (lambda: SCACB(True), TypeError, r"got True \(bool\)"),
    (lambda: SCACB("12"), TypeError, r"got '12' \(str\)"),
    (
        lambda: SCACB(5),
        ValueError,
        r"reduction=6 leaves no channels for channels=5; use reduction <= 5 or channels >= 6",
    ),
    (lambda: SCACB(2, parts="spatial"), ValueError, r"reduction=6 leaves no channels for channels=2; .*channels >= 3"),
    (lambda: SCACB(12, reduction=-1), ValueError, r"reduction must be at least 1, got -1"),
    (lambda: SCACB(12, reduction=2.5), TypeError, r"reduction must be a positive integer, got 2.5"),
    (lambda: DRACB(0, 4), ValueError, r"DRACB: in_channels must be at least 1"),
    (lambda: DRACB(12, True), TypeError, r"DRACB: out_channels must be a positive integer, got True"),
    (lambda: WSILB(0), ValueError, r"WSILB: channels must be at least 1"),
    (lambda: WSILBV(0), ValueError, r"WSILBV: channels must be at least 1"),
    (
        lambda: WSILBV(3),
        ValueError,
        r"WSILBV: reduction=4 leaves no channels for channels=3; use reduction <= 3 or channels",
    ),
    (lambda: WSILBV(8, reduction=0), ValueError, r"WSILBV: reduction must be at least 1"),
    (lambda: RBWA(0), ValueError, r"RBWA: in_channels must be at least 1"),
    (lambda: RBWA(8, 0), ValueError, r"RBWA: out_channels must be at least 1"),
    (lambda: RBWA(8, 3), ValueError, r"^RBWA: reduction=4 leaves no channels for out_channels=3; .* out_channels >= 4"),
    (lambda: RBWA(8, reduction=0.5), TypeError, r"^RBWA: reduction must be a positive integer, got 0.5"),
    (lambda: MREB(5), ValueError, r"MREB: channels must be at least 6, got 5"),
    (lambda: MREB(3, parts="spatial"), ValueError, r"MREB: channels must be at least 4, got 3"),
    (lambda: MREB(12, num_stages=0), ValueError, r"MREB: num_stages must be at least 1, got 0"),
    (lambda: MREB(12, distilled_channels=0), ValueError, r"MREB: distilled_channels must be at least 1, got 0"),
    (lambda: LearnableCommunication(0), ValueError, r"LearnableCommunication: channels must be at least 1"),
    (lambda: GatedCommunication(1.5), TypeError, r"GatedCommunication: channels must be a positive integer"),
    (lambda: AdaptedCommunication(0, 4), ValueError, r"previous_channels must be at least 1"),
    (lambda: AdaptedCommunication(4, 0), ValueError, r"AdaptedCommunication: channels must be at least 1"),
    # layers: built by the block, so given as classes
    (lambda: SCACB(12, act_layer=nn.GELU()), TypeError, r"SCACB: act_layer must be a class .*without parentheses"),
    (lambda: WSILB(12, gate_layer=nn.Sigmoid()), TypeError, r"WSILB: gate_layer must be a class .* got Sigmoid\(\)"),
    (lambda: DRACB(12, 4, gate_layer="sigmoid"), TypeError, r"DRACB: gate_layer must be a class .* got 'sigmoid'"),
    (
        lambda: SCACB(12, act_layer=nn.BatchNorm2d),
        TypeError,
        r"SCACB: act_layer must be a class .*, got <class .*, which fails: .*num_features",
    ),
    (lambda: WSILB(12, gate_layer=torch.sigmoid), TypeError, r"WSILB: gate_layer must be .*torch.nn.Sigmoid without"),
    (
        lambda: DRACB(12, 4, communication=torch.add),
        TypeError,
        r"DRACB: communication must be .*, which fails for 4",
    ),
    (
        lambda: WSILB(12, gate_layer=lambda: None),
        TypeError,
        r"WSILB: the result of gate_layer\(\) must be .*, got NoneType",
    ),
    (lambda: MREN(4, num_blocks="6"), TypeError, r"MREN: num_blocks must be a positive integer, got '6' \(str\)"),
    # choices
    (lambda: SCACB(12, parts="all"), ValueError, r"parts must be one of 'both', 'spatial', 'channel'; got 'all'"),
    (lambda: SCACB(12, exchange="both"), ValueError, r"exchange must be one of 'outputs', 'inputs', None; got 'both'"),
    (lambda: SCACB(12, exchange=False), ValueError, r"exchange must be one of .*; got False"),
    (
        lambda: SCACB(12, exchange=np.array(["inputs"])),
        ValueError,
        r"exchange must be one of .*; got array\(\['inputs'\]",
    ),
    (lambda: DRACB(12, 4, relay="old"), ValueError, r"DRACB: relay must be one of 'raw', 'fused'; got 'old'"),
    (lambda: DRACBChain(12, 4, 2, resample="area"), ValueError, r"resample must be one of 'bilinear', 'nearest', None"),
    (
        lambda: AdaptedCommunication(4, 4, resample="area"),
        ValueError,
        r"one of 'bilinear', 'nearest', None; got 'area'",
    ),
    # numbers
    (lambda: WSILB(4, eps=-1.0), ValueError, r"WSILB: eps must be 0 or more, got -1.0; the default is 1e-6"),
    (lambda: WSILBV(4, eps=float("nan")), ValueError, r"WSILBV: eps must be finite, got nan"),
    (lambda: WSILB(4, eps=float("inf")), ValueError, r"WSILB: eps must be finite, got inf"),
    (lambda: WSILB(4, eps="small"), TypeError, r"WSILB: eps must be a number, got 'small' \(str\)"),
    (lambda: FixedCommunication(float("inf")), ValueError, r"weight must be finite, got inf; the paper's is 0.2"),
    (lambda: FixedCommunication("0.2"), TypeError, r"FixedCommunication: weight must be a number, got '0.2' \(str\)"),
    (lambda: FixedCommunication(True), TypeError, r"weight must be a number, got True \(bool\)"),
    (lambda: LearnableCommunication(4, init=float("nan")), ValueError, r"LearnableCommunication: init must be finite"),
    (lambda: LearnableCommunication(4, init=-1e39), ValueError, r"init must fit torch.float32, got -1e\+39"),
    (lambda: LearnableCommunication(4, init=1e5, dtype=torch.half), ValueError, r"init must fit torch.float16"),
    (lambda: GatedCommunication(4, init=1.0), ValueError, r"init must lie strictly between 0 and 1, got 1.0"),
    (lambda: GatedCommunication(4, init=0), ValueError, r"init must lie strictly between 0 and 1, got 0"),
    (lambda: RBWA(8, scale_factor=0), ValueError, r"scale_factor must be a positive ratio .*, got 0; for example 2"),
    (lambda: RBWA(8, scale_factor=-2), ValueError, r"scale_factor must be a positive ratio .*, got -2"),
    (lambda: RBWA(8, scale_factor=float("inf")), ValueError, r"scale_factor must be finite, got inf; for example 2"),
    (lambda: RBWA(8, scale_factor=float("nan")), ValueError, r"scale_factor must be finite, got nan"),
    (lambda: RBWA(8, scale_factor=2.71828), ValueError, r"ratio of integers up to 1000, got 2.71828; .*4 / 3"),
    (lambda: RBWA(8, scale_factor=0.71828), ValueError, r"ratio of integers up to 1000, got 0.71828"),
    (lambda: RBWA(8, scale_factor=5000), ValueError, r"ratio of integers up to 1000, got 5000"),
    (lambda: RBWA(8, scale_factor=(2, 2)), TypeError, r"scale_factor must be a number, got \(2, 2\) \(tuple\)"),
    (lambda: RBWA(8, scale_factor=True), TypeError, r"scale_factor must be a number, got True \(bool\)"),
    # windows
    (
        lambda: WSILB(4, local=72),
        TypeError,
        r"WSILB: local must be \(height, width\) or None, got 72; for example \(72, 72\)",
    ),
    (lambda: WSILBV(4, local=(1, 2, 3)), TypeError, r"WSILBV: local must be \(height, width\) or None"),
    (lambda: WSILBV(4, local=(0, 3)), ValueError, r"WSILBV: local height must be at least 1, got 0"),
    (lambda: WSILBV(4, local=(3, 2.5)), TypeError, r"WSILBV: local width must be a positive integer, got 2.5"),
    (
        lambda: setattr(WSILB(4), "local", "all"),
        TypeError,
        r"WSILB: local must be \(height, width\) or None, got 'all'",
    ),
    (
        lambda: to_local(WSILB(4), torch.zeros(1, 4, 3, 3), factor=0),
        ValueError,
        r"to_local: factor must be positive .*, got 0; 1.5 is usual",
    ),
    (lambda: to_local(WSILB, torch.zeros(1)), TypeError, r"to_local: module must be a torch.nn.Module, got type"),
    (
        lambda: to_local(TwoSizes(), torch.zeros(1, 4, 8, 6)),
        ValueError,
        r"to_local: each block .* maps of one size, got windows of \(12, 9\) and \(6, 4\) for one WSILB; set its local",
    ),
    (lambda: to_global(len), TypeError, r"to_global: module must be a torch.nn.Module, got builtin_function"),
    (lambda: to_local(nn.Identity(), torch.zeros(1)), ValueError, r"Identity calls no WSILB or WSILBV on the example"),
    # communication
    (
        lambda: DRACB(12, 4, communication="learn"),
        TypeError,
        r"a factory channels -> module, a number or None, got 'learn'",
    ),
    (lambda: DRACB(12, 4, communication=True), TypeError, r"communication must be a module .* got True \(bool\)"),
    (
        lambda: DRACB(12, 4, communication=GatedCommunication(6)),
        ValueError,
        r"DRACB: communication must be for maps of 4 channels, got GatedCommunication for 6; pass the class",
    ),
    (
        lambda: DRACB(12, 4, communication=lambda width: AdaptedCommunication(width, 5)),
        ValueError,
        r"DRACB: communication must be for maps of 4 channels, got AdaptedCommunication for 5",
    ),
    (
        lambda: DRACBChain(12, 4, 2, communication=LearnableCommunication(6, per_channel=True)),
        ValueError,
        r"DRACB: communication must be for maps of 4 channels, got LearnableCommunication for 6",
    ),
    (lambda: build_communication([0.2], 4), TypeError, r"communication must be a module .* got \[0.2\] \(list\)"),
    (
        lambda: build_communication(lambda width: width, 4),
        TypeError,
        r"what the factory .* returns for 4 channels must be a torch.nn.Module, got int",
    ),
    (
        lambda: DRACB(12, 4, communication=AdaptedCommunication),
        TypeError,
        r"DRACB: communication must be a module .* which fails for 4 channels: .*missing 1 required",
    ),
    (
        lambda: AdaptedCommunication(4, 6, communication=object()),
        TypeError,
        r"AdaptedCommunication: communication must be a module .*, got <object obj",
    ),
    (
        lambda: DRACB(12, 4, communication=nn.Conv2d(4, 4, 1)),
        TypeError,
        r"DRACB: communication must be a module with forward\(previous, current\).* got Conv2d, whose forward takes",
    ),
    (lambda: MREB(12, communication=nn.Identity), TypeError, r"DRACB: communication must .* got Identity, whose"),
    (lambda: DRACB(12, 4, communication=float("nan")), ValueError, r"weight must be finite, got nan"),
    # chains
    (
        lambda: DRACBChain(12, 4),
        ValueError,
        r"length must be given, or in_channels or out_channels as a list",
    ),
    (
        lambda: DRACBChain([12, 12], 4, 3),
        ValueError,
        r"in_channels must hold one width for each of 3 stages, got \[12, 12\]",
    ),
    (lambda: DRACBChain([12] * 3, [4, 4]), ValueError, r"out_channels must hold one width for each of 3 stages"),
    (lambda: DRACBChain([], 4), ValueError, r"length must be given"),
    (lambda: DRACBChain(12, 4, 0), ValueError, r"DRACBChain: length must be at least 1, got 0"),
    (lambda: DRACBChain([12, 0], 4), ValueError, r"DRACBChain: in_channels\[1\] must be at least 1, got 0"),
    (lambda: DRACBChain(12, [4, 4.0]), TypeError, r"DRACBChain: out_channels\[1\] must be a positive integer, got 4.0"),
    (lambda: DRACBChain("ab", 4), TypeError, r"in_channels\[0\] must be a positive integer, got 'a' \(str\)"),
    (lambda: DRACBChain(None, 4, 2), TypeError, r"in_channels must be a positive integer, got None \(NoneType\)"),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG_ARGUMENTS, ids=[words for *_, words in WRONG_ARGUMENTS])
def test_words_about_arguments(call, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_the_map_is_the_second_of_what_a_block_returns() -> None:
    block, x = DRACB(12, 4), torch.rand(1, 12, 5, 5)
    results = block(x)
    with pytest.raises(TypeError, match=r"previous must be a tensor, got tuple; .*, pass the second"):
        block(x, results)
    with pytest.raises(TypeError, match=r"x must be a tensor, got tuple; .*, pass the first"):
        DRACB(4, 4)(results)
    block(x, results[1])


def test_a_block_that_was_called_at_two_sizes_keeps_its_windows() -> None:
    net = TwoSizes()
    with pytest.raises(ValueError, match="maps of one size"):
        to_local(net, torch.zeros(1, 4, 8, 6))
    assert net.block.local is None


def test_a_window_of_any_factor_covers_the_map() -> None:
    net, x = WSILB(4), torch.rand(1, 4, 2, 512)
    assert torch.allclose(to_local(net, x, factor=1e6)(x), to_global(net)(x), atol=1e-6)


class Failing(nn.Module):
    """A layer with a mistake inside."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.total = "0" + len(widths)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SCACB(12, act_layer=Failing),
        lambda: WSILB(12, gate_layer=Failing),
        lambda: DRACB(12, 4, communication=Failing),
    ],
)
def test_an_error_inside_a_layer_is_its_own(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(TypeError, match=r"^can only concatenate str"):
        build()


def test_words_about_a_channel_that_returns_no_tensor() -> None:
    class Silent(nn.Module):
        def forward(self, previous: torch.Tensor, current: torch.Tensor) -> None:
            return None

    x = torch.rand(1, 12, 6, 8)
    with pytest.raises(
        TypeError, match=r"DRACB: the output of Silent must be a tensor, got NoneType; forward\(previous"
    ):
        DRACB(12, 4, communication=Silent())(x, x[:, :4])


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.rand(3, 8, 8), ValueError, r"MREN: x must have 4 dimensions .* x.unsqueeze\(0\)"),
        (torch.rand(1, 1, 8, 8), ValueError, r"MREN: x must have 3 channels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, r"MREN: x must be a floating-point tensor"),
    ],
)
def test_words_about_an_image(x: torch.Tensor, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        MREN(4, channels=12, num_blocks=1)(x)


TAKES_MAPS = [SCACB(12), DRACB(12, 4), WSILB(12), WSILBV(12), RBWA(12), MREB(12)]


@pytest.mark.parametrize("block", TAKES_MAPS, ids=lambda block: type(block).__name__)
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            (12, 6, 8),
            r"x must have 4 dimensions \(batch, 12, height, width\), got shape \(12, 6, 8\); .* x.unsqueeze\(0\)",
        ),
        (
            (2, 48, 12),
            r"\(2, 48, 12\); .*; for tokens pass x.transpose\(1, 2\).unflatten\(2, \(height",
        ),
        (
            (2, 5, 12, 6, 8),
            r"\(2, 5, 12, 6, 8\); for video frames pass x.flatten\(0, 1\) and unflatten the result",
        ),
        ((12,), r"x must have 4 dimensions \(batch, 12, height, width\), got shape \(12,\)\.$"),
        ((2, 6, 8, 12), r"12 channels in dimension 1 \(NCHW\), got 6 .*for NHWC pass x.permute\(0, 3, 1, 2\)"),
        ((2, 5, 6, 8), r"must have 12 channels .* got 5 in shape \(2, 5, 6, 8\); pass 12 channels, or build \w+ for 5"),
        ((2, 12, 0, 8), r"must be at least 1 x 1 in height and width, got shape \(2, 12, 0, 8\)"),
        ((2, 12, 6, 0), r"must be at least 1 x 1"),
    ],
    ids=str,
)
def test_words_about_shapes(block: nn.Module, shape: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{type(block).__name__}: .*{words}"):
        block(torch.zeros(shape))


@pytest.mark.parametrize("block", TAKES_MAPS, ids=lambda block: type(block).__name__)
def test_words_about_dtypes(block: nn.Module) -> None:
    name = type(block).__name__
    with pytest.raises(
        TypeError, match=rf"{name}: x must be a floating-point tensor, got torch.uint8; pass x.float\(\) / 255"
    ):
        block(torch.zeros(1, 12, 4, 4, dtype=torch.uint8))


def test_words_about_sizes_that_do_not_scale() -> None:
    words = r"RBWA: .*multiples of 2, so that the output size is an integer, got 5 x 8; pad to 6 x 8 and crop"
    with pytest.raises(ValueError, match=words):
        RBWA(4, scale_factor=1.5)(torch.zeros(1, 4, 5, 8))
    with pytest.raises(ValueError, match=r"multiples of 2, .*, got 6 x 5; pad to 6 x 6"):
        RBWA(4, scale_factor=1.5)(torch.zeros(1, 4, 6, 5))


NUMBERS: dict[str, Callable[[Any], object]] = {
    "SCACB: channels": lambda n: SCACB(n, device="meta"),
    "SCACB: reduction": lambda n: SCACB(24, reduction=n),
    "DRACB: in_channels": lambda n: DRACB(n, 4, device="meta"),
    "DRACB: out_channels": lambda n: DRACB(4, n, device="meta"),
    "DRACBChain: in_channels": lambda n: DRACBChain(n, 4, 2, device="meta"),
    "DRACBChain: out_channels[1]": lambda n: DRACBChain(4, [4, n], device="meta"),
    "DRACBChain: length": lambda n: DRACBChain(4, 4, n, device="meta"),
    "DRACBChain: stage": lambda n: DRACBChain(4, 4, 9).step(n, torch.ones(1, 4, 3, 3), torch.ones(1, 4, 3, 3)),
    "WSILB: channels": lambda n: WSILB(n, device="meta"),
    "WSILB: eps": lambda n: WSILB(4, eps=n)(torch.ones(1, 4, 3, 3)),
    "WSILB: local height": lambda n: WSILB(4, local=(n, 3))(torch.ones(1, 4, 3, 3)),
    "WSILBV: channels": lambda n: WSILBV(n, device="meta"),
    "WSILBV: reduction": lambda n: WSILBV(8, reduction=n),
    "RBWA: in_channels": lambda n: RBWA(n, device="meta"),
    "RBWA: out_channels": lambda n: RBWA(4, n, device="meta"),
    "RBWA: scale_factor": lambda n: RBWA(4, scale_factor=n)(torch.ones(1, 4, 6, 6)),
    "MREB: channels": lambda n: MREB(n, device="meta"),
    "MREB: distilled_channels": lambda n: MREB(12, distilled_channels=n, device="meta"),
    "MREB: num_stages": lambda n: MREB(12, num_stages=n, device="meta"),
    "FixedCommunication: weight": lambda n: FixedCommunication(n),
    "LearnableCommunication: channels": lambda n: LearnableCommunication(n, device="meta"),
    "LearnableCommunication: init": lambda n: LearnableCommunication(4, init=n),
    "GatedCommunication: channels": lambda n: GatedCommunication(n, device="meta"),
    "GatedCommunication: init": lambda n: GatedCommunication(4, init=n),
    "AdaptedCommunication: previous_channels": lambda n: AdaptedCommunication(n, 4, device="meta"),
    "AdaptedCommunication: channels": lambda n: AdaptedCommunication(4, n, device="meta"),
    "to_local: factor": lambda n: to_local(WSILB(4), torch.ones(1, 4, 3, 3), factor=n)(torch.ones(1, 4, 9, 9)),
    "tiled: scale": lambda n: tiled(nn.Upsample(scale_factor=6), torch.ones(1, 1, 3, 3), scale=n),
    "tiled: tile": lambda n: tiled(nn.Identity(), torch.ones(1, 1, 9, 9), tile=n, overlap=0),
    "tiled: overlap": lambda n: tiled(nn.Identity(), torch.ones(1, 1, 9, 9), overlap=n),
    "tiled: size_multiple": lambda n: tiled(nn.Identity(), torch.ones(1, 1, 9, 9), tile=12, overlap=0, size_multiple=n),
    "fold: tolerance": lambda n: fold(WSILBV(4), example=torch.ones(1, 4, 3, 3), tolerance=n),
    "complexity: input_size": lambda n: complexity(WSILBV(4), (n, 4, 3, 3)),
    "Complexity.table: depth": lambda n: complexity(WSILBV(4), (1, 4, 3, 3)).table(depth=n),
}


@pytest.mark.parametrize("argument", NUMBERS)
def test_numbers_that_cannot_work_are_refused_by_name(argument: str) -> None:
    call, name = NUMBERS[argument], re.escape(argument.removesuffix("[1]"))
    infinite = [10**400, 10**5000, -(10**400), Fraction(10**400, 3), math.inf, -math.inf, math.nan, np.float32("nan")]
    for number in [*infinite, True, np.bool_(True), "6", 6j, Decimal(6), np.array([6]), torch.tensor(6)]:
        with pytest.raises((ValueError, TypeError), match=f"^{name}") as caught:
            call(number)
        assert len(str(caught.value)) < 300
    beyond_torch = [10**30, 2**63, 2**40, 2**29, -1] if "channels" in argument else []
    for number in [*beyond_torch, *([1e308] if argument.endswith(("init", "factor")) else [])]:
        with pytest.raises((ValueError, TypeError), match=f"^{name}"):
            call(number)


@pytest.mark.parametrize("argument", [name for name in NUMBERS if name != "GatedCommunication: init"])
def test_numbers_of_numpy_are_numbers(argument: str) -> None:
    block = NUMBERS[argument](np.int64(6))
    for value in vars(block).values() if isinstance(block, nn.Module) else ():
        assert not isinstance(value, np.generic)  # plain numbers in repr and pickle


FLAGS: dict[str, Callable[[Any], object]] = {
    "SCACB: residual": lambda flag: SCACB(12, residual=flag).residual,
    "SCACB: bias": lambda flag: SCACB(12, bias=flag).fuse.bias is not None,
    "DRACB: gate": lambda flag: DRACB(12, 4, gate=flag).gate is not None,
    "DRACB: bias": lambda flag: DRACB(12, 4, bias=flag).distill.bias is not None,
    "DRACBChain: takes_map": lambda flag: DRACBChain(12, 4, 2, takes_map=flag).takes_map,
    "DRACBChain: returns_map": lambda flag: DRACBChain(12, 4, 2, returns_map=flag).returns_map,
    "WSILB: bias": lambda flag: WSILB(12, bias=flag).shared.bias is not None,
    "WSILBV: bias": lambda flag: WSILBV(12, bias=flag).shared.expand.bias is not None,
    "RBWA: bias": lambda flag: RBWA(12, bias=flag).project.bias is not None,
    "LearnableCommunication: per_channel": lambda flag: LearnableCommunication(4, per_channel=flag).per_channel,
    "AdaptedCommunication: bias": lambda flag: AdaptedCommunication(3, 4, bias=flag).project.bias is not None,
}


@pytest.mark.parametrize("argument", FLAGS)
def test_flags_are_true_or_false(argument: str) -> None:
    for flag in (True, False, np.True_, np.False_):
        assert FLAGS[argument](flag) is bool(flag)
    for flag in ("no", 0.2, 1, None, nn.Tanh, torch.tensor(True), np.array([True])):
        with pytest.raises(TypeError, match=f"^{argument} must be True or False, got"):
            FLAGS[argument](flag)


# DRACB and its chain in use


@pytest.mark.parametrize("channel", [0.2, LearnableCommunication, GatedCommunication], ids=str)
def test_previous_map_of_another_shape(channel: object) -> None:
    block = DRACB(12, 4, communication=channel)
    with pytest.raises(
        ValueError,
        match=r"\w+Communication: previous must have the shape of current, \(1, 4, 6, 8\), got \(1, 4, 3, 4\); "
        r"pass maps of the same batch; for other widths or sizes, wrap the channel in AdaptedCommunication\(",
    ):
        block(torch.zeros(1, 12, 6, 8), torch.zeros(1, 4, 3, 4))


def test_previous_map_of_another_size_unadapted() -> None:
    block = DRACB(12, 4, communication=AdaptedCommunication(6, 4, resample=None))
    with pytest.raises(ValueError, match=r"previous must have the shape of current"):
        block(torch.zeros(1, 12, 6, 8), torch.zeros(1, 6, 3, 4))
    with pytest.raises(ValueError, match=r"AdaptedCommunication: previous must have 6 channels"):
        block(torch.zeros(1, 12, 6, 8), torch.zeros(1, 4, 6, 8))


def test_channels_check_their_width() -> None:
    for channel in (LearnableCommunication(4, per_channel=True), GatedCommunication(4), AdaptedCommunication(5, 4)):
        with pytest.raises(ValueError, match=rf"{type(channel).__name__}: current must have 4 channels"):
            channel(torch.zeros(1, 5, 6, 8), torch.zeros(1, 5, 6, 8))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_channel_without_a_signature() -> None:
    maps = torch.rand(2, 1, 4, 5, 6)

    class Scripted(torch.jit.ScriptModule):
        @torch.jit.script_method
        def forward(self, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
            return torch.maximum(previous, current)

    for channel in (torch.jit.trace(LearnableCommunication(4), tuple(maps)), Scripted()):
        assert DRACB(12, 4, communication=channel)(torch.rand(1, 12, 5, 6), maps[0])[0].shape == (1, 4, 5, 6)


def test_a_link_of_your_own_checks_its_input_itself() -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.link = DRACB(9, 4)

        def forward(self, x: torch.Tensor, previous: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.link(x, previous)

    chain = DRACBChain(12, 4, 2)
    chain.links[1] = Wider()
    assert chain([torch.rand(1, 12, 5, 6), torch.rand(1, 9, 5, 6)])[1].shape == (1, 4, 5, 6)


@pytest.mark.parametrize("relay", ["raw", "fused"])
@pytest.mark.parametrize("resample", [None, "nearest"])
@pytest.mark.parametrize("base", [nn.Module, FixedCommunication])
def test_a_channel_may_work_in_place(relay: Any, resample: Any, base: type[nn.Module]) -> None:
    class InPlace(base):
        def forward(self, previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
            return current.add_(previous.mul_(0.2))

    chain = DRACBChain(12, 4, 4, communication=InPlace(), relay=relay, resample=resample, dtype=torch.float64)
    same = DRACBChain(12, 4, 4, relay=relay, resample=resample, dtype=torch.float64)
    same.load_state_dict(chain.state_dict())
    features = [torch.rand(1, 12, 5, 6, dtype=torch.float64) for _ in range(4)]
    torch.testing.assert_close(chain(features), same(features))
    torch.cat(chain(features)).sum().backward()
    torch.cat(same(features)).sum().backward()
    for mine, other in zip(chain.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize(("channel", "shape"), [(Shrinking, r"\(1, 1, 6, 8\)"), (Pooling, r"\(1, 4, 1, 1\)")])
def test_channel_that_returns_another_shape(channel: type[nn.Module], shape: str) -> None:
    block = DRACB(12, 4, communication=channel())
    with pytest.raises(
        ValueError,
        match=rf"DRACB: the output of {channel.__name__} must have the shape of the attention map, \(1, 4, 6, 8\), got "
        rf"{shape}; forward\(previous, current\)",
    ):
        block(torch.zeros(1, 12, 6, 8), torch.zeros(1, 4, 6, 8))


def test_chain_misused() -> None:
    chain = DRACBChain(12, 4, 3)
    x, map_ = torch.zeros(1, 12, 6, 8), torch.zeros(1, 4, 6, 8)
    for call, words in [
        (lambda: chain([x, x]), r"features must be a sequence of 3 tensors, got 2; .*use step"),
        (lambda: chain([]), r"got 0"),
        (lambda: chain(x), r"got one tensor"),
        (lambda: chain([x, x, map_]), r"DRACBChain: features\[2\] must have 12 channels in dimension 1 .* got 4 in"),
        (lambda: chain(torch.zeros(3, 12, 6, 8)), r"got one tensor"),
        (lambda: chain.step(3, x, map_), r"DRACBChain: stage must be below 3, got 3; use length=4"),
        (lambda: chain.step(-1, x, map_), r"DRACBChain: stage must be at least 0, got -1"),
        (
            lambda: chain.step(1, x),
            r"DRACBChain: previous must be the map that step\(0, ...\) returned, got None; call step\(1, x, prev",
        ),
        (lambda: chain.step(0, x, map_), r"DRACBChain: .*takes no previous attention map, got one; omit previous"),
        (lambda: chain.step(0, map_), r"DRACB: x must have 12 channels .*got 4"),
        (lambda: chain.step(1, x, x), r"previous must have the shape of current"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize(
    "features", [None, {"0": torch.zeros(1, 12, 6, 8)}, iter(())], ids=["nothing", "dict", "iterator"]
)
def test_features_of_a_chain_are_a_sequence(features: object) -> None:
    with pytest.raises(TypeError, match=r"DRACBChain: features must be a list of 1 tensors, got \w+"):
        DRACBChain(12, 4, 1)(features)


def test_complex_maps_are_refused() -> None:
    x, previous = torch.zeros(1, 12, 6, 8), torch.zeros(1, 4, 6, 8, dtype=torch.complex64)
    with pytest.raises(
        TypeError, match=r"previous must be a floating-point tensor, got torch.complex64; pass torch.cat"
    ):
        DRACB(12, 4)(x, previous)
    with pytest.raises(
        TypeError, match=r"SCACB: x must be a floating-point tensor.* torch.cat\(\[x.real, x.imag\], dim=1"
    ):
        SCACB(12)(x.to(torch.complex64))


def test_chain_of_other_sizes_without_resampling() -> None:
    chain = DRACBChain([12, 12], 4)
    with pytest.raises(ValueError, match=r"build a DRACBChain with resample='bilinear'"):
        chain([torch.zeros(1, 12, 6, 8), torch.zeros(1, 12, 3, 4)])


def test_links_share_nothing() -> None:
    for channel in (LearnableCommunication(4), LearnableCommunication, GatedCommunication(4)):
        chain = DRACBChain(12, 4, 4, communication=channel)
        channels = [link.communication for link in chain.links]
        assert isinstance(channels[0], NoCommunication)
        assert all(a is not b for a, b in pairwise(channels))
        pointers = [parameter.data_ptr() for parameter in chain.parameters()]
        assert len(set(pointers)) == len(pointers)
        assert channel not in channels


@pytest.mark.parametrize(("channels", "parts"), [(6, "both"), (4, "spatial"), (4, "channel")])
def test_the_narrowest_mreb(channels: int, parts: Any) -> None:
    assert MREB(channels, parts=parts)(torch.rand(1, channels, 3, 4)).shape == (1, channels, 3, 4)


def test_classes_of_channels_without_a_width() -> None:
    assert DRACB(12, 4, communication=FixedCommunication).communication.weight == 0.2
    chain = DRACBChain([12, 12], [4, 6], communication=FixedCommunication)
    assert chain.links[1].communication.communication.weight == 0.2
    assert isinstance(DRACB(12, 4, communication=NoCommunication).communication, NoCommunication)


class Grouped(LearnableCommunication):
    """A channel with a weight for every two channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels // 2, per_channel=True)

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        return current + self.weight.repeat_interleave(2, 0) * previous


@pytest.mark.parametrize("channel", [Grouped, LearnableCommunication(4), AdaptedCommunication(4, 4)], ids=range(3))
def test_channels_that_take_any_width(channel: Any) -> None:
    maps = torch.rand(1, 12, 6, 8), torch.rand(1, 6, 6, 8)
    assert DRACB(12, 6, communication=channel)(*maps)[0].shape == (1, 6, 6, 8)


def test_a_factory_that_is_given_its_arguments_by_a_decorator() -> None:
    def injected(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return wraps(build)(lambda *args: build(*args, 0.3))

    act = SCACB(12, act_layer=injected(lambda slope: nn.LeakyReLU(slope))).act
    channel = DRACB(12, 4, communication=injected(lambda channels, weight: FixedCommunication(weight))).communication
    assert (act.negative_slope, channel.weight) == (0.3, 0.3)


def test_module_given_to_dracb_is_used_as_it_is() -> None:
    channel = GatedCommunication(4)
    assert DRACB(12, 4, communication=channel).communication is channel


def test_copied_module_brings_its_weights() -> None:
    channel = perturb(LearnableCommunication(4, per_channel=True))
    chain = DRACBChain(12, 4, 3, communication=channel)
    assert all(torch.equal(link.communication.weight, channel.weight) for link in list(chain.links)[1:])


# The example network


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MREN(5), r"MREN: scale must be one of 2, 3, 4; got 5"),
        (lambda: MREN(0), r"MREN: scale must be one of 2, 3, 4; got 0"),
        (lambda: MREN(2, num_blocks=0), r"MREN: num_blocks must be .*at least 1, got 0"),
        (lambda: MREN(4, channels=7), r"MREN: channels must be at least 8, got 7"),
        (lambda: MREN(2, channels=5), r"MREN: channels must be at least 6, got 5"),
        (lambda: MREN(3, channels=3, parts="spatial", reconstruct_channels=(4, 4)), r"MREN: channels .*at least 4"),
        (lambda: MREN(4, reconstruct_channels=(4, 3)), r"MREN: reconstruct_channels must be at least 4, got 3"),
    ],
)
def test_words_of_the_network(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        (4, {"channels": 8}),
        (2, {"channels": 6}),
        (3, {"channels": 6, "reconstruct_channels": (4, 4)}),
        (2, {"channels": 4, "parts": "channel"}),
    ],
)
def test_the_narrowest_network(scale: Any, options: dict[str, Any]) -> None:
    assert MREN(scale, num_blocks=1, **options)(torch.rand(1, 3, 3, 4)).shape == (1, 3, 3 * scale, 4 * scale)


@pytest.mark.parametrize("channels", [60.0, "60", None])
def test_the_width_of_the_network_is_an_integer(channels: object) -> None:
    with pytest.raises(TypeError, match="MREN: channels must be a positive integer, got"):
        MREN(2, channels=channels)


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(
        TypeError,
        match=r"SCACB: x must be a tensor, got tuple; if a block returned \(refined, attention_map\), pass the first",
    ):
        nn.Sequential(DRACB(8, 8), SCACB(8))(torch.rand(1, 8, 4, 4))
    with pytest.raises(
        TypeError, match=r"WSILBV: x must be a tensor, got int; .* pass the class WSILBV, not an instance"
    ):
        WSILBV(8)(8)  # what a network does that was given an instance for a class
    with pytest.raises(TypeError, match=r"SCACB: x must be a tensor, got ndarray; pass torch.from_numpy\(x\)"):
        SCACB(8)(torch.rand(1, 8, 4, 4).numpy())
    with pytest.raises(TypeError, match=r"SCACB: x must be a tensor, got Image; pass torch.from_numpy\(numpy.array"):
        SCACB(8)(type("Image", (), {"__module__": "PIL.Image"})())  # Pillow is not installed everywhere
    with pytest.raises(TypeError, match=r"SCACB: x must be a tensor, got dict\.$"):
        SCACB(8)({})


@pytest.mark.parametrize("stage", [1.0, True, "1", None])
def test_a_stage_is_an_integer(stage: object) -> None:
    x = torch.rand(1, 8, 4, 4)
    with pytest.raises(TypeError, match="DRACBChain: stage must be an integer, got"):
        DRACBChain(8, 4, 2).step(stage, x, torch.rand(1, 4, 4, 4))


@pytest.mark.parametrize("stage", [1.0, True, "1"])
def test_a_chain_ignores_no_stage(stage: Any) -> None:
    with pytest.raises(TypeError, match="DRACBChain: stage must be an integer, got"):
        DRACBChain(8, 4, 2)([torch.rand(1, 8, 4, 4)] * 2, stage=stage)
