"""Modules swapped in place: those that were asked for, all or none, where and as the old ones were, and back again."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SPAN import SPAN
from timm.layers import SEModule
from torch import Tensor, nn

from sc_blocks import SCACB, WSILBV
from sc_blocks.deploy import fold
from sc_blocks.surgery import SwapReport, replace_modules


def conv(in_channels: int = 4, out_channels: int = 4, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, **options)


def small() -> nn.Sequential:
    return nn.Sequential(conv(3), nn.ReLU(), nn.Sequential(conv(), nn.ReLU(), conv()), conv(4, 3))


def gelu(old: nn.Module, name: str) -> nn.Module:
    return nn.GELU()


def same_size(old: nn.Module, name: str) -> nn.Module:
    return conv(old.in_channels, old.out_channels)


def types(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules(remove_duplicate=False) if name}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    now = model.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[name], before[name]) for name in before)


def replaced(report: SwapReport) -> list[str]:
    return [name for swap in report.swaps for name in swap.names]


# What is selected


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (nn.ReLU, ["1", "2.1"]),
        ((nn.ReLU, nn.Conv2d), ["0", "1", "2.0", "2.1", "2.2", "3"]),
        ("1", ["1"]),
        ("2.?", ["2.0", "2.1", "2.2"]),
        ("*.1", ["2.1"]),
        ("[03]", ["0", "3"]),
        ("*", ["0", "1", "2", "3"]),  # of what is inside another match, the outer
        ("2*", ["2"]),
        (lambda name, module: isinstance(module, nn.Conv2d) and module.in_channels == 3, ["0"]),
        (lambda name, module: name in ("2", "2.0", "3"), ["2", "3"]),
    ],
)
def test_what_is_selected(where: object, names: list[str]) -> None:
    model = small()
    told = []
    report = replace_modules(model, where, lambda old, name: told.append(name) or nn.Identity())
    assert replaced(report) == told == names
    assert [name for name, type_ in types(model).items() if type_ is nn.Identity] == names
    assert [len(swap.names) for swap in report.swaps] == [1] * len(names)


def test_a_name_that_reads_like_a_pattern_is_a_name() -> None:
    assert replaced(replace_modules(nn.ModuleDict({"x[2]": nn.ReLU(), "y": nn.ReLU()}), "x[2]", gelu)) == ["x[2]"]


def test_a_name_that_begins_like_another_is_not_inside_it() -> None:
    model = nn.Sequential(*(nn.ReLU() for _ in range(12)))
    report = replace_modules(model, lambda name, module: name in ("1", "10"), gelu)
    assert replaced(report) == ["1", "10"]


def test_subclasses_are_instances_too() -> None:
    class Conv(nn.Conv2d):
        pass

    model = nn.Sequential(Conv(3, 4, 1), nn.ReLU())
    assert replaced(replace_modules(model, nn.Conv2d, same_size)) == ["0"]


def test_a_wrapper_is_not_searched_again() -> None:
    model = nn.Sequential(conv())
    old = model[0]
    replace_modules(model, nn.Conv2d, lambda old, name: nn.Sequential(old, conv()))
    assert isinstance(model[0], nn.Sequential)
    assert model[0][0] is old


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ModuleList([nn.ReLU(), nn.Tanh()])
        self.dict = nn.ModuleDict({"first": nn.ReLU(), "relu": nn.ReLU()})
        self.row = nn.Sequential(nn.ReLU(), nn.Tanh())
        self.own = nn.ReLU()
        self.none = None

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.row(self.dict["relu"](self.dict["first"](self.list[1](self.list[0](x))))))


def test_containers() -> None:
    model = Containers()
    order = list(types(model))
    report = replace_modules(model, nn.ReLU, gelu)
    assert replaced(report) == ["list.0", "dict.first", "dict.relu", "row.0", "own"]
    assert isinstance(model.list[0], nn.GELU)
    assert isinstance(model.dict["relu"], nn.GELU)
    assert isinstance(model.row[0], nn.GELU)
    assert isinstance(model.own, nn.GELU)
    assert list(types(model)) == order
    assert len(model.list) == len(model.dict) == len(model.row) == 2
    report.undo()
    assert nn.GELU not in types(model).values()
    assert list(types(model)) == order


class Shared(nn.Module):
    """One activation in three places, one pair of layers in two."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.first = nn.Sequential(conv(), self.act)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.act(self.first(x)))


