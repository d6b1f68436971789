"""Repeat the paper's ablations at one equal budget, with several seeds, and say what the seeds alone make of it.

    python -m examples.mren.ablate --table 3 4 --data FOLDER --test Set5 --seeds 2 --steps 800 -o runs/ablation

trains every row of the tables, scores it, and writes ``runs.csv``, a line for each run and test set, and
``table_3.md``, ``table_4.md``. Options that are not listed here go to ``python -m examples.mren.train``. A run that is
there already is not trained again, one that was cut off is resumed; rows that tables share are trained once.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.mren.checkpoint import checkpoints
from examples.mren.cli import run_command
from examples.mren.comparison import Line, check_budget, read_csv, tabulate_lines, to_csv
from examples.mren.data import list_images
from examples.mren.evaluate import evaluate, mean_score, network_upscaler
from examples.mren.files import write_text
from examples.mren.model import MREN, STAGES, load_mren, pick_device, weights_path

ROOT = Path(__file__).parents[2]
# What all runs of a comparison must share, and what all but those that are about it.
BUDGET = ("scale", "steps", "minutes", "batch_size", "patch_size", "share", "images", "held_out", "files", "precision")
RECIPE = ("lr", "final_lr", "schedule", "loss", "clip_grad_norm", "ema_decay", "init")


@dataclass(frozen=True)
class Variant:
    """A row of a table."""

    name: str
    config: dict[str, Any]
    """Arguments of :class:`~examples.mren.model.MREN` that differ from its defaults."""
    paper: float | None = None
    """PSNR on Set5 at ×4 that the paper prints."""
    options: dict[str, str | Path] = dataclasses.field(default_factory=dict)
    """Options of :mod:`~examples.mren.train` that differ from those of the other rows."""

    @property
    def key(self) -> str:
        """Name of the folder of its runs."""
        changed = {**self.config, **self.options}
        values = {name: value.stem if isinstance(value, Path) else value for name, value in changed.items()}
        return ",".join(f"{name}={value}" for name, value in sorted(values.items())) or "default"


@dataclass(frozen=True)
class Table:
    """Variants to be compared; the first is what the others are held against."""

    title: str
    variants: tuple[Variant, ...]


def _weight(value: float, paper: float) -> Variant:
    return Variant(f"W = {value}", {} if value == 0.2 else {"communication": value}, paper)


TABLES = {
    "1": Table(
        "Number of MREBs (table 1)",
        tuple(
            Variant(f"{count} MREBs", {} if count == 6 else {"num_blocks": count}, paper)
            for count, paper in ((6, 32.24), (3, 32.06), (4, 32.12), (5, 32.16), (7, 32.20), (8, 32.21))
        ),
    ),
    "2": Table(
        "Weight of the preceding map (table 2)",
        (
            _weight(0.2, 32.24),
            _weight(0, 32.20),
            _weight(0.1, 32.21),
            _weight(0.3, 32.20),
            _weight(0.4, 32.18),
            _weight(0.5, 32.23),
            _weight(0.6, 32.21),
            _weight(0.7, 32.14),
            _weight(0.8, 32.19),
            _weight(0.9, 32.20),
            _weight(1, 32.18),
        ),
    ),
    "3": Table(
        "Parts of SCACB (table 3)",
        (
            Variant("both parts, exchanging (SCACB)", {}, 32.24),
            Variant("spatial part only (OSA)", {"parts": "spatial"}, 32.15),
            Variant("channel part only (OCA)", {"parts": "channel"}, 32.22),
            Variant("both parts, no exchange (SCNC)", {"exchange": None}, 32.19),
        ),
    ),
    "4": Table(
        "Parts of DRACB (table 4)",
        (
            Variant("distillation, communication and gate (DRACB)", {}, 32.24),
            Variant("distillation", {"communication": 0, "gate": False}, 32.16),
            Variant("distillation and gate", {"communication": 0}, 32.20),
            Variant("distillation and communication", {"gate": False}, 32.15),
        ),
    ),
    "exchange": Table(
        "Where the parts of SCACB exchange their levels",
        (
            Variant("at the outputs (default)", {}),
            Variant("at the inputs", {"exchange": "inputs"}),
            Variant("nowhere", {"exchange": None}),
        ),
    ),
    "communication": Table(
        "What reaches a DRACB from the one before",
        (
            Variant("0.2 of its map (default)", {}),
            Variant("nothing", {"communication": 0}),
            Variant("all of its map", {"communication": 1}),
            Variant("a learned share", {"communication": "learnable"}),
            Variant("a share decided from both maps", {"communication": "gated"}),
        ),
    ),
    "beyond": Table(
        "Channels that are not the paper's",
        (
            Variant("0.2 of the map (the paper's)", {}),
            Variant("a learned share", {"communication": "learnable"}),
            Variant("a share decided from both maps", {"communication": "gated"}),
            Variant("0.2 of the map, one chain through all MREBs", {"chain": "network"}),
        ),
    ),
    "recipe": Table(
        "How it is trained",
        (
            Variant("one cycle up to 1e-3, averaged weights", {}),
            Variant("one cycle up to 1e-3", {}, options={"ema-decay": "0"}),
            Variant("the paper's: 5e-4, halved four times", {}, options={"recipe": "paper"}),
            Variant("averaged, begun from the weights of ×2", {}, options={"init": weights_path(2)}),
        ),
    ),
}


@dataclass(frozen=True)
class Run:
    """The score of one trained network on one set of test images."""

    variant: str
    """See :attr:`Variant.key`."""
    seed: int
    parameters: int
    steps: int
    batch_size: int
    patch_size: int
    minutes: float
    dataset: str
    psnr: float
    ssim: float


def read_runs(file: Path) -> list[Run]:
    """The lines of a ``runs.csv``."""
    return read_csv(file, Run)


def tabulate(table: Table, runs: Sequence[Run]) -> str:
    """A table in Markdown: the paper's figure, ours, parameters, difference, and what the spread of the seeds means.

    See :func:`~examples.mren.comparison.tabulate_lines`.
    """
    chosen = [
        (variant, own) for variant in table.variants if (own := [run for run in runs if run.variant == variant.key])
    ]
    if not chosen:
        raise ValueError(f"no runs of {table.title!r}.")
    published = any(variant.paper is not None for variant, _ in chosen)
    lines = []
    for variant, own in chosen:
        cells = [variant.name, f"{own[0].parameters:,}"]
        if published:
            cells.append("" if variant.paper is None else f"{variant.paper:.2f}")
        scores: dict[str, list[float]] = {}
        for run in sorted(own, key=lambda run: run.seed):
            scores.setdefault(run.dataset, []).append(run.psnr)
        lines.append(Line(tuple(cells), scores))
    return tabulate_lines(["", "parameters", *(["paper, Set5"] if published else [])], lines)


def _train(variant: Variant, seed: int, folder: Path, args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "examples.mren.train", "--data", *map(str, args.data), "-o", str(folder)]
    command += f"--scale {args.scale} --seed {seed} --config".split()
    command += [json.dumps(variant.config), *args.passed_on]
    for name, value in variant.options.items():
        command += [f"--{name}", str(value)]
    if checkpoints(folder):
        command.append("--resume")
    print(f"{variant.key}, seed {seed}: {shlex.join(command[1:])}", flush=True)
    if not args.dry_run:
        try:
            subprocess.run(command, check=True, cwd=ROOT)
        except subprocess.CalledProcessError:
            raise ValueError("training failed, see above; the same command goes on from here.") from None


def _trained(folder: Path) -> bool:
    if not (folder / "log.csv").exists():
        return False
    with (folder / "log.csv").open(newline="") as opened:
        last = list(csv.DictReader(opened))[-1]
    return int(last["step"]) == _settings(folder)["steps"]


def _settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def _score(variant: Variant, seed: int, folder: Path, args: argparse.Namespace) -> list[Run]:
    """What a trained network scores; kept beside it, so that adding a seed does not score the others again."""
    kept = folder / "scores.csv"
    runs = read_runs(kept) if kept.exists() else []
    missing = [images for images in args.test if images.resolve().name not in {run.dataset for run in runs}]
    if missing:
        settings = _settings(folder)
        with (folder / "log.csv").open(newline="") as opened:
            minutes = float(list(csv.DictReader(opened))[-1]["seconds"]) / 60
        device = pick_device("cpu" if "--cpu" in args.passed_on else "auto")
        net = load_mren(args.scale, path=folder / f"mren_x{args.scale}.safetensors", device=device)
        upscale = network_upscaler(net, device)
        for images in missing:
            score = mean_score(list(evaluate(list_images(images), args.scale, {"": upscale})))
            runs.append(
                Run(
                    variant=variant.key,
                    seed=seed,
                    parameters=sum(parameter.numel() for parameter in net.parameters()),
                    steps=settings["steps"],
                    batch_size=settings["batch_size"][0],
                    patch_size=settings["patch_size"][0],
                    minutes=round(minutes, 1),
                    dataset=images.resolve().name,
                    psnr=round(score.psnr, 4),
                    ssim=round(score.ssim, 5),
                )
            )
        write_text(kept, to_csv(runs, Run))
    asked_for = [images.resolve().name for images in args.test]
    return sorted((run for run in runs if run.dataset in asked_for), key=lambda run: asked_for.index(run.dataset))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.mren.ablate",
        description="Repeat the paper's ablations at one equal budget. Options that are not listed here go to "
        "python -m examples.mren.train: --recipe, --steps, --batch-size, --patch-size, --precision, …",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--table", nargs="+", choices=tuple(TABLES), required=True, help="what to compare")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to train, to share the work among machines")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of images to train on")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="folders of images to score on")
    parser.add_argument("--scale", type=int, choices=sorted(STAGES), default=4)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/ablation"), help="folder for runs and tables")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, stop")
    args, args.passed_on = parser.parse_known_args(argv)
    args.data = [folder.resolve() for folder in args.data]
    args.output = args.output.resolve()
    if args.seeds < 1:
        parser.error(f"argument --seeds: must be at least 1, got {args.seeds}")
    rows = {variant.key for name in args.table for variant in TABLES[name].variants}
    for key in args.only or []:
        if key not in rows:
            parser.error(f"argument --only: no row {key!r}; there are {', '.join(sorted(rows))}")
    return args


def ablate(args: argparse.Namespace) -> list[Run]:
    """Run the command."""
    variants = {variant.key: variant for name in args.table for variant in TABLES[name].variants}
    for variant in variants.values():
        MREN(args.scale, **variant.config, device="meta")  # before hours of training
    for folder in args.test:
        list_images(folder)
    # A seed of every row before the next seed: what is there when time is up can be compared.
    planned = [
        (variant, seed, args.output / key / f"seed_{seed}")
        for seed in range(args.seeds)
        for key, variant in variants.items()
        if args.only is None or key in args.only
    ]
    for variant, seed, folder in planned:
        if not _trained(folder):
            _train(variant, seed, folder, args)
    if args.dry_run:
        return []
    settings = {str(folder.relative_to(args.output)): _settings(folder) for _, _, folder in planned}
    check_budget(settings, BUDGET)
    alike = [str(folder.relative_to(args.output)) for variant, _, folder in planned if not variant.options]
    if alike:  # rows about the network, not about its training
        check_budget({name: settings[name] for name in alike}, RECIPE)
    runs: list[Run] = []
    for variant, seed, folder in planned:
        runs += _score(variant, seed, folder, args)
    write_text(args.output / "runs.csv", to_csv(runs, Run))
    for name in args.table:
        text = tabulate(TABLES[name], runs)
        write_text(args.output / f"table_{name}.md", text)
        print(f"\n{TABLES[name].title}\n\n{text}")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(ablate, _parse, argv)


if __name__ == "__main__":
    sys.exit(main())
