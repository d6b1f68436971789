"""The surface of the package: what is imported, what comes with it, and what the state dicts are called."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import sc_blocks
from examples.mren.model import MREN
from tests.blocks import Case, each_case

PACKAGE = Path(sc_blocks.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
#: State-dict keys by constructor call. They are in people's checkpoints: to rename one is to break these.
KEYS = json.loads(Path(__file__).with_name("state_dict_keys.json").read_text())

each_source = pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])


def test_no_other_public_names() -> None:
    public = {name for name in vars(sc_blocks) if not name.startswith("_")}
    modules = {source.stem for source in SOURCES} | {source.parent.name for source in SOURCES}
    assert public - modules == set(sc_blocks.__all__)


@pytest.mark.parametrize("name", sc_blocks.__all__)
def test_every_name_is_documented_and_at_home(name: str) -> None:
    item = getattr(sc_blocks, name)
    assert item.__module__.startswith("sc_blocks.")
    assert ">>>" in item.__doc__


def test_version_is_a_release() -> None:
    assert all(part.isdigit() for part in sc_blocks.__version__.split("."))


def test_import_is_silent_and_light() -> None:
    unwanted = {"PIL", "accelerate", "cv2", "examples", "onnx", "safetensors", "spandrel", "timm"}
    unwanted |= {"torchvision", "tqdm"}
    # torch first, with its own warnings; what follows is ours.
    code = (
        "import sys, warnings, torch, einops\n"
        "before = set(sys.modules)\n"
        "warnings.simplefilter('error')\n"
        "import sc_blocks, sc_blocks.deploy, sc_blocks.introspect, sc_blocks.surgery, sc_blocks.tiling\n"
        f"print(sorted((set(sys.modules) - before) & {unwanted!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@each_source
def test_raises_rather_than_asserts(source: Path) -> None:
    # python -O drops assertions.
    assert not [node.lineno for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Assert)]


@each_source
def test_only_torch_and_einops_are_imported(source: Path) -> None:
    roots = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) <= {"torch", "einops", "sc_blocks"}


@each_source
def test_no_operator_that_converters_lack(source: Path) -> None:
    # Adaptive pooling converts for size 1 only, torch.std and torch.var not everywhere; bicubic has no deterministic
    # gradient.
    nodes = list(ast.walk(ast.parse(source.read_text())))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not {name for name in names if "adaptive" in name.lower() or name in {"std", "var", "std_mean", "var_mean"}}
    assert "bicubic" not in {node.value for node in nodes if isinstance(node, ast.Constant)}


@each_case
def test_training_step_is_deterministic(case: Case) -> None:
    def step() -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = case.build()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        x = case.input()
        F.l1_loss(module(x), torch.zeros(case.output_shape(x.shape))).backward()
        optimizer.step()
        return [parameter.detach() for parameter in module.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = step(), step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("call", KEYS)
def test_state_dict_keys(call: str) -> None:
    assert list(eval(call, {**vars(sc_blocks), "MREN": MREN}).state_dict()) == KEYS[call]


def test_state_dict_keys_of_every_block_are_frozen() -> None:
    classes = {name for name in sc_blocks.__all__ if isinstance(getattr(sc_blocks, name), type)}
    assert classes <= {call.split("(")[0] for call in KEYS}