@pytest.mark.parametrize("where", [nn.ReLU, "act", "first.1", "again.1"], ids=str)
def test_a_shared_module_is_replaced_by_one_in_all_places(where: object) -> None:
    model, told = Shared(), []
    old = model.act
    report = replace_modules(model, where, lambda old, name: told.append(name) or nn.GELU())
    assert [swap.names for swap in report.swaps] == [("act", "first.1", "again.1")]
    assert told == [where if isinstance(where, str) else "act"]
    assert isinstance(model.act, nn.GELU)
    assert model.act is model.first[1]
    assert model.again is model.first
    report.undo()
    assert model.act is model.first[1] is old


def test_what_lies_in_a_selected_module_is_left_to_it() -> None:
    model = Shared()
    block, act = model.first, model.act
    report = replace_modules(
        model, lambda name, module: module in (block, act), lambda old, name: nn.Sequential(old, nn.Tanh())
    )
    assert [swap.names for swap in report.swaps] == [("act",), ("first", "again")]
    assert model.first[0] is block
    assert block[1] is act
    report.undo()
    assert model.again is block
    assert model.act is act


# Where and as the old ones were


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_dtype_and_mode_are_kept(dtype: torch.dtype, training: bool) -> None:
    model = small().to(dtype).train(training)
    replace_modules(model, "2", lambda old, name: nn.Sequential(WSILBV(4), nn.BatchNorm2d(4), nn.Dropout()))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {module.training for module in model.modules()} == {training}
    assert model[2][1].num_batches_tracked.dtype == torch.long
    assert model(torch.rand(1, 3, 5, 6, dtype=dtype)).dtype == dtype


def test_the_mode_is_that_of_the_old_module_not_of_the_network() -> None:
    model = small().train()
    model[2].eval()
    replace_modules(model, nn.ReLU, gelu)
    assert (model[1].training, model[2][1].training) == (True, False)


def test_device_is_kept() -> None:
    model = small().to("meta")
    replace_modules(model, nn.Conv2d, same_size)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_without_parameters_the_surroundings_tell() -> None:
    model = nn.Sequential(conv(8, 8), nn.Sequential(conv().double(), nn.Sequential(nn.ReLU())), nn.ReLU()).half()
    model[1][0].double()
    replace_modules(model, nn.ReLU, lambda old, name: conv())
    assert model[1][1][0].weight.dtype == torch.float64
    assert model[2].weight.dtype == torch.float16  # that of most numbers of the whole is the half


def test_a_network_without_tensors_tells_nothing() -> None:
    model = nn.Sequential(nn.ReLU())
    replace_modules(model, nn.ReLU, lambda old, name: conv(dtype=torch.float64))
    assert model[0].weight.dtype == torch.float64


def test_of_mixed_types_the_larger_part_tells() -> None:
    model = nn.Sequential(nn.Sequential(conv().half(), nn.BatchNorm2d(4)))
    replace_modules(model, "0", lambda old, name: conv())
    assert model[0].weight.dtype == torch.float16


def test_buffers_tell_too_but_integers_do_not() -> None:
    old = nn.BatchNorm2d(4, affine=False).double()
    old.register_buffer("index", torch.zeros(100, dtype=torch.long))
    model = nn.Sequential(conv(), old)
    replace_modules(model, "1", lambda old, name: conv())
    assert model[1].weight.dtype == torch.float64


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.scale, self.extra = inner, nn.Parameter(torch.ones(1)), nn.Dropout()


