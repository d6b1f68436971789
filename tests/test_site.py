"""Parts of the site that are made from committed files: what is there is on the page, with its own numbers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from docs import gallery, models
from examples.mren.model import MREN, VARIANTS, WEIGHTS, load_mren, save_weights

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs" / "_ext"))

FILES = sorted(WEIGHTS.glob("*.safetensors"))


@pytest.fixture(scope="module")
def page_of_models() -> str:
    return models.text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_weight_file_is_on_the_page_of_models(file: Path, page_of_models: str) -> None:
    weights = models.Weights(file)
    title = re.escape(weights.title)
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^##|\Z)", page_of_models, re.DOTALL | re.MULTILINE)
    net = eval(weights.call, {"load_mren": load_mren})
    assert f"| parameters | {sum(parameter.numel() for parameter in net.parameters()):,} |" in section
    assert hashlib.sha256(file.read_bytes()).hexdigest() in section
    assert f"<../examples/mren/weights/{file.name}>" in section
    assert weights.images, f"weights/README.md has no section {file.stem} with a row on its images"


def test_scores_on_the_page_of_models_are_means_of_the_committed_ones(page_of_models: str) -> None:
    rows = [line.split(",") for line in (WEIGHTS / "mren_x4.scores.csv").read_text().splitlines()]
    own = [row for row in rows if row[0] == "Set5" and row[2] == "mren"]
    psnr, ssim = (sum(float(row[column]) for row in own) / len(own) for column in (3, 4))
    section = page_of_models.partition("## MREN ×4\n")[2].partition("\n## ")[0]
    assert re.search(rf"^\| Set5 \| {psnr:.2f} \| [\d.]+ \| {ssim:.4f} \|", section, re.MULTILINE)


def test_a_new_weight_file_needs_no_editing(tmp_path: Path) -> None:
    config = {"scale": 2, **VARIANTS["mren_s"]}
    save_weights(MREN(**config), tmp_path / "mren_s_x2.safetensors", config)
    shutil.copy(WEIGHTS / "README.md", tmp_path)
    text = models.text(tmp_path)
    assert "## MREN-S ×2\n" in text
    assert '`load_mren(2, "mren_s")`' in text


def test_cards_have_the_committed_counts() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "counts.json").read_text())["suites"]["counts"]["rows"]
    counted = {row["name"]: f"{row['parameters']:,} parameters" for row in rows}
    cards = dict(re.findall(r"\{grid-item-card\} (\S+)\n(.*?)^:::::$", gallery.text(), re.DOTALL | re.MULTILINE))
    assert len(cards) == len(gallery.CARDS)
    for card in gallery.CARDS:
        assert counted[card.counted] in cards[card.title]


def test_a_difference_within_its_interval_is_not_called_significant(tmp_path: Path) -> None:
    head = "blocks,seed,parameters,steps,batch_size,patch_size,minutes,dataset,psnr\n"
    near = ["29.10", "29.30", "29.21", "29.19"]
    far = ["29.10", "29.11", "29.40", "29.41"]
    for scores, difference, outcome in ((near, "0.00", "not significant"), (far, "+0.30", "significant")):
        lines = [
            f"{name},{seed},1,1,1,1,1,Set5,{scores[2 * row + seed]}"
            for row, name in enumerate(("plain", "a"))
            for seed in (0, 1)
        ]
        (tmp_path / "runs.csv").write_text(head + "\n".join(lines) + "\n")
        verdict = gallery.compared(tmp_path / "runs.csv", "plain", "a", "A network", "nothing")()
        assert re.findall(r"\S+(?= ±)|(?:not )?significant", verdict) == [difference, outcome], verdict


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("[!i]*.md")), ids=lambda page: page.stem)
def test_a_notebook_has_the_code_of_its_page(page: Path) -> None:
    notebooks = pytest.importorskip("notebooks", reason="jupytext comes with the docs extra")
    text = page.read_text()
    cells = json.loads(notebooks.as_notebook(text))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shown = re.findall(r"^```(python|bash|sh)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert [cell.removeprefix("%%bash\n") for cell in code] == [block.strip("\n") for _, block in shown]
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "{" not in re.sub("`[^`]*`", "", prose)  # no markup that notebooks do not know
    assert ".md)" not in prose


def test_pre_commit_and_the_dev_extra_have_one_ruff() -> None:
    (pinned,) = re.findall(r'"ruff==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert f"rev: v{pinned}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
