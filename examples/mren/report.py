"""Write the tables and plots of the documentation from the committed results.

Run as ``python -m examples.mren.report``: it reads ``weights/*.scores.csv`` and ``weights/*.log.csv``, and in
``results/`` the paper's table 5, the runs of the ablations and the logs of the recipes, and writes
``docs/results/*.md`` and ``*.svg``.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.mren.ablate import TABLES, read_runs, tabulate
from examples.mren.cli import run_command
from examples.mren.files import write_text
from examples.mren.model import WEIGHTS
from examples.mren.plots import svg_plot

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parents[1] / "docs" / "results"
DATASETS = ("Set5", "Set14", "B100", "Urban100")
# Tables that were made at another budget than the rest: the files of their runs.
OTHER_BUDGETS = {"beyond": "beyond.csv", "recipe": "recipe.csv"}
NETWORKS = {"mren": ("MREN", 60), "mren_l": ("MREN-L", 84)}


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def scored(scale: int) -> dict[str, dict[str, tuple[float, float]]]:
    """What the committed scores of a scale say: method, then test set, then mean PSNR and SSIM."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for file in sorted(WEIGHTS.glob(f"*_x{scale}.scores.csv")):
        for row in _read(file):
            if row["method"] in ("bicubic", file.name.removesuffix(f"_x{scale}.scores.csv")):
                scores = found.setdefault(row["method"], {}).setdefault(row["dataset"], [])
                scores.append((float(row["psnr"]), float(row["ssim"])))
    return {
        method: {
            dataset: (sum(psnr for psnr, _ in pairs) / len(pairs), sum(ssim for _, ssim in pairs) / len(pairs))
            for dataset, pairs in datasets.items()
        }
        for method, datasets in found.items()
    }


def table5(scale: int) -> str:
    """The paper's table 5 for one scale, with bicubic and our weights as scored here."""
    ours = scored(scale)
    published = [row for row in _read(RESULTS / "table5.csv") if row["scale"] == str(scale)]
    lines = [["", "parameters", *DATASETS], ["---", "---:", *["---"] * len(DATASETS)]]
    lines.append(["bicubic, scored here", "", *_cells(ours["bicubic"])])
    for row in published:
        name = f"{row['method']} ({row['year']})" if row["year"] else f"**{row['method']}, as the paper reports it**"
        parameters = f"{row['kiloparameters']}K" if row["kiloparameters"] else ""
        lines.append([name, parameters, *(f"{row[f'{d}_psnr']} / {row[f'{d}_ssim']}" for d in DATASETS)])
        variant = {title: key for key, (title, _) in NETWORKS.items()}.get(row["method"])
        if variant in ours:
            lines.append([f"**{row['method']}, our weights**", parameters, *_cells(ours[variant])])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cells(scores: dict[str, tuple[float, float]]) -> list[str]:
    return [f"{scores[d][0]:.2f} / {scores[d][1]:.4f}" if d in scores else "" for d in DATASETS]


def draw_curves(logs: dict[str, Path], target: Path, *, over: str) -> None:
    """PSNR on the held-out images, over steps or hours, a line for each log.

    Args:
        logs: ``log.csv`` files by the name to print.
        target: SVG file to write.
        over: ``"step"`` or ``"minutes"``.
    """
    with svg_plot(target) as axes:
        for name, file in logs.items():
            rows = _read(file)
            steps = [float(row["step"]) if over == "step" else float(row["seconds"]) / 60 for row in rows]
            axes.plot(steps, [float(row["psnr"]) for row in rows], marker=".", label=name)
        axes.set_xlabel("step" if over == "step" else "minutes of training")
        axes.set_ylabel("PSNR on held-out images, dB")


def tables() -> dict[str, str]:
    """Every generated Markdown file: its name and its text."""
    scales = sorted({int(file.name.partition("_x")[2][0]) for file in WEIGHTS.glob("*.scores.csv")})
    texts = {f"table5_x{scale}.md": table5(scale) for scale in scales}
    for name, table in TABLES.items():
        file = RESULTS / OTHER_BUDGETS.get(name, "ablation.csv")
        runs = read_runs(file) if file.exists() else []
        trained = {run.variant for run in runs}
        # A table of which only the reference was trained, for another one, says nothing.
        if len(trained & {variant.key for variant in table.variants}) > 1:
            texts[f"ablation_{name}.md"] = tabulate(table, runs)
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.mren.report", description=__doc__.partition("\n")[0])
    return run_command(run, parser.parse_args, argv)


def run(_: argparse.Namespace) -> None:
    """Run the command."""
    for name, text in tables().items():
        write_text(DOCS / name, text)
        print(DOCS / name)
    logs = {
        f"{NETWORKS[file.name.partition('_x')[0]][0]} ×{file.name.partition('_x')[2][0]}": file
        for file in sorted(WEIGHTS.glob("*.log.csv"))
    }
    draw_curves(logs, DOCS / "training.svg", over="step")
    recipes = {file.name.removesuffix(".log.csv"): file for file in sorted(RESULTS.glob("*.log.csv"))}
    if recipes:
        draw_curves(recipes, DOCS / "recipes.svg", over="minutes")


if __name__ == "__main__":
    sys.exit(main())