def test_a_wrapped_module_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Sequential(conv().half(), nn.BatchNorm2d(4))).eval()
    model[0][1].train()
    norm = model[0][1]
    report = replace_modules(model, "0", lambda old, name: Scaled(old))
    assert model[0].inner[1] is norm
    assert norm.weight.dtype == torch.float32  # were it cast, undo could not give it back
    assert model[0].scale.dtype == torch.float16
    assert [model[0].training, model[0].extra.training, norm.training] == [False, False, True]
    report.undo()
    assert model[0][1] is norm


def test_another_module_of_the_network_may_be_the_new_one() -> None:
    model = small()
    model[2].double().eval()
    replace_modules(model, "2.1", lambda old, name: model[1])
    replace_modules(model, "2.2", lambda old, name: model[0])
    assert model[2][1] is model[1]
    assert model[2][2] is model[0]
    assert model[0].training  # nothing of it follows the old ones
    assert model[0].weight.dtype == torch.float32


def test_new_parameters_train_in_a_frozen_network() -> None:
    model = small().requires_grad_(False)
    replace_modules(model, nn.ReLU, lambda old, name: WSILBV(4))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".shared")[0] for name in trainable} == {"1", "2.1"}


# The report


def test_the_report_prints() -> None:
    model = small()
    report = replace_modules(model, "2.[02]", lambda old, name: nn.Conv2d(4, 4, 1))
    assert str(report).splitlines() == [
        "Sequential: 2 modules replaced, 519 -> 263 parameters",
        "  2.0: Conv2d (148) -> Conv2d (20)",
        "  2.2: Conv2d (148) -> Conv2d (20)",
    ]
    assert report.parameters_before - report.parameters_after == 2 * (148 - 20)
    assert "act, first.1, again.1: ReLU (0) -> GELU (0)" in str(replace_modules(Shared(), nn.ReLU, gelu))
    assert "model" not in repr(report)


def test_modules_that_do_not_know_their_size_yet() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    report = replace_modules(model, nn.ReLU, lambda old, name: nn.LazyConv2d(4, 3))
    assert (report.parameters_before, report.parameters_after) == (0, 0)
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 4, 4, 4)


def test_undo_gives_back_the_very_modules() -> None:
    model = small()
    before, modules = state(model), list(model.modules())
    report = replace_modules(model, nn.Conv2d, same_size)
    assert not torch.equal(model[0].weight, before["0.weight"])
    report.undo()
    assert list(model.modules()) == modules
    assert_same_state(model, before)


def test_undo_once_only() -> None:
    model = small()
    report = replace_modules(model, nn.ReLU, gelu)
    report.undo()
    with pytest.raises(RuntimeError, match=r"SwapReport: undo has been called already; to replace again, call rep"):
        report.undo()
    replace_modules(model, nn.ReLU, gelu)
    with pytest.raises(RuntimeError, match=r"undo has been called already"):
        report.undo()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda model: replace_modules(model, "2.1", lambda old, name: nn.Tanh()),
            r"'2.1' .* got another module, Tanh",
        ),
        (lambda model: replace_modules(model, "2", lambda old, name: nn.Tanh()), r"'2.1' .* got nothing"),
        (
            lambda model: model.pop(2),
            r"'2.1' must .* the GELU .* got nothing; undo changes in the reverse order",
        ),
        (lambda model: setattr(model, "1", nn.GELU()), r"'1' must still hold the GELU .* got another module, GELU"),
    ],
    ids=["replaced", "parent replaced", "removed", "another of its kind"],
)
def test_undo_of_a_network_that_was_changed_since(change: Callable[[nn.Module], object], words: str) -> None:
    model = small()
    report = replace_modules(model, nn.ReLU, gelu)
    later = change(model)
    there = types(model)
    with pytest.raises(RuntimeError, match=f"SwapReport: {words}"):
        report.undo()
    assert types(model) == there  # not the other one, either
    if isinstance(later, SwapReport):
        later.undo()
        report.undo()
        assert types(model) == types(small())


