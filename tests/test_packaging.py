"""What is installed: the wheel holds the package and nothing else, and needs torch and einops and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import sc_blocks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sc_blocks").rglob("*.py")}
    assert names == modules | {"sc_blocks/py.typed"}


def test_the_wheel_asks_for_torch_and_einops_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        lines = opened.read(metadata).decode().splitlines()
    required = {line.split(": ")[1] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line}
    assert required == {"torch>=2.6", "einops>=0.8"}


def test_the_wheel_works_beside_torch_and_einops_alone(wheel: Path, tmp_path: Path) -> None:
    # In an environment of its own; torch and einops come from this one, and nothing else of it may be imported.
    environment = tmp_path / "empty"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    installed = Path(torch.__file__).parents[1]
    script = f"""
import sys
sys.path.append({str(installed)!r})
import torch, einops
loaded = set(sys.modules)
import sc_blocks
new = {{name.split(".")[0] for name in set(sys.modules) - loaded}} - set(sys.stdlib_module_names)
assert new <= {{"sc_blocks", "torch", "einops"}}, new
assert sc_blocks.__file__.startswith({str(site)!r}), sc_blocks.__file__
print(sc_blocks.SCACB(60)(torch.rand(1, 60, 8, 8)).shape)
"""
    (python,) = environment.glob("bin/python")
    # -I: a PYTHONPATH would put a checkout before the wheel.
    done = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 60, 8, 8])"


def test_examples_without_their_packages_say_what_to_install() -> None:
    script = "import sys; sys.modules['safetensors'] = None; sys.path.insert(0, ''); import examples.mren.model"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert 'python -m pip install -e ".[examples]" installs them' in done.stderr


def test_one_version() -> None:
    # tomllib is not in Python 3.10
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version == sc_blocks.__version__
