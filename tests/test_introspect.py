"""Looking into networks: what is captured is what the blocks computed, nothing is changed by it, and costs add up."""

from __future__ import annotations

import copy
import io
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from examples.mren.fold import fold_mren
from examples.mren.model import MREN
from sc_blocks import (
    DRACB,
    MREB,
    RBWA,
    SCACB,
    WSILB,
    WSILBV,
    DRACBChain,
    GatedCommunication,
    LearnableCommunication,
    to_local,
)
from sc_blocks.deploy import fold
from sc_blocks.introspect import Cost, capture_attention, complexity
from tests.blocks import CASES, Case, each_case, perturb


def hook_count(module: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


def net(**options) -> MREN:
    return perturb(MREN(2, channels=12, num_blocks=2, **options))


def image(height: int = 6, width: int = 8) -> Tensor:
    return torch.rand(1, 3, height, width)


class Twice(nn.Module):
    """A network that calls one block twice, as recursive networks do."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


# Attention, captured


def has_attention(case: Case) -> bool:
    blocks = (DRACB, WSILB, WSILBV, GatedCommunication)
    return any(isinstance(module, blocks) for module in case.build(device="meta").modules())


@pytest.mark.parametrize("case", [case for case in CASES if has_attention(case)], ids=lambda case: case.name)
def test_capturing_changes_nothing(case: Case) -> None:
    module, x = case.build(), case.input()
    expected = module(x)
    with capture_attention(module) as attention:
        actual = module(x)
    assert torch.equal(actual, expected)
    assert attention
    assert not any(tensor.requires_grad for tensor in attention.values())
    assert hook_count(module) == 0
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("case", [case for case in CASES if not has_attention(case)], ids=lambda case: case.name)
def test_words_about_a_model_without_attention(case: Case) -> None:
    words = r"must contain a DRACB, WSILB, WSILBV or .*, got SCACB, which has none; there is nothing to capture"
    with pytest.raises(ValueError, match=words), capture_attention(case.build()):
        pass


@pytest.mark.parametrize("options", [{}, {"local": (3, 5)}], ids=["whole", "windows"])
@pytest.mark.parametrize("block", [WSILB, WSILBV])
def test_gate_of_channel_attention(block: type, options: dict) -> None:
    module, x = perturb(block(8, **options)), torch.randn(2, 8, 6, 10)
    with capture_attention(module) as attention:
        out = module(x)
    assert list(attention) == ["gate"]
    assert attention["gate"].shape == ((2, 8, 6, 10) if options else (2, 8, 1, 1))
    assert torch.equal(x * attention["gate"], out)


@pytest.mark.parametrize("relay", ["raw", "fused"])
@pytest.mark.parametrize("communication", [None, 0.3, LearnableCommunication], ids=str)
def test_maps_of_a_block(relay: str, communication: object) -> None:
    block = perturb(DRACB(12, 4, relay=relay, communication=communication))
    x, previous = torch.randn(2, 12, 5, 7), torch.randn(2, 4, 5, 7)
    with capture_attention(block) as attention:
        refined, handed_on = block(x, previous=previous)
    assert list(attention) == ["map", "fused", "gate"]
    torch.testing.assert_close(attention["map"], block.distill(x))
    assert torch.equal(attention["fused"], block.communication(previous, attention["map"]))
    assert torch.equal(attention["gate"], attention["fused"].sigmoid())
    assert torch.equal(attention["fused"] * attention["gate"], refined)
    assert torch.equal(attention["fused" if relay == "fused" else "map"], handed_on)
    assert torch.equal(attention["fused"], attention["map"]) == (communication is None)

    with capture_attention(block) as first:
        block(x)
    assert torch.equal(first["fused"], first["map"])


def test_names_of_a_network() -> None:
    model = net()
    with capture_attention(model) as attention:
        model(image())
    maps = [f"links.{link}.{what}" for link in range(4) for what in ("map", "fused", "gate")]
    expected = [f"body.{n}.{name}" for n in range(2) for name in (*(f"refine.{m}" for m in maps), "attention.gate")]
    assert list(attention) == [*expected, "reconstruct.0.attention.gate"]
    assert all(attention[f"body.0.refine.{name}"].shape == (1, 3, 6, 8) for name in maps)
    assert attention["body.1.attention.gate"].shape == (1, 12, 1, 1)
    modules = dict(model.named_modules())
    assert all(name.rpartition(".")[0] in modules for name in attention)


def test_chain_of_a_network_hands_its_maps_on() -> None:
    model = net(communication=0.3)
    with capture_attention(model, ["body.1.refine.*"]) as attention:
        model(image())
    for link in range(1, 4):
        before, here = (f"body.1.refine.links.{number}" for number in (link - 1, link))
        expected = attention[f"{here}.map"] + 0.3 * attention[f"{before}.map"]
        torch.testing.assert_close(attention[f"{here}.fused"], expected)


def test_without_gates() -> None:
    model = net(gate=False)
    with capture_attention(model) as attention:
        model(image())
    assert Counter(name.rpartition(".")[2] for name in attention) == {"map": 8, "fused": 8, "gate": 3}
    assert not any("refine" in name for name in attention if name.endswith("gate"))


def test_gate_of_a_channel() -> None:
    model = net(communication=GatedCommunication)
    with capture_attention(model) as attention:
        model(image())
    previous, here = "body.0.refine.links.0", "body.0.refine.links.1"
    expected = attention[f"{here}.map"] + attention[f"{here}.communication.gate"] * attention[f"{previous}.map"]
    torch.testing.assert_close(attention[f"{here}.fused"], expected)
    assert f"{previous}.communication.gate" not in attention


def test_names_and_patterns_select() -> None:
    model = net()
    with capture_attention(model) as everything:
        model(image())
    for names in (["body.0.attention.gate"], ["*.links.[13].fused", "body.1.*"], ["*"], ["*.gate", "*.gate"]):
        with capture_attention(model, names) as attention:
            model(image())
        assert attention
        assert set(attention) < set(everything) or names == ["*"]
    with capture_attention(model, ["*.links.[13].fused", "body.1.attention.gate"]) as attention:
        model(image())
    links = [f"body.{n}.refine.links.{link}.fused" for n in range(2) for link in (1, 3)]
    assert sorted(attention) == sorted([*links, "body.1.attention.gate"])


def test_a_name_that_reads_like_a_pattern_is_a_name() -> None:
    block = nn.ModuleDict({"x[2]": WSILB(6), "x2": WSILB(6)})
    with capture_attention(block, ["x[2].gate"]) as attention:
        block["x[2]"](torch.rand(1, 6, 4, 5))
    assert list(attention) == ["x[2].gate"]


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (
            ["body.0.atention.gate"],
            ValueError,
            r"names must .* MREN, got 'body.0.atention.gate'; close matches are 'body.0.att",
        ),
        (["*.gate", "*.mask"], ValueError, r"got '\*.mask'; there are 27, such as 'body.0.refine.links.0.map', "),
        (["body.0.refine.links.0.GATE"], ValueError, r"close matches are 'body.0.refine.links.0"),
        ("*.gate", TypeError, r"capture_attention: names must be a sequence .*such as \['\*.gate'\], got '\*.gate'"),
        ([0], TypeError, r"names must be a sequence of names or patterns, .*got \[0\]"),
        pytest.param(iter(["*.gate"]), TypeError, r"names must be a sequence .*got <list_iterator", id="iterator"),
        (3, TypeError, r"names must be a sequence of names or patterns, .*got 3"),
    ],
    ids=str,
)
def test_words_about_names(names: object, error: type, words: str) -> None:
    model = net()
    with pytest.raises(error, match=words), capture_attention(model, names):
        pass
    assert hook_count(model) == 0


@pytest.mark.parametrize("function", [capture_attention, lambda model: complexity(model, (1, 3, 4, 4))])
def test_words_about_models(function) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        function(lambda x: x).__enter__()


def test_the_dictionary_fills_while_the_context_is_open() -> None:
    model = net()
    with capture_attention(model) as attention:
        assert attention == {}
        model(image())
        assert len(attention) == 27
    kept = dict(attention)
    model(image())
    assert all(attention[name] is tensor for name, tensor in kept.items())


def test_hooks_go_after_an_error_too() -> None:
    model = net()
    model.head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="3 channels"), capture_attention(model):
        model(image()[:, :1])
    assert hook_count(model) == 1


def test_what_a_failed_run_left_is_forgotten() -> None:
    block = perturb(DRACB(12, 4))
    x, previous = torch.randn(1, 12, 5, 7), torch.randn(1, 4, 5, 7)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with capture_attention(block) as attention:
        with block.gate.register_forward_pre_hook(fail), pytest.raises(ZeroDivisionError):
            block(x, previous)  # fails after its maps were fused
        block(x)
    assert list(attention) == ["map", "fused", "gate"]
    assert torch.equal(attention["fused"], attention["map"])


def test_each_run_starts_afresh() -> None:
    model, images = net(), [image(), image(9, 5)]
    with capture_attention(model) as attention:
        runs = []
        for each in images:
            model(each)
            runs.append(dict(attention))
    assert list(runs[0]) == list(runs[1])
    for each, run in zip(images, runs, strict=True):
        with capture_attention(model) as alone:
            model(each)
        assert all(torch.equal(run[name], tensor) for name, tensor in alone.items())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_block_called_again_in_one_run_is_numbered(runs: list[int]) -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = WSILBV(8)

        def forward(self, x: Tensor, calls: int) -> Tensor:
            for _ in range(calls):
                x = self.block(x)
            return x

    model, x = Recursive(), torch.rand(1, 8, 4, 4)
    with capture_attention(model, ["block.gate"]) as attention:
        for calls in runs:
            out = model(x, calls)
    assert list(attention) == ["block.gate", *(f"block.gate#{number}" for number in range(2, runs[-1] + 1))]
    for gate in attention.values():
        x = x * gate
    assert torch.equal(x, out)


def test_outside_of_a_run_the_latest_call_counts() -> None:
    chain = perturb(DRACBChain(12, 4, 2))
    features = [torch.randn(1, 12, 5, 7) for _ in range(2)]
    with capture_attention(chain) as attention:
        for _ in range(2):
            _, previous = chain.links[0](features[0])
            refined, _ = chain.links[1](features[1], previous)
        chain(features)
        with pytest.raises(ValueError, match="12 channels"):
            chain([features[0], features[1][:, 1:]])
        features = [x + 1 for x in features]
        _, previous = chain.links[0](features[0])
        refined, _ = chain.links[1](features[1], previous)
    assert len(attention) == 6
    assert torch.equal(attention["links.1.fused"] * attention["links.1.gate"], refined)
    assert not any(tensor.requires_grad for tensor in attention.values())


def test_a_shared_block_goes_by_its_first_name() -> None:
    block = WSILBV(8)
    model = nn.Sequential(block, nn.GELU(), block)
    with capture_attention(model) as attention:
        model(torch.rand(1, 8, 4, 4))
    assert list(attention) == ["0.gate", "0.gate#2"]


def test_a_gate_shared_by_blocks_belongs_to_each() -> None:
    gate, channel = nn.Sigmoid(), LearnableCommunication(4)
    first, second = (DRACB(12, 4, communication=channel, gate_layer=lambda: gate) for _ in range(2))
    x, previous = torch.randn(1, 12, 5, 7), torch.randn(1, 4, 5, 7)
    pair = nn.ModuleList([first, second])
    with capture_attention(pair) as attention:
        outs = [block(x, previous)[0] for block in pair]
        maps = dict(attention)
        first(x)  # now without a predecessor
    assert len(maps) == 6
    for number, out in enumerate(outs):
        assert torch.equal(maps[f"{number}.fused"] * maps[f"{number}.gate"], out)
    assert torch.equal(attention["0.fused"], attention["0.map"])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_every_mode(training: bool, guard) -> None:
    model, x = net().train(training), image()
    with guard():
        with capture_attention(model) as attention:
            out = model(x)
        assert torch.equal(out, model(x))
    assert len(attention) == 27
    assert not any(tensor.requires_grad for tensor in attention.values())
    if out.requires_grad:
        out.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_of_a_folded_network_all_but_the_gates_of_rbwa() -> None:
    with pytest.raises(ValueError, match=r"FoldedRBWA, which has none; capture the network that it was folded from"):
        capture_attention(fold(RBWA(12))).__enter__()
    folded = fold_mren(MREN(2, channels=12, num_blocks=2))
    with capture_attention(folded) as attention:
        folded(image())
    assert "body.0.attention.gate" in attention
    assert not any(name.startswith("reconstruct") for name in attention)


def test_a_block_whose_name_begins_like_a_folded_one_is_captured() -> None:
    net = nn.Sequential(nn.Identity(), RBWA(8), *(nn.Identity() for _ in range(8)), WSILBV(8))
    folded = fold(net)
    with capture_attention(folded) as attention:
        folded(torch.rand(1, 8, 5, 7))
    assert list(attention) == ["10.gate"]


def test_tensors_are_not_copied() -> None:
    block, x = DRACB(12, 4, gate=False), torch.randn(1, 12, 5, 7)
    with capture_attention(block) as attention:
        refined, handed_on = block(x)
    assert attention["map"].data_ptr() == handed_on.data_ptr()
    assert torch.equal(refined, handed_on)


def test_copies_and_files_of_a_network_that_is_captured_are_free_of_it() -> None:
    model, x, file = net(), image(), io.BytesIO()
    with capture_attention(model) as attention:
        during = copy.deepcopy(model)
        torch.save(model, file)
        during(x)
        assert not attention
    torch.save(during, io.BytesIO())
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), model(x))


def test_follows_the_weights_of_a_loaded_or_copied_network() -> None:
    model, other, x = net(), MREN(2, channels=12, num_blocks=2), image()
    with capture_attention(model) as expected:
        model(x)
        during = copy.deepcopy(model)
        during(x + 1)  # its hooks came with it, but it is not the network that was asked for
    copied = copy.deepcopy(model)
    with capture_attention(other) as attention:
        other.load_state_dict(model.state_dict())
        other(x)
    with capture_attention(copied) as of_copy:
        copied(x)
        model(x + 1)
    for name, tensor in expected.items():
        assert torch.equal(attention[name], tensor), name
        assert torch.equal(of_copy[name], tensor), name


def test_windows_of_a_network() -> None:
    model = to_local(net(), image(4, 4))
    with capture_attention(model, ["*attention.gate"]) as attention:
        model(image(16, 20))
    assert [tensor.shape[2:] for tensor in attention.values()] == [(16, 20), (16, 20), (32, 40)]


@pytest.mark.parametrize("which", ["first", "second", "both"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_does_not_count_as_another_call(which: str, use_reentrant: bool) -> None:
    model, x = Twice(perturb(MREB(12))), torch.rand(1, 12, 5, 7, requires_grad=True)
    checkpointed = Twice(model.block)

    def again(x: Tensor) -> Tensor:
        return checkpoint(model.block, x, use_reentrant=use_reentrant)

    first, second = (again if which in (name, "both") else model.block for name in ("first", "second"))
    checkpointed.forward = lambda x: second(first(x))
    with capture_attention(model) as expected:
        model(x)
    with capture_attention(checkpointed) as attention:
        checkpointed(x).sum().backward()
    assert list(attention) == list(expected)
    assert all(torch.equal(attention[name], tensor) for name, tensor in expected.items())


def test_threads_are_kept_apart() -> None:
    model, images = net(), [image(4 + thread, 6) for thread in range(4)]
    expected = []
    for each in images:
        with capture_attention(model) as attention:
            model(each)
        expected.append(attention)
    together = threading.Barrier(len(images), timeout=60)

    def capture(each: Tensor) -> list[dict[str, Tensor]]:
        runs = []
        with capture_attention(model) as attention:
            together.wait()
            for _ in range(5):
                model(each)
                runs.append(dict(attention))
            together.wait()
        return runs

    with ThreadPoolExecutor(len(images)) as pool:
        for runs, alone in zip(pool.map(capture, images), expected, strict=True):
            for run in runs:
                assert list(run) == list(alone)
                assert all(torch.equal(run[name], tensor) for name, tensor in alone.items())
    assert hook_count(model) == 0


def test_threads_that_end_in_any_order_leave_the_compiler_as_it_was() -> None:
    model, x = net(), image(4, 6)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=count)
    second_began, first_ended = threading.Event(), threading.Event()

    def second() -> None:
        with capture_attention(model):
            second_began.set()
            first_ended.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with capture_attention(model):
            later = pool.submit(second)
            second_began.wait(60)
        compiled(x)
        assert graphs == []  # the second one is still open
        first_ended.set()
        later.result()
    compiled(x)
    assert graphs != []


def test_what_another_thread_runs_is_not_captured() -> None:
    model = net()
    with ThreadPoolExecutor(1) as pool, capture_attention(model) as attention:
        pool.submit(model, image(9, 5)).result()
        assert attention == {}
        model(image())
        pool.submit(model, image(9, 5)).result()
        assert attention["body.0.refine.links.0.map"].shape == (1, 3, 6, 8)


@pytest.mark.parametrize("how", ["wrapped", "in place", "inside", "function"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_compiled(how: str, warm: bool) -> None:
    torch.compiler.reset()
    plain, x = nn.Sequential(WSILBV(8), WSILB(8)), torch.rand(1, 8, 5, 7)
    model = copy.deepcopy(plain)
    looked_at = model
    if how == "in place":
        model.compile(backend="eager")
    elif how == "inside":
        model[1] = torch.compile(model[1], backend="eager")
    elif how == "wrapped":
        looked_at = model = torch.compile(model, backend="eager")
    else:
        model = torch.compile(lambda x, model=model: model(x), backend="eager")
    if warm:
        model(x)
    with capture_attention(plain) as expected:
        plain(x)
    with capture_attention(looked_at) as attention:
        out = model(x)
    assert [name.replace("_orig_mod.", "") for name in attention] == list(expected)
    assert all(torch.equal(a, b) for a, b in zip(attention.values(), expected.values(), strict=True))
    torch.testing.assert_close(model(x), out)
    if how != "inside":
        assert list(attention) == list(expected)


def test_the_compiler_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    # Importing it takes seconds, and whoever has compiled something has done so already.
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    block, x = WSILBV(8), torch.rand(1, 8, 5, 7)
    with capture_attention(block) as attention:
        block(x)
    to_local(block, x)
    assert attention
    assert "torch._dynamo" not in sys.modules


# Costs, module by module


def direct(module: nn.Module, cost: dict[str, Cost], name: str) -> tuple[int, int]:
    """What a module costs without its children."""
    children = [cost[f"{name}.{child}".lstrip(".")] for child, _ in module.named_children()]
    own = cost[name]
    return own.parameters - sum(c.parameters for c in children), own.macs - sum(c.macs for c in children)


@each_case
def test_children_add_up(case: Case) -> None:
    module, x = case.build(device="meta"), case.input()
    cost = complexity(module, x.shape)
    assert list(cost.modules) == [name for name, _ in module.named_modules()]
    assert cost.modules[""] == Cost(cost.parameters, cost.macs)
    assert cost.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert cost.output_sizes == (case.output_shape(x.shape),)
    for name, each in module.named_modules():
        parameters, macs = direct(each, cost.modules, name)
        # No child is a convolution with convolutions inside, and nothing is multiplied outside of convolutions.
        assert parameters == sum(parameter.numel() for parameter in each.parameters(recurse=False))
        assert (macs > 0) == isinstance(each, nn.Conv2d), name


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
)
def test_closed_form_of_a_convolution(c_in: int, c_out: int, k: int, height: int, width: int, bias: bool) -> None:
    conv = nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=bias, device="meta")
    cost = complexity(nn.Sequential(conv, nn.GELU()), (2, c_in, height, width))
    assert cost.modules["0"] == Cost(c_in * c_out * k * k + c_out * bias, 2 * c_in * c_out * k * k * height * width)
    assert cost.modules["1"] == Cost(0, 0)
    assert cost.flops == 2 * cost.macs == 2 * cost.modules["0"].macs


def test_modules_of_a_network() -> None:
    cost = complexity(MREN(4, device="meta"), (1, 3, 180, 320))
    pixels = 180 * 320
    assert cost.output_sizes == ((1, 3, 720, 1280),)
    assert cost.modules["head"] == Cost(1_680, 27 * 60 * pixels)
    # The chain is stepped through, never called; its links count in it all the same.
    assert cost.modules["body.2.refine"] == Cost(4 * 915, 4 * 900 * pixels)
    assert cost.modules["body.5"].parameters == 34_035
    assert cost.modules["body"].parameters == 6 * 34_035
    assert cost.modules["reconstruct.1"] == complexity(RBWA(60, 30, device="meta"), (1, 60, 360, 640)).modules[""]


def test_what_a_module_computes_itself_counts_for_it_before_and_after_its_child() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.child, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.first.weight)
            return F.conv2d(self.child(x), self.last.weight)

    modules = complexity(Between(), (1, 4, 5, 6)).modules
    assert {name: cost.macs // 30 for name, cost in modules.items()} == {"": 112, "first": 0, "child": 64, "last": 0}


def test_depthwise_points_count_as_the_convolutions_they_are() -> None:
    cost = complexity(SCACB(60, device="meta"), (1, 60, 6, 8))
    assert cost.modules["spatial.conv1"] == Cost(20, 10 * 6 * 8)


@pytest.mark.parametrize("need_weights", [True, False], ids=["one-call", "fused"])
def test_attention_counts_as_the_matrix_products_it_is(need_weights: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.heads(x, x, x, need_weights=need_weights)[0]

    torch.backends.mha.set_fastpath_enabled(True)  # as it is in a fresh process
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    cost = complexity(Attention(), (1, 10, 16))
    assert cost.macs == 4 * 10 * 16 * 16 + 2 * 10 * 10 * 16, "projections, and maps of 10 x 10"
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


def test_counts_in_several_threads_do_not_mix() -> None:
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.01)
            return x

    model = nn.Sequential(nn.Conv2d(8, 8, 1), Slow(), nn.Conv2d(8, 4, 1))
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with ThreadPoolExecutor(4) as pool:
        costs = list(pool.map(lambda side: complexity(model, (1, 8, side, 1)), range(1, 9)))
    assert [cost.macs for cost in costs] == [(64 + 32) * side for side in range(1, 9)]
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


def test_what_another_thread_runs_is_not_counted() -> None:
    started, finish = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            started.set()
            finish.wait(60)
            return x

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.waiting, self.weight = Waiting(), nn.Parameter(torch.rand(8, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(self.waiting, x)
                started.wait(60)
                out = nn.functional.conv2d(x, self.weight)
                finish.set()
            return out

    cost = complexity(Host(), (1, 8, 4, 4))
    assert (cost.macs, cost.modules["waiting"].macs) == (64 * 16, 0)


def test_recurrent_layers_count_on_the_meta_device() -> None:
    assert complexity(nn.LSTM(4, 8, device="meta"), (3, 1, 4)).macs == 3 * 4 * 8 * (4 + 8)


def test_arguments_that_are_given_as_they_are() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.conv = nn.Embedding(10, 4), nn.Conv2d(4, 8, 1)

        def forward(self, x: Tensor, step: Tensor) -> Tensor:
            return self.conv(x + self.steps(step)[:, :, None, None])

    step = torch.tensor([9])
    for sizes in ([(1, 4, 5, 6), step], {"step": step, "x": (1, 4, 5, 6)}):
        found = complexity(Conditioned(), sizes)
        assert found.macs == 4 * 8 * 5 * 6
        assert sorted(found.input_sizes) == [(1,), (1, 4, 5, 6)]
    found = complexity(Conditioned().to("meta"), [torch.rand(1, 4, 5, 6), step])
    assert found.macs == 4 * 8 * 5 * 6


def test_layers_that_do_not_know_their_size_yet() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 1), nn.LazyBatchNorm2d(), WSILBV(8))
    assert complexity(net, (1, 3, 4, 4)).modules["0"] == Cost(32, 3 * 8 * 16)


def test_what_is_shared_counts_once() -> None:
    block = WSILB(8)
    cost = complexity(nn.Sequential(block, nn.GELU(), block), (1, 8, 4, 4))
    assert list(cost.modules) == ["", "0", "0.shared", "0.gate", "1"]
    assert cost.parameters == 72
    assert cost.macs == 2 * 2 * 64  # twice the block, each time two statistics

    tied = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    tied[1].weight = tied[0].weight
    cost = complexity(tied, (1, 8, 4, 4))
    assert [cost.modules[name].parameters for name in ("", "0", "1")] == [80, 72, 8]


def test_outputs_of_several_tensors() -> None:
    assert complexity(DRACB(12, 4), (2, 12, 6, 8)).output_sizes == ((2, 4, 6, 8),) * 2

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"image": x, "maps": [x[:, :1]], "none": None}

    assert complexity(Named(), (2, 3, 6, 8)).output_sizes == ((2, 3, 6, 8), (2, 1, 6, 8))


def test_inputs_of_several_tensors() -> None:
    block = DRACB(12, 4, communication=GatedCommunication, device="meta")
    cost = complexity(block, [(2, 12, 6, 8), (2, 4, 6, 8)])
    assert cost.input_sizes == ((2, 12, 6, 8), (2, 4, 6, 8))
    assert cost.modules["communication"].macs > 0
    assert cost.macs == cost.modules["distill"].macs + cost.modules["communication"].macs
    assert str(cost).startswith("input (2, 12, 6, 8), (2, 4, 6, 8), output (2, 4, 6, 8), (2, 4, 6, 8)\n")
    assert complexity(block, {"x": (2, 12, 6, 8), "previous": (2, 4, 6, 8)}) == cost


def test_a_list_of_tensors_as_an_input() -> None:
    chain = DRACBChain([12, 8], [4, 6], resample="bilinear", device="meta")
    sizes = [(1, 12, 6, 8), (1, 8, 3, 4)]
    cost = complexity(chain, [sizes])
    assert cost.input_sizes == tuple(sizes)
    assert cost.macs == 12 * 4 * 48 + 8 * 6 * 12 + 4 * 6 * 48, "two convolutions, and one that adapts the map"
    assert complexity(chain, {"features": sizes}) == cost


@pytest.mark.parametrize("size", [5, "1, 8, 4, 4", (1, 8, 4.0, 4), None, [(1, 8, 4, 4), None]], ids=str)
def test_words_about_sizes(size: object) -> None:
    with pytest.raises(TypeError, match=r"input_size must be a shape such as .*, or hold one for each argument, got"):
        complexity(WSILBV(8), size)


class Stateful(nn.Module):
    """What a run in train mode changes: statistics, random numbers, and a count kept in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), WSILBV(8))
        self.register_buffer("runs", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layers(x) + torch.rand(())


@pytest.mark.parametrize("function", [complexity, lambda net, size: to_local(net, torch.zeros(size))])
@pytest.mark.parametrize("channels", [8, 7], ids=["runs", "fails"])
def test_a_network_in_train_mode_is_left_as_it_was(function, channels: int) -> None:
    model = Stateful().train()
    model.layers[1].eval()  # frozen, as in fine-tuning
    model.layers[2].train()
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    buffers, modes = list(model.buffers()), [module.training for module in model.modules()]
    numbers = torch.get_rng_state()
    with nullcontext() if channels == 8 else pytest.raises(RuntimeError, match="8 channels"):
        function(model, (1, channels, 1, 1))
    assert all(now is before for now, before in zip(model.buffers(), buffers, strict=True))
    assert all(torch.equal(buffer, state[name]) for name, buffer in model.named_buffers())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert hook_count(model) == 0


def test_blocks_that_take_a_map() -> None:
    block = MREB(12, takes_map=True, returns_map=True, device="meta")
    cost = complexity(block, [(1, 12, 5, 7), (1, 3, 5, 7)])
    assert cost.output_sizes == ((1, 12, 5, 7), (1, 3, 5, 7))
    assert cost.macs == complexity(MREB(12, device="meta"), (1, 12, 5, 7)).macs


def test_counting_leaves_no_hook_behind() -> None:
    model = net()
    with pytest.raises(ValueError, match="must have 3 channels"):
        complexity(model, (1, 4, 6, 8))
    complexity(model, (1, 3, 6, 8))
    assert hook_count(model) == 0


def test_layers_that_merge_for_inference_are_not_merged() -> None:
    class Merging(nn.Conv2d):
        def train(self, mode: bool = True) -> Merging:
            raise AssertionError("changes the weights")

    assert complexity(nn.Sequential(Merging(8, 8, 1)), (1, 8, 4, 4)).macs == 1024


def test_compiled_networks_cost_the_same() -> None:
    torch.compiler.reset()
    model, x = WSILBV(8), torch.rand(1, 8, 4, 4)
    expected = complexity(model, x.shape)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert complexity(compiled, x.shape) == expected


def test_a_wrapper_for_several_devices_costs_nothing() -> None:
    block = WSILBV(8)
    wrapped = complexity(nn.DataParallel(block), (1, 8, 4, 4))
    assert wrapped.modules["module"] == complexity(block, (1, 8, 4, 4)).modules[""]
    assert (wrapped.macs, wrapped.parameters) == (wrapped.modules["module"].macs, wrapped.modules["module"].parameters)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda net: capture_attention(net).__enter__(), "capture_attention: model"),
        (lambda net: complexity(net, (1, 8, 4, 4)), "complexity: model"),
        (lambda net: complexity(nn.Sequential(net), (1, 8, 4, 4)), r"complexity: model\.0"),
        (lambda net: to_local(net, torch.rand(1, 8, 4, 4)), "to_local: module"),
        (fold, "fold: module"),
    ],
)
def test_torchscript_is_named(function, name: str) -> None:
    script = torch.jit.trace(WSILBV(8), torch.rand(1, 8, 4, 4))
    with pytest.raises(TypeError, match=f"^{name} must consist of Python modules, got TorchScript; pass the"):
        function(script)