def test_undo_follows_the_network() -> None:
    model = small()
    report = replace_modules(model, "2", lambda old, name: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    model.eval().double()
    report.undo()
    assert {module.training for module in model.modules()} == {False}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model(torch.rand(1, 3, 4, 5, dtype=torch.float64)).isfinite().all()


def test_undo_after_a_move_keeps_mixed_types() -> None:
    model = nn.Sequential(conv(), nn.Sequential(conv().half(), nn.BatchNorm2d(4)))
    report = replace_modules(model, "1", lambda old, name: conv())
    model.to("meta")
    report.undo()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert [parameter.dtype for parameter in model[1].parameters()] == [torch.float16] * 2 + [torch.float32] * 2


def test_undo_without_a_move_keeps_each_device() -> None:
    model = nn.Sequential(nn.Sequential(conv(device="meta"), conv()))
    report = replace_modules(model, "0", lambda old, name: conv())
    report.undo()
    assert [layer.weight.device.type for layer in model[0]] == ["meta", "cpu"]


def test_undo_changes_nothing_else_about_the_old_modules() -> None:
    model = nn.Sequential(conv(), nn.Sequential(conv().half(), nn.BatchNorm2d(4), nn.Dropout())).train()
    model[1][1].eval()
    report = replace_modules(model, "1", lambda old, name: conv())
    report.undo()
    assert [parameter.dtype for parameter in model[1].parameters()] == [torch.float16] * 2 + [torch.float32] * 2
    assert [module.training for module in model[1]] == [True, False, True]


# A user's mistakes


def test_if_make_fails_nothing_has_happened() -> None:
    model = small()
    before, modules = state(model), list(model.modules())

    def fails_late(old: nn.Module, name: str) -> nn.Module:
        if name == "3":
            raise LookupError("no idea")
        return same_size(old, name)

    for make, error in [(fails_late, LookupError), (lambda old, name: conv() if name < "3" else None, TypeError)]:
        with pytest.raises(error):
            replace_modules(model, nn.Conv2d, make)
        assert list(model.modules()) == modules
        assert_same_state(model, before)


def test_if_a_parent_keeps_its_module_nothing_has_happened() -> None:
    script = torch.jit.trace(nn.Sequential(nn.ReLU()), torch.rand(1))
    model = nn.Sequential(nn.Sequential(nn.ReLU()), script)
    modules = list(model.modules())
    with pytest.raises(RuntimeError, match="ScriptModule"):
        replace_modules(model, "?.0", lambda old, name: nn.GELU())
    assert list(model.modules()) == modules


def test_if_the_user_interrupts_nothing_has_happened() -> None:
    class Slow(nn.Sequential):
        def __setattr__(self, name: str, value: object) -> None:
            if isinstance(value, nn.GELU):
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    model = nn.Sequential(nn.Sequential(nn.ReLU()), Slow(nn.ReLU()))
    modules = list(model.modules())
    with pytest.raises(KeyboardInterrupt):
        replace_modules(model, nn.ReLU, gelu)
    assert list(model.modules()) == modules


def nothing(name: str, module: nn.Module) -> bool:
    return False


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (
            SCACB,
            r"inside Sequential, got sc_blocks.scacb.SCACB, .*none; there are .*\.Conv2d \(4\), .*\.ReLU \(2\)",
        ),
        ((SCACB, WSILBV), r"got \(sc_blocks.scacb.SCACB, sc_blocks.wsilb.WSILBV\), which selects none; there are"),
        (type("Conv2d", (), {}), r"got \w[\w.]*.Conv2d, .* there are torch.nn.modules.conv.Conv2d \(4\), "),
        ("2.3", r"got '2.3', which selects none; close matches are '2.[012]'"),
        ("body.*", r"got 'body.\*', which selects none; there are 7, such as '0', '1', '2'\.$"),
        ("Conv2d", r"to select by type pass the class, torch.nn.modules.conv.Conv2d, not its name"),
        (nothing, r"got <function nothing .*, which selects none; there are torch.nn.modules.conv.Conv2d \(4\)"),
        ((), r"got \(\), which selects none"),
        (
            nn.Sequential,
            r"inside model, got torch.*Sequential, which selects the Sequential itself; exclude it",
        ),
        (lambda name, module: True, r"selects the Sequential itself; .* lambda name, module: name != \"\" and"),
        ("", r"got '', which selects the Sequential itself"),
    ],
)
def test_words_about_what_is_not_there(where: object, words: str) -> None:
    model = small()
    with pytest.raises(ValueError, match=f"replace_modules: where must select .*{words}"):
        replace_modules(model, where, gelu)
    assert types(model) == types(small())


