"""Write the tables and plots of the documentation from the committed results.

``python -m examples.mren.report`` reads ``weights/*.scores.csv``, ``weights/*.log.csv``, and from ``results/`` the
paper's table 5 and the runs of the ablations. It writes ``docs/results/*.md``, ``training.svg``, and the tables of the
shipped weights in ``README.md`` and ``weights/README.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from matplotlib import colormaps

from examples.compare.tables import comparison_table, read_runs
from examples.markdown import table, with_part
from examples.mren.ablate import TABLES
from examples.mren.arguments import command_parser
from examples.mren.cli import run_command
from examples.mren.files import sha256, write_text
from examples.mren.model import WEIGHTS
from examples.mren.plots import svg_plot
from examples.mren.shipped import DATASETS, Scores, scored, shipped
from examples.records import read_rows

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parents[1] / "docs" / "results"
MEASURES = ("PSNR, dB", "SSIM")
# The pages of the ablations: for each the table, and the file of its runs. Files differ in the budget.
ABLATIONS = {
    "ablation_1.md": ("1", "depth.csv"),
    **{f"ablation_{name}.md": (name, "parts.csv") for name in ("2", "3", "4", "exchange", "communication")},
    "ablation_beyond.md": ("beyond", "beyond.csv"),
    "ablation_recipe.md": ("recipe", "recipe.csv"),
    "ablation_init.md": ("init", "init.csv"),
    "ablation_trunk.md": ("trunk", "trunk.csv"),
    "ablation_trunk_rfdb.md": ("trunk", "trunk_rfdb.csv"),  # separate: its seeds differ far more
    "ablation_trunk_steps.md": ("trunk", "trunk_steps.csv"),
}
README, CARD = HERE.parents[1] / "README.md", WEIGHTS / "README.md"
COMMAND = "examples.mren.report"


def table5(scale: int, folder: Path = WEIGHTS) -> str:
    """The paper's table 5 for one scale, with bicubic and our weights as scored here."""
    ours = {weights.architecture: weights for weights in scored(scale, folder) if not weights.kind}
    rows = [("bicubic, scored here", _cells(next(iter(ours.values())).bicubic), "")]
    for row in published(scale):
        name = f"{row['method']} ({row['year']})" if row["year"] else f"**{row['method']}, as the paper reports it**"
        parameters = f"{row['kiloparameters']}K" if row["kiloparameters"] else ""
        rows.append((name, _published_cells(row), parameters))
        if row["method"] in ours:
            rows.append((f"**{row['method']}, our weights**", _cells(ours[row["method"]].scores), parameters))
        if row["method"] == "MREN" and "MREN-S" in ours:  # not in the paper: MREN's trunk with a narrow tail
            narrow = ours["MREN-S"]
            count = f"{narrow.parameters / 1000:.0f}K"
            rows.append(("**MREN-S, ours, not the paper's**", _cells(narrow.scores), count))
    # The parameters come last, so that the scores are visible on a narrow page.
    head = ["", *(title for name in DATASETS for title in (f"{name}, dB", "SSIM")), "parameters"]
    return table(head, [[name, *chain.from_iterable(cells), parameters] for name, cells, parameters in rows])


def published(scale: int) -> list[dict[str, str]]:
    """The rows of the paper's table 5 for one scale."""
    return [row for row in read_rows(RESULTS / "table5.csv") if row["scale"] == str(scale)]


def scores_table(measure: str, folder: Path = WEIGHTS) -> str:
    """The scores of the shipped weights by one of ``MEASURES``, with those of bicubic and the paper."""
    rows = []
    for scale in shipped_scales(folder):
        found = scored(scale, folder)
        rows.append((f"bicubic ×{scale}", _cells(found[0].bicubic)))
        for weights in found:
            rows.append((f"**{weights.title}{'' if weights.kind else ', these weights'}**", _cells(weights.scores)))
            if not weights.kind:
                paper = [_published_cells(row) for row in published(scale) if row["method"] == weights.architecture]
                rows += [(f"{weights.network}, as the paper reports it", cells) for cells in paper]
    which = MEASURES.index(measure)
    lines = [[name, *(cell[which] for cell in cells)] for name, cells in rows]
    return table([measure, *DATASETS], lines, text=(measure,))