def test_costs_are_plain_values() -> None:
    cost, again = (complexity(WSILBV(60), (1, 60, 8, 8)) for _ in range(2))
    assert cost == again
    assert hash(cost) == hash(again)
    assert "modules" not in repr(cost)


def cells(table: str) -> dict[str, tuple[int, ...]]:
    _, header, *rows = table.splitlines()
    assert header.split() == ["module", "parameters", "MACs", "FLOPs"]
    assert len({len(row) for row in (header, *rows)}) == 1, "columns are aligned"
    return {row.split()[0]: tuple(int(cell.replace(",", "")) for cell in row.split()[1:]) for row in rows}


@pytest.mark.parametrize("depth", [1, 2, 3, None])
def test_table(depth: int | None) -> None:
    cost = complexity(net(), (1, 3, 6, 8))
    table = cost.table(depth=depth)
    assert table.startswith("input (1, 3, 6, 8), output (1, 3, 12, 16)\n")
    rows = cells(table)
    assert rows.pop("total") == (cost.parameters, cost.macs, cost.flops)
    assert rows == {
        name: (each.parameters, each.macs, each.flops)
        for name, each in cost.modules.items()
        if name and (each.parameters or each.macs) and (depth is None or name.count(".") < depth)
    }
    assert rows
    assert "body.0.attention.gate" not in rows


