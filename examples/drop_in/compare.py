"""Train a host with and without blocks of this library, at equal cost and steps, and say what the seeds make of it.

    python -m examples.drop_in.compare --host rfdn --blocks plain scacb scacb+chain --task sr \
        --data BSDS500 --test Set5 B100 --seeds 3 -o runs/drop_in

trains every row with every seed, scores it, and writes ``rfdn_sr.csv``, a line for each run and test set, and
``rfdn_sr.md``, the table. The first row is the reference: it has ``--channels``, and every other row the width at which
it comes closest to the parameters (``--match macs``: the multiply-accumulates) of the reference. A run that is there
already is not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from examples.drop_in.tasks import Denoising, SuperResolution
from examples.drop_in.training import train
from examples.drop_in.variants import HOSTS, MIN_CHANNELS, PLAIN, Match, Row, build, plan_rows
from examples.mren.cli import run_command
from examples.mren.comparison import Line, read_csv, tabulate_lines, to_csv
from examples.mren.data import PatchSampler, list_images
from examples.mren.files import atomic_write, write_text
from examples.mren.model import DEVICES, pick_device
from examples.mren.recipes import RECIPES

PATCH_SIZES = {"sr": 96, "denoise": 48}


@dataclass(frozen=True)
class Run:
    """The score of one trained network on one set of test images."""

    host: str
    task: str
    blocks: str
    matched: str
    """What all rows have alike: parameters or macs."""
    channels: int
    parameters: int
    macs: int
    seed: int
    steps: int
    batch_size: int
    patch_size: int
    minutes: float
    """Of the processor, spent on the training."""
    dataset: str
    psnr: float


def tabulate(runs: Sequence[Run]) -> str:
    """A table in Markdown for the runs of one host and task, in the order in which the rows come."""
    rows = list(dict.fromkeys(run.blocks for run in runs))
    lines = []
    for name in rows:
        own = sorted((run for run in runs if run.blocks == name), key=lambda run: run.seed)
        scores: dict[str, list[float]] = {}
        for run in own:
            scores.setdefault(run.dataset, []).append(run.psnr)
        minutes = [run.minutes for run in own if run.dataset == own[0].dataset]
        cells = (
            name,
            f"{own[0].channels}",
            f"{own[0].parameters:,}",
            f"{own[0].macs / 1e9:.2f} G",
            f"{sum(minutes) / len(minutes):.1f}",
        )
        lines.append(Line(cells, scores))
    matched = {"parameters": "parameters", "macs": "multiply-accumulates"}[runs[0].matched]
    cost = [getattr(run, runs[0].matched) for run in runs]
    off = 100 * max(abs(value / cost[0] - 1) for value in cost)
    table = tabulate_lines(["", "channels", "parameters", "MACs", "CPU minutes"], lines)
    return f"{table}\nEqual in {matched}, to within {off:.1f} %; MACs are those of a result of 1280 × 720.\n"


def _settings(row: Row, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What decides the numbers of a run; one that was made with others is refused."""
    files = "/".join(path.name for folder in args.data for path in list_images(folder))
    return {
        "host": args.host,
        "task": dataclasses.asdict(args.restoration),
        **dataclasses.asdict(row),
        "matched": args.match,
        "seed": seed,
        **dataclasses.asdict(args.recipe.stages[0]),
        "steps": args.recipe.steps,
        "clip_grad_norm": args.recipe.clip_grad_norm,
        "ema_decay": args.recipe.ema_decay,
        "images": files.count("/") + 1,
        "files": zlib.crc32(files.encode()),
    }


