"""Compiled, exported and ONNX forms compute what the blocks do, at sizes other than those they were made at."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import Dim

from sc_blocks import WSILBV
from tests.blocks import CASES, COMPOSED, Case, assert_close, cases, each_case_but

# No side equals a number of channels: the compiler takes equal sizes of the first call for one and the same size.
SIZES = [(2, 18, 26), (3, 22, 16), (5, 28, 34)]
#: Batch, height and width are free; a size that got fixed on the way is an error.
DYNAMIC = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)

#: Cases that are unlike each other, for what takes long.
some_cases = each_case_but({case.name for case in CASES} - {"scacb", "wsilbv", "rbwa-x2"})


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


class Counting:
    """A compiler backend that counts how often it is called and runs the graph as it is."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
        self.graphs += 1
        return graph.forward


@some_cases
def test_compiles_to_one_graph(case: Case) -> None:
    module, backend = case.build(), Counting()
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend=backend)
    x = case.input()
    assert_close(compiled(x), module(x))
    assert backend.graphs == 1


@each_case_but(COMPOSED)
def test_one_graph_serves_all_sizes(case: Case) -> None:
    module, backend = case.build(), Counting()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for size in SIZES:
        x = case.input(*size)
        assert_close(compiled(x), module(x))
    assert backend.graphs == 1


@cases("scacb", "chain-bilinear", "wsilbv", "wsilbv-local", "rbwa-x1.5", "mreb-gated", "mren-x4")
def test_compiled_gradients(case: Case) -> None:
    module, x = case.build(dtype=torch.float64), case.input(dtype=torch.float64).requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    (actual,) = torch.autograd.grad(compiled(x).square().sum(), x)
    assert_close(actual, expected)


@pytest.mark.slow
@cases("scacb", "chain-bilinear", "wsilbv-local", "rbwa-x1.5", "mreb", "mren-x4")
def test_inductor(case: Case) -> None:
    module, x = case.build(), case.input()
    out = torch.compile(module, fullgraph=True)(x)
    torch.testing.assert_close(out, module(x), rtol=1e-4, atol=1e-4)


@each_case_but(COMPOSED)
def test_exports_for_any_batch_and_size(case: Case) -> None:
    module = case.build().eval()
    exported = torch.export.export(module, (case.input(*SIZES[0]),), dynamic_shapes=DYNAMIC).module()
    for size in SIZES[1:]:
        x = case.input(*size)
        assert_close(exported(x), module(x))


# ONNX

#: What any inference engine has. Older exporters write Gelu as Div and Erf.
PLAIN = {
    "Add",
    "Concat",
    "Conv",
    "Div",
    "Erf",
    "Gelu",
    "Mul",
    "Pow",
    "ReduceMax",
    "ReduceMean",
    "Sigmoid",
    "Sqrt",
    "Sub",
}
#: From the cases themselves: parts of the input, and a gate of their own.
OF_THE_TEST = {"Slice", "Tanh"}
#: Where the graph must compute a size: resizing to a given size or by a broken factor, and windows cut at the map's.
SIZED = ("adapted", "bilinear", "nearest", "x1.5", "mren-x3", "local")
SIZE = {"Cast", "Clip", "Gather", "Max", "Min", "Pad", "Reshape", "Shape", "Squeeze", "Unsqueeze"}


@some_cases
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_at_any_size(case: Case, tmp_path) -> None:
    module, file = case.build().eval(), tmp_path / "block.onnx"
    torch.onnx.export(module, (case.input(*SIZES[0]),), file, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)

    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    resizes = {"Resize"} if case.name.startswith(("rbwa", "mren")) else set()
    sizes = SIZE | {"Resize"} if any(part in case.name for part in SIZED) else set()
    assert {node.op_type for node in model.graph.node} <= PLAIN | OF_THE_TEST | resizes | sizes

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = [node.name for node in session.get_inputs()]
    for size in SIZES:
        x = case.input(*size)
        (out,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), module(x).detach(), rtol=1e-4, atol=1e-4)


COVERED = [(5, 20), (20, 5), (5, 5), (9, 20), (20, 11), (9, 11)]  # by a window of 9 x 11, in one direction or both
LARGER = [(10, 12), (17, 21), (40, 13)]


def test_exported_windows_refuse_a_map_that_they_cover() -> None:
    block = WSILBV(8, local=(9, 11)).eval()
    exported = torch.export.export(block, (torch.rand(2, 8, 24, 31),), dynamic_shapes=DYNAMIC).module()
    for size in LARGER:
        x = torch.rand(1, 8, *size)
        assert_close(exported(x), block(x))
    for size in COVERED:
        with pytest.raises((AssertionError, RuntimeError)):  # its type depends on the version of torch
            exported(torch.rand(1, 8, *size))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_windows_in_onnx_fail_rather_than_be_wrong(tmp_path) -> None:
    block, file = WSILBV(8, local=(9, 11)).eval(), tmp_path / "block.onnx"
    torch.onnx.export(block, (torch.rand(2, 8, 24, 31),), file, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = [node.name for node in session.get_inputs()]
    failed = 0
    for size in [*LARGER, *COVERED]:
        x = torch.rand(1, 8, *size)
        try:
            (out,) = session.run(None, {name: x.numpy()})
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            failed += 1
            assert size in COVERED
        else:
            torch.testing.assert_close(torch.from_numpy(out), block(x).detach(), rtol=1e-4, atol=1e-4)
    assert failed