def files_table(folder: Path = WEIGHTS) -> str:
    """A table of the weight files with their checksums."""
    rows = [
        [f"`{weights.file.name}`", weights.title, f"{weights.parameters:,}", f"`{sha256(weights.file)}`"]
        for weights in shipped(folder)
    ]
    return table(["file", "network", "parameters", "SHA-256"], rows, text=("file", "network", "SHA-256"))


def pages() -> dict[Path, str]:
    """The text of pages that are generated in part, with those parts regenerated."""
    psnr, ssim = map(scores_table, MEASURES)
    parts = {README: psnr, CARD: f"{files_table()}\n{psnr}\n{ssim}"}
    return {page: with_part(page.read_text(encoding="utf-8"), COMMAND, part) for page, part in parts.items()}


def _cells(scores: Scores) -> list[tuple[str, str]]:
    """Table cells with PSNR and SSIM on each test set; empty for sets that were not scored."""
    return [(f"{scores[d][0]:.2f}", f"{scores[d][1]:.4f}") if d in scores else ("", "") for d in DATASETS]


def _published_cells(row: dict[str, str]) -> list[tuple[str, str]]:
    """Table cells with PSNR and SSIM on each test set from a row of the paper's table 5."""
    return [(row[f"{d}_psnr"], row[f"{d}_ssim"]) for d in DATASETS]


def draw_curves(logs: dict[str, Path], target: Path) -> None:
    """Draw the change of the PSNR on the held-out images since the first validation, a line for each log.

    Args:
        logs: ``log.csv`` files by the name to print.
        target: SVG file to write.
    """
    with svg_plot(target) as axes:
        for number, (name, file) in enumerate(logs.items()):
            rows = read_rows(file)
            psnr = [float(row["psnr"]) for row in rows]
            axes.plot(
                [float(row["step"]) for row in rows],
                [value - psnr[0] for value in psnr],
                marker=".",
                color=colormaps["tab20"]((2 * number + number // 10) % 20),  # the dark ones first
                label=name,
            )
        axes.set_xlabel("step")
        axes.set_ylabel("PSNR on held-out images since the\nfirst validation, dB")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def shipped_scales(folder: Path = WEIGHTS) -> list[int]:
    """The scales for which there are scored weights."""
    return sorted({weights.scale for weights in shipped(folder) if weights.scores})


def tables() -> dict[str, str]:
    """The text of every generated Markdown file, by file name."""
    texts = {f"table5_x{scale}.md": table5(scale) for scale in shipped_scales()}
    # A table of all six sets would be too wide: images held out from training have their own.
    for page, name, tabulate in (
        ("training_images", "images.csv", comparison_table),  # its rows do not differ in options
        ("ablation_training", "training.csv", TABLES["training"].tabulate),
    ):
        runs = read_runs(RESULTS / name)
        texts[f"{page}.md"] = tabulate([run for run in runs if run.dataset in DATASETS])
        texts[f"{page}_kept.md"] = tabulate([run for run in runs if run.dataset not in DATASETS])
    return texts | {page: TABLES[name].tabulate(read_runs(RESULTS / file)) for page, (name, file) in ABLATIONS.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("examples.mren.report", __doc__)
    return run_command(run, parser.parse_args, argv)


def run(_: argparse.Namespace) -> None:
    """Run the command."""
    for name, text in tables().items():
        write_text(DOCS / name, text)
        print(DOCS / name)
    for page, text in pages().items():
        write_text(page, text)
        print(page)
    draw_curves({weights.title: weights.log for weights in shipped()}, DOCS / "training.svg")


if __name__ == "__main__":
    sys.exit(main())