def _finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a run is there; raises if it is another one."""
    file = folder / "run.json"  # written last
    if not file.exists():
        return False
    found = json.loads(file.read_text())
    differing = [
        f"{name} was {found.get(name)!r}, is {value!r}" for name, value in settings.items() if found.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a run of other settings ({'; '.join(differing)}); take another --output, or the same "
            "options as there."
        )
    return True


def _score(row: Row, seed: int, folder: Path, args: argparse.Namespace) -> list[Run]:
    """What a trained network scores; kept beside it, so that adding a test set does not score the others again."""
    kept = folder / "scores.csv"
    runs = read_csv(kept, Run) if kept.exists() else []
    missing = [images for images in args.test if images.name not in {run.dataset for run in runs}]
    if missing:
        device = pick_device(args.device)
        settings = json.loads((folder / "run.json").read_text())
        net = build(args.host, row.blocks, row.channels, args.restoration.scale).to(device).eval()
        net.load_state_dict(load_file(folder / "weights.safetensors"))
        for images in missing:
            files = list_images(images)
            scores = [args.restoration.score(net, file, device) for file in tqdm(files, desc=images.name, leave=False)]
            runs.append(
                Run(
                    host=args.host,
                    task=args.task,
                    blocks=row.blocks,
                    matched=args.match,
                    channels=row.channels,
                    parameters=row.parameters,
                    macs=row.macs,
                    seed=seed,
                    steps=settings["steps"],
                    batch_size=settings["batch_size"],
                    patch_size=settings["patch_size"],
                    minutes=settings["minutes"],
                    dataset=images.name,
                    psnr=round(sum(scores) / len(scores), 4),
                )
            )
        write_text(kept, to_csv(runs, Run))
    asked_for = [images.name for images in args.test]
    return sorted((run for run in runs if run.dataset in asked_for), key=lambda run: asked_for.index(run.dataset))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.drop_in.compare",
        description="Train a host with and without blocks of this library, at equal cost and equal steps.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", choices=tuple(HOSTS), required=True, help="the network")
    parts = "; ".join(f"{name}: {', '.join(host.parts)}" for name, host in HOSTS.items())
    parser.add_argument(
        "--blocks",
        nargs="+",
        metavar="ROW",
        required=True,
        help=f"rows to compare, the reference first: {PLAIN}, or parts joined by +, of {parts}",
    )
    parser.add_argument("--task", choices=tuple(PATCH_SIZES), required=True, help="what is undone")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=4, help="of --task sr")
    parser.add_argument("--sigma", type=float, default=25.0, help="of --task denoise, of 255")
    parser.add_argument("--match", choices=get_args(Match), default="parameters", help="what all rows have alike")
    parser.add_argument("--tolerance", type=float, default=3.0, metavar="PERCENT", help="how unlike it may be")
    parser.add_argument("--channels", type=int, help="width of the reference; the host's own by default")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of images to train on")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="folders of images to score on")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--patch-size", type=int, help="of the clean patches; 96 for sr, 48 for denoise by default")
    parser.add_argument("--lr", type=float, default=RECIPES["short"].stages[0].lr, help="highest of the one cycle")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/drop_in"), help="folder for runs and tables")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, stop")
    args = parser.parse_args(argv)
    for name in ("seeds", "steps", "batch_size", "patch_size", "lr", "sigma", "tolerance"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"argument --{name.replace('_', '-')}: must be positive, got {value}")
    if args.channels is not None and args.channels < MIN_CHANNELS:
        parser.error(f"argument --channels: must be at least {MIN_CHANNELS}, got {args.channels}")
    args.restoration = SuperResolution(args.scale) if args.task == "sr" else Denoising(args.sigma)
    side = args.patch_size or PATCH_SIZES[args.task]
    if side % args.restoration.scale:
        lower = side // args.restoration.scale * args.restoration.scale
        parser.error(f"argument --patch-size: must be a multiple of the scale, {args.scale}, got {side}; try {lower}")
    (stage,) = RECIPES["short"].stages
    stage = dataclasses.replace(stage, batch_size=args.batch_size, patch_size=side, lr=args.lr)
    args.recipe = dataclasses.replace(RECIPES["short"], stages=(stage,), steps=args.steps)
    args.test = [folder.resolve() for folder in args.test]
    return args


def compare(args: argparse.Namespace) -> list[Run]:
    """Run the command."""
    rows = plan_rows(
        args.host,
        args.blocks,
        scale=args.restoration.scale,
        channels=args.channels,
        match=args.match,
        tolerance=args.tolerance,
    )
    names = [folder.name for folder in args.test]
    if len(set(names)) < len(names):
        raise ValueError(f"--test: folders must differ in name, by which scores are filed, got {', '.join(names)}.")
    for folder in args.test:
        list_images(folder)
    # A seed of every row before the next seed: what is there when time is up can be compared.
    planned = [
        (row, seed, args.output / f"{args.host}_{args.task}" / row.blocks / f"seed_{seed}")
        for seed in range(args.seeds)
        for row in rows
    ]
    waiting = [run for run in planned if not _finished(run[2], _settings(*run[:2], args))]
    for row in rows:
        print(f"{row.blocks}: {row.channels} channels, {row.parameters:,} parameters, {row.macs / 1e9:.2f} G MACs")
    print(f"{len(waiting)} of {len(planned)} runs to train, {args.steps} steps each")
    if args.dry_run:
        return []
    pairs = []
    if waiting:
        files = [path for folder in args.data for path in list_images(folder)]
        pairs = args.restoration.load(files, args.recipe.stages[0].patch_size)
    for row, seed, folder in waiting:
        sampler = PatchSampler(
            pairs,
            args.restoration.scale,
            patch_size=args.recipe.stages[0].patch_size,
            batch_size=args.recipe.stages[0].batch_size,
            seed=seed,
            device=pick_device(args.device),
        )
        started = time.process_time()  # not of the clock on the wall: others may use the machine
        net = train(row, seed, sampler, args.restoration, args.recipe, args.host)
        minutes = round((time.process_time() - started) / 60, 2)
        (folder / "scores.csv").unlink(missing_ok=True)  # of weights that were there before
        with atomic_write(folder / "weights.safetensors") as scratch:
            save_file({name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}, scratch)
        settings = {**_settings(row, seed, args), "minutes": minutes, "torch": torch.__version__}
        write_text(folder / "run.json", json.dumps(settings, indent=2) + "\n")
    runs = [run for row, seed, folder in planned for run in _score(row, seed, folder, args)]
    name = f"{args.host}_{args.task}"
    write_text(args.output / f"{name}.csv", to_csv(runs, Run))
    text = tabulate(runs)
    write_text(args.output / f"{name}.md", text)
    print(f"\n{HOSTS[args.host].title}\n\n{text}")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(compare, _parse, argv)


if __name__ == "__main__":
    sys.exit(main())
