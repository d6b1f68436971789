"""What the documentation promises: its code runs, its numbers are what the library counts, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sc_blocks
from examples.mren.model import MREN
from sc_blocks.introspect import complexity

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
)


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page, "python")], ids=str)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path) -> None:
    namespace: dict[str, object] = {}
    for block in code_blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), link


def test_the_table_of_costs_is_what_is_counted() -> None:
    rows = re.findall(
        r"^\| (`\w+\(.*?\)`|MREN ×4) \|.*\| ([\d,]+) \| ([\d.]+) G \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert len(rows) == 7
    for name, parameters, macs in rows:
        with torch.device("meta"):
            if name == "MREN ×4":
                model: nn.Module = MREN(4)
                size = (1, 3, 180, 320)
            else:
                model = eval(name.strip("`"), vars(sc_blocks))
                size = (1, 60, 180, 320)
        cost = complexity(model, size)
        assert (f"{cost.parameters:,}", f"{cost.macs / 1e9:.3f}") == (parameters, macs), name


def test_readme_has_the_commands_that_ci_runs() -> None:
    commands = [line for block in code_blocks(Path("README.md"), "bash") for line in block.splitlines()]
    for ending in ("&& .venv/bin/python -m examples.mren.upscale", "&& .venv/bin/python -m pytest"):
        (command,) = (line for line in commands if line.endswith(ending))
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
        assert ending in (ROOT / ".ci" / "run").read_text()


def options_of(command: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-m", f"examples.mren.{command}", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert shown.returncode == 0, shown.stderr
    return set(re.findall(r"(?<![\w-])--[\w-]+", shown.stdout))


@pytest.mark.parametrize("command", ["train", "evaluate", "upscale", "compare", "ablate", "attention", "report"])
def test_every_option_in_the_docs_exists(command: str) -> None:
    options = options_of(command)
    if command == "ablate":  # hands on to the training what is not its own
        options |= options_of("train")
    for page in PAGES:
        for line in re.findall(rf"examples\.mren\.{command}([^\n`]*)", (ROOT / page).read_text()):
            assert set(re.findall(r"(?<!\S)(--[\w-]+)", line)) <= options, (page, line)