def test_words_about_a_single_layer() -> None:
    with pytest.raises(ValueError, match=r"inside ReLU, .*; there are no modules in it"):
        replace_modules(nn.ReLU(), nn.Conv2d, gelu)


def test_words_list_the_commonest_types_only() -> None:
    model = nn.Sequential(
        *(getattr(nn, name)() for name in ("CELU", "ELU", "GELU", "Hardswish", "Mish", "ReLU", "SELU", "SiLU", "Tanh"))
    )
    with pytest.raises(ValueError, match=r"there are .*\.CELU \(1\), .*\.SiLU \(1\), \.\.\.\.$"):
        replace_modules(model, nn.Conv2d, gelu)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3, nn.ReLU, gelu), r"model must be a torch.nn.Module, got int"),
        ((nn.ReLU, nn.ReLU, gelu), r"model must be a torch.nn.Module, got type"),
        (
            (small(), nn.ReLU(), gelu),
            r"where must be a type, .* got a module \(ReLU\); .* for one module, lambda name, module: module is",
        ),
        ((small(), (nn.ReLU, "1"), gelu), r"where must be a type, a tuple of types, .*, got \(.*, '1'\) \(tuple\)"),
        (
            (small(), None, gelu),
            r"where must be a type, .* or a predicate .*, got None \(NoneType\); for example",
        ),
        ((small(), ["1"], gelu), r"where must be a type, .*, got \['1'\] \(list\)"),
        ((small(), lambda module: True, gelu), r"where must be a type, .* which fails for '': .*positional argument"),
        ((small(), nn.ReLU, nn.GELU()), r"make must be a function \(old, name\) -> module, such as .*, got GELU"),
        ((small(), nn.ReLU, None), r"make must be a function .*, got NoneType"),
        ((small(), nn.ReLU, lambda old, name: nn.GELU), r"make must return .* for '1', got the class GELU; call it"),
        (
            (small(), nn.ReLU, lambda old, name: None),
            r"make must return a torch.nn.Module for '1', got None \(NoneType\)",
        ),
        ((small(), nn.ReLU, SCACB), r"make must be a function .*SCACB.*, which fails for '1': .*positional arguments"),
    ],
    ids=range(12),
)
def test_words_about_arguments(arguments: tuple, words: str) -> None:
    with pytest.raises(TypeError, match=f"replace_modules: {words}"):
        replace_modules(*arguments)


def test_an_error_inside_a_function_is_its_own() -> None:
    with pytest.raises(TypeError, match=r"^SCACB: channels must be a positive integer, got '1' \(str\)\.$"):
        replace_modules(small(), nn.ReLU, lambda old, name: SCACB(name))
    with pytest.raises(TypeError, match=r"^'>' not supported"):
        replace_modules(small(), lambda name, module: name > 0, gelu)


def test_words_about_an_old_module_returned() -> None:
    # What was changed inside it could not be undone.
    with pytest.raises(
        ValueError, match=r"make must return another module for '1', got the old ReLU; to keep it, do not"
    ):
        replace_modules(small(), nn.ReLU, lambda old, name: old)


def test_a_new_module_of_the_wrong_width_says_so_when_it_runs() -> None:
    model = small()
    replace_modules(model, "2.2", lambda old, name: WSILBV(8))
    with pytest.raises(ValueError, match=r"WSILBV: x must have 8 channels .* got 4 .*or build WSILBV for 4"):
        model(torch.rand(1, 3, 5, 6))