def test_the_table_shows_what_has_parameters_alone() -> None:
    cost = complexity(nn.Sequential(nn.PReLU(8), nn.ReLU(), nn.Conv2d(8, 4, 1)), (1, 8, 5, 7))
    assert list(cells(cost.table())) == ["total", "0", "2"]


def test_prints_as_its_table() -> None:
    cost = complexity(net(), (1, 3, 6, 8))
    assert str(cost) == cost.table() == cost.table(depth=2)
    assert "body.1" in cells(str(cost))


@pytest.mark.parametrize(("depth", "error"), [(0, ValueError), (1.5, TypeError), ("all", TypeError)])
def test_words_about_depth(depth: object, error: type) -> None:
    with pytest.raises(error, match=r"Complexity.table: depth must be"):
        complexity(WSILBV(8), (1, 8, 4, 4)).table(depth=depth)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_zeros_are_of_the_type_of_most_parameters(kind: torch.dtype) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.zeros(1, dtype=kind), requires_grad=False)
            self.block = SCACB(12, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x)

    assert complexity(Net(), (1, 12, 8, 8)).macs == complexity(SCACB(12), (1, 12, 8, 8)).macs


def test_lazy_layers_are_given_what_lies_where_they_do() -> None:
    assert complexity(nn.LazyConv2d(4, 1, device="meta"), (1, 3, 8, 8)).macs == 4 * 3 * 64
