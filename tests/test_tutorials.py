"""The tutorials that have commands in them: run as they stand, in a folder of their own, from top to bottom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.mren.model import MREN, save_weights
from tests.test_figures import check_readable
from tests.test_readme import ELSEWHERE, ROOT, blocks_with_output, run_python

TUTORIALS = sorted(page for page in ELSEWHERE if page.parent.name == "tutorials")


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    small = tmp_path / "weights" / "mren_x4.safetensors"
    small.parent.mkdir()
    config = {"scale": 4, "channels": 12, "num_blocks": 1}
    save_weights(MREN(**config), small, config)
    namespace: dict[str, object] = {}
    for language, code, printed in blocks_with_output(page):
        if language == "python":
            run_python(code, printed, namespace, page)
            continue
        command = code.replace("python -m", f"{sys.executable} -m")
        if "mren.export" in command:  # of a small network: the whole one takes minutes
            command = command.replace("--scale 4", f"--scale 4 --weights {small}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    if page.stem == "train":
        written = {path.name for path in (tmp_path / "runs" / "rehearsal").iterdir()}
        assert written == {"mren_x2.safetensors", "log.csv", "run.json", "checkpoints"}
        assert all(name in (ROOT / page).read_text() for name in written)
        assert (tmp_path / "chelsea_x2.png").is_file()
        assert (tmp_path / "scores.csv").is_file()


PICTURES = ROOT / "docs" / "figures" / "tutorials"
FIGURES = sorted(PICTURES.glob("*.svg"))


@pytest.mark.slow
def test_the_script_writes_the_committed_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "docs.figures.tutorials.draw", "--figures", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert written == {file.name: file.read_bytes() for file in FIGURES}, "run python -m docs.figures.tutorials.draw"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_is_readable(figure: Path) -> None:
    check_readable(figure)


def test_the_log_that_the_training_tutorial_quotes() -> None:
    rows = [line.split(",") for line in (ROOT / "examples/mren/weights/mren_x4.log.csv").read_text().splitlines()[1:]]
    measured = {f"{int(row[0]):,}": f"{float(row[2]):.2f}" for row in rows}
    lines = (ROOT / "docs/tutorials/train.md").read_text().splitlines()
    steps, values = (
        next(line for line in lines if line.startswith(f"| {name} |")).strip("| ").split(" | ")[1:]
        for name in ("step", "PSNR")
    )
    assert values == [measured[step] for step in steps]