# Laws


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """A tree of containers, some of whose parts are in several places."""
    pool: list[nn.Module] = []

    def node(depth: int) -> nn.Module:
        if pool and draw(st.integers(0, 5)) == 0:
            return pool[draw(st.integers(0, len(pool) - 1))]
        kind = draw(st.integers(0, 3 if depth == 0 else 5))
        if kind < 4:
            built = [lambda: conv(2, 2), nn.ReLU, lambda: nn.BatchNorm2d(2), nn.Tanh][kind]()
        else:
            built = nn.Sequential(*(node(depth - 1) for _ in range(draw(st.integers(1, 3)))))
        pool.append(built)
        return built

    # Tanh bounds what comes in: shared layers, many times over, would overflow.
    return nn.Sequential(nn.Tanh(), *(node(2) for _ in range(draw(st.integers(1, 4))))).eval()


@given(networks(), st.sets(st.sampled_from([nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Tanh]), min_size=1))
def test_law_of_leaves(model: nn.Module, kinds: set[type]) -> None:
    matched = {module for module in model.modules() if type(module) in kinds}
    if not matched:
        return
    names = [name for name, type_ in types(model).items() if type_ in kinds]
    x = torch.rand(1, 2, 3, 4)
    before, modules, out = state(model), list(model.modules()), model(x)

    report = replace_modules(model, tuple(kinds), lambda old, name: nn.GELU())
    assert len(report.swaps) == len(matched)
    assert sorted(replaced(report)) == sorted(names)
    assert not matched & set(model.modules())
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.parameters_before == sum(parameter.numel() for module in {model} for parameter in before_of(modules))

    report.undo()
    assert list(model.modules()) == modules
    assert_same_state(model, before)
    assert torch.equal(model(x), out)


def before_of(modules: list[nn.Module]) -> set[nn.Parameter]:
    return {parameter for module in modules for parameter in module.parameters(recurse=False)}


@given(networks(), st.data())
def test_law_of_nested_matches(model: nn.Module, data: st.DataObject) -> None:
    inside = list(types(model))
    chosen = data.draw(st.sets(st.sampled_from(inside), min_size=1))
    marked = {model.get_submodule(name) for name in chosen}
    outermost = {
        name
        for name in inside
        if model.get_submodule(name) in marked
        and not any(model.get_submodule(name[:dot]) in marked for dot in range(len(name)) if name[dot] == ".")
    }
    before, modules = state(model), list(model.modules())
    report = replace_modules(
        model, lambda name, module: name in chosen, lambda old, name: nn.Sequential(old, nn.Tanh())
    )
    assert set(replaced(report)) == outermost
    assert len(report.swaps) == len({swap.old for swap in report.swaps}) == len({swap.new for swap in report.swaps})
    assert all(model.get_submodule(name)[0] is swap.old for swap in report.swaps for name in swap.names)
    report.undo()
    assert list(model.modules()) == modules
    assert_same_state(model, before)


# Networks of others


def rcan() -> nn.Module:
    return RCAN(scale=2, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4, norm=False)


def safmn() -> nn.Module:
    return SAFMN(dim=16, n_blocks=2, upscaling_factor=2)


def span() -> nn.Module:
    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=2)


def attention_of_rcan(name: str, module: nn.Module) -> bool:
    return type(module).__name__ == "CALayer"


NETWORKS = {
    "resnet18 activations": (lambda: timm.create_model("resnet18"), nn.ReLU, gelu, 17),
    "resnet18 convolutions": (
        lambda: timm.create_model("resnet18"),
        "layer[34].*.conv2",
        lambda old, name: SCACB(old.out_channels, reduction=16),
        4,
    ),
    "resnet18 attention": (
        lambda: timm.create_model("resnet18", block_args={"attn_layer": "se"}),
        SEModule,
        lambda old, name: WSILBV(old.fc1.in_channels),
        8,
    ),
    "convnext_atto": (
        lambda: timm.create_model("convnext_atto"),
        "stages.*.mlp.norm",
        lambda old, name: WSILBV(160 * 2 ** int(name.split(".")[1]), reduction=16),
        12,
    ),
    "RCAN": (rcan, attention_of_rcan, lambda old, name: WSILBV(old.conv_du[0].in_channels), 4),
    "SAFMN": (safmn, "feats.?.safm", lambda old, name: SCACB(old.aggr.in_channels), 2),
    "SPAN": (span, "block_[2-5].c3_r", lambda old, name: SCACB(old.sk.in_channels), 4),
}


@pytest.mark.parametrize(("build", "where", "make", "count"), NETWORKS.values(), ids=NETWORKS)
def test_networks_of_others(build, where: object, make, count: int) -> None:
    model, x = build().eval(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x.clone())
    before = state(model)  # after the run: SPAN writes to itself in eval mode

    report = replace_modules(model, where, make)
    assert len(report.swaps) == count
    assert not any(module.training for module in model.modules())
    model(x.clone()).square().mean().backward()
    for swap in report.swaps:
        for name, parameter in swap.new.named_parameters():
            assert parameter.grad is not None, (swap.names, name)
    copy.deepcopy(model).load_state_dict(model.state_dict())

    report.undo()
    assert_same_state(model, before)
    with torch.no_grad():
        torch.testing.assert_close(model(x.clone()), expected)


def test_the_way_of_the_constructor_and_that_of_the_knife_meet() -> None:
    built = timm.create_model("resnet18", block_args={"attn_layer": WSILBV}).eval()
    changed = timm.create_model("resnet18", block_args={"attn_layer": "se"}).eval()
    replace_modules(changed, SEModule, lambda old, name: WSILBV(old.fc1.in_channels))
    changed.load_state_dict(built.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(changed(x), built(x))


@pytest.mark.slow
def test_compiled_code_notices() -> None:
    model = small()
    compiled = torch.compile(model, backend="eager")
    x = torch.rand(1, 3, 8, 8)
    before = compiled(x)
    report = replace_modules(model, nn.ReLU, lambda old, name: nn.Tanh())
    assert torch.equal(compiled(x), model(x))
    assert not torch.equal(compiled(x), before)
    report.undo()
    assert torch.equal(compiled(x), before)


class Rotating(nn.Module):
    """A module with complex tensors, as rotary embeddings have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(3), torch.arange(3.0)))
        self.scale = nn.Parameter(torch.ones(3))


def test_complex_tensors_of_a_new_module_stay_complex() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).double()
    replace_modules(net, nn.ReLU, lambda old, name: Rotating())
    assert net[1].turn.dtype == torch.complex64
    assert net[1].turn.imag.abs().max() > 0.5
    assert net[1].scale.dtype == torch.float64


def test_a_mode_that_is_overridden_may_return_nothing() -> None:
    class PartlyFrozen(nn.Sequential):
        def train(self, mode: bool = True) -> None:
            super().train(mode)
            self[1].eval()

    model = small()
    replace_modules(model, "3", lambda old, name: PartlyFrozen(conv(), nn.BatchNorm2d(4)))
    assert model[3].training
    assert not model[3][1].training
    assert not fold(PartlyFrozen(conv(), nn.BatchNorm2d(4))).training


def test_a_wrapper_that_cannot_be_moved_gets_its_module_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    wrappers: list[nn.Sequential] = []

    def wrap(old: nn.Module, name: str) -> nn.Module:
        wrappers.append(nn.Sequential(old, nn.Conv2d(3, 3, 1, device="meta")))
        return wrappers[-1]

    with pytest.raises(NotImplementedError, match="meta"):
        replace_modules(net, nn.ReLU, wrap)
    assert wrappers[0][0] is net[1]


def test_make_gets_the_selected_name_of_an_empty_module() -> None:
    net = nn.Module()
    net.a = net.b = nn.Sequential()  # the usual identity shortcut, which is false as a condition
    names: list[str] = []
    replace_modules(net, "b", lambda old, name: names.append(name) or nn.Identity())
    assert names == ["b"]
