"""Repeat the paper's ablations, and compare trunks and recipes, at equal budgets with paired seeds.

    python -m examples.mren.ablate --table 3 4 --variant mren_s --data FOLDER --test Set5 --recipe short --steps 3200 \
        --batch-size 4 --patch-size 128 -o runs/ablation

trains and scores every row of the tables with every seed, and writes ``runs.csv`` with a line for each run and test
set, ``table_3.md`` and ``table_4.md``. With ``--minutes``, all rows train for equal time instead of equal steps.
Finished runs are not trained again, interrupted ones are resumed; rows shared by several tables are trained once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from examples.compare.cost import count_parameters, nearest_width
from examples.compare.options import add_options, setup_from
from examples.compare.runner import compare
from examples.compare.setup import Row
from examples.compare.tables import Run, comparison_table, write_runs
from examples.compare.tasks import SuperResolution
from examples.mren.arguments import whole_number
from examples.mren.cli import run_command
from examples.mren.files import write_text
from examples.mren.messages import UsageError
from examples.mren.model import MREN, STAGES, VARIANTS, weights_path
from examples.mren.options import scale_factor
from examples.mren.training.options import checked, configure_torch, json_object
from examples.peers import IMDB, RFDB


@dataclass(frozen=True)
class Variant:
    """A row of a table."""

    title: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of :class:`~examples.mren.model.MREN` that differ from those of the other rows."""
    paper: float | None = None
    """PSNR on Set5 at ×4 that the paper reports."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Training options, see :class:`examples.compare.setup.Row`."""
    drawn: bool = True
    """Whether weights are initialised by :meth:`MREN.init_weights`, instead of by torch's defaults."""
    block: Callable[[int], nn.Module] | None = None
    """Called with a width to build the replacement of an MREB; the width is chosen for equal parameters."""

    @property
    def key(self) -> str:
        """Name of the row and of the folder of its runs."""
        options = {name.replace("_", "-"): value for name, value in self.options.items()}
        changed = {**self.config, **options} | ({"trunk": self.block.__name__} if self.block else {})
        changed |= {} if self.drawn else {"init": "torch"}
        values = {name: value.stem if isinstance(value, Path) else value for name, value in changed.items()}
        return ",".join(f"{name}={value}" for name, value in sorted(values.items())) or "default"

    def row(self, scale: int, config: Mapping[str, Any]) -> Row:
        """The network to train.

        Args:
            scale: Upscaling factor.
            config: Arguments shared by all rows, including ``num_blocks``.

        Raises:
            ValueError: If no width gives a similar number of parameters.
        """
        arguments = {"scale": scale, **config, **self.config}
        make = partial(fresh_mren, arguments) if self.drawn else partial(MREN, **arguments)
        if self.block is None:
            return Row(self.key, make, config=arguments, options=self.options, begins_alike=self.drawn)
        build = partial(with_trunk, self.block, arguments)
        target = count_parameters(make)
        width = nearest_width(lambda channels: count_parameters(partial(build, channels)), target, lowest=16)
        found = count_parameters(partial(build, width))
        if abs(found / target - 1) > 0.05:
            raise ValueError(
                f"{self.key}: the closest to the {target:,} parameters of MREBs is {found:,}, at {width} "
                "channels; use more or fewer --num-blocks."
            )
        return Row(self.key, partial(build, width), channels=width, options=self.options)


def fresh_mren(config: Mapping[str, Any]) -> MREN:
    """MREN with its weights initialised for training."""
    net = MREN(**config)
    net.init_weights()
    return net


def with_trunk(block: Callable[[int], nn.Module], config: Mapping[str, Any], channels: int) -> MREN:
    """MREN with other blocks in place of its MREBs."""
    net = fresh_mren({**config, "channels": channels, "num_blocks": 1})
    net.body = nn.Sequential(*(block(channels) for _ in range(config["num_blocks"])))
    return net


class Table:
    """Variants to be compared; the first is the reference."""

    def __init__(self, title: str, *variants: Variant) -> None:
        self.title = title
        self.variants = variants

    def tabulate(self, runs: Sequence[Run], scale: int = 4) -> str:
        """The Markdown table of the rows that have runs; at ×4 with the results of the paper."""
        paper = {variant.key: variant.paper for variant in self.variants if variant.paper is not None}
        titles = {variant.key: variant.title for variant in self.variants}
        return comparison_table(runs, titles=titles, paper=paper if scale == 4 else None)


NUM_BLOCKS = 6  # of the paper's network
BLOCK_COUNTS = {6: 32.24, 3: 32.06, 4: 32.12, 5: 32.16, 7: 32.20, 8: 32.21}  # PSNR in the paper
WEIGHTS = {
    0.2: 32.24, 0: 32.20, 0.1: 32.21, 0.3: 32.20, 0.4: 32.18, 0.5: 32.23,
    0.6: 32.21, 0.7: 32.14, 0.8: 32.19, 0.9: 32.20, 1: 32.18,
}  # fmt: skip
TABLES = {
    "1": Table(
        "Number of MREBs (table 1)",
        *(
            Variant(f"{n} MREBs", {"num_blocks": n} if n != NUM_BLOCKS else {}, paper)
            for n, paper in BLOCK_COUNTS.items()
        ),
    ),
    "2": Table(
        "Weight of the preceding map (table 2)",
        *(Variant(f"W = {w}", {"communication": w} if w != 0.2 else {}, paper) for w, paper in WEIGHTS.items()),
    ),
    "3": Table(
        "Parts of SCACB (table 3)",
        Variant("both parts, exchanging (SCACB)", {}, 32.24),
        Variant("spatial part only (OSA)", {"parts": "spatial"}, 32.15),
        Variant("channel part only (OCA)", {"parts": "channel"}, 32.22),
        Variant("both parts, no exchange (SCNC)", {"exchange": None}, 32.19),
    ),
    "4": Table(
        "Parts of DRACB (table 4)",
        Variant("distillation, communication and gate (DRACB)", {}, 32.24),
        Variant("distillation", {"communication": 0, "gate": False}, 32.16),
        Variant("distillation and gate", {"communication": 0}, 32.20),
        Variant("distillation and communication", {"gate": False}, 32.15),
    ),
    "exchange": Table(
        "Where the parts of SCACB exchange their levels",
        Variant("at the outputs (default)"),
        Variant("at the inputs", {"exchange": "inputs"}),
        Variant("nowhere", {"exchange": None}),
    ),
    "communication": Table(
        "Communication between DRACBs",
        Variant("0.2 of its map (default)"),
        Variant("nothing", {"communication": 0}),
        Variant("all of its map", {"communication": 1}),
        Variant("a learned share", {"communication": "learnable"}),
        Variant("a share computed from both maps", {"communication": "gated"}),
    ),
    "beyond": Table(
        "Communication channels beyond the paper",
        Variant("0.2 of the map (the paper's)"),
        Variant("a learned share", {"communication": "learnable"}),
        Variant("a share computed from both maps", {"communication": "gated"}),
        Variant("0.2 of the map, one chain through all MREBs", {"chain": "network"}),
    ),
    "trunk": Table(
        "Trunks with equal parameters and the same head and tail",
        Variant("MREBs"),
        Variant("IMDBs, of IMDN", block=IMDB),
        Variant("RFDBs, of RFDN", block=RFDB),
    ),
    "init": Table(
        "Initialisation",
        Variant("`init_weights` (default)"),
        Variant("torch's defaults", drawn=False),
    ),
    "recipe": Table(
        "Training recipe",
        Variant("one cycle up to 1e-3, EMA of the weights"),
        Variant("one cycle up to 1e-3", options={"ema_decay": 0}),
        Variant("the paper's: 5e-4, halved four times", options={"recipe": "paper"}),
        Variant("EMA, started from the weights of ×2", options={"init": weights_path(2)}),
    ),
    "training": Table(
        "Loss and patches",
        # All options in full, as recipes and command lines may set another loss.
        Variant("L1", options={"loss": "l1", "textured": False}),
        Variant("L1, textured patches", options={"loss": "l1", "textured": True}),
        Variant("L1 of pixels and spectrum", options={"loss": "l1+fft", "textured": False}),
        Variant("both", options={"loss": "l1+fft", "textured": True}),
    ),
}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.mren.ablate",
        description="Repeat the paper's ablations, and compare trunks and recipes, at equal budgets.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--table", nargs="+", choices=tuple(TABLES), required=True, help="tables to produce")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="train only these rows, to share the work")
    parser.add_argument("--scale", type=scale_factor, choices=tuple(STAGES), default=4, help="upscaling factor")
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="mren", help="network variant")
    parser.add_argument("--num-blocks", type=whole_number(1), default=NUM_BLOCKS, help="number of MREBs")
    meaning = """further arguments of all networks, such as '{"exchange": null}'"""
    parser.add_argument("--config", type=json_object, default={}, metavar="JSON", help=meaning)
    add_options(parser)
    parser.set_defaults(recipe="paper", held_out=10, output=Path("runs/ablation"))
    args = parser.parse_args(argv)
    rows = {variant.key for name in args.table for variant in TABLES[name].variants}
    for key in args.only or []:
        if key not in rows:
            parser.error(f"argument --only: no row {key!r}; there are {', '.join(sorted(rows))}")
    return checked(parser, args)


def ablate(args: argparse.Namespace) -> list[Run]:
    """Run the command."""
    configure_torch(args)
    config = {**VARIANTS[args.variant], "num_blocks": args.num_blocks, **args.config}
    variants = {variant.key: variant for name in args.table for variant in TABLES[name].variants}
    given = {*args.config} | ({"num_blocks"} if args.num_blocks != NUM_BLOCKS else set())
    if compared := given.intersection(name for variant in variants.values() for name in variant.config):
        raise ValueError(
            f"{' and '.join(sorted(compared))}: is compared by --table {' '.join(args.table)}; leave it out."
        )
    if "recipe" in args.table and (args.recipe != "short" or (args.steps or args.minutes) is None):
        raise UsageError(
            "--table recipe: compares the recipe short with the paper's at the same length; add --recipe short, and "
            "--steps or --minutes."
        )
    try:
        MREN(args.scale, **config, device="meta")
    except TypeError as error:
        raise ValueError(f"--config: {error}") from error
    rows = [variant.row(args.scale, config) for variant in variants.values()]
    setup = setup_from(args, SuperResolution(args.scale), args.output)
    runs = compare(rows, setup, only=args.only, max_minutes=args.max_minutes, dry_run=args.dry_run)
    if runs:
        write_runs(args.output / "runs.csv", runs)
        trained = {run.name for run in runs}
        for name in args.table:
            if not trained.intersection(variant.key for variant in TABLES[name].variants):
                continue  # no row of this table is in --only
            text = TABLES[name].tabulate(runs, args.scale)
            write_text(args.output / f"table_{name}.md", text)
            print(f"\n{TABLES[name].title}\n\n{text}")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(ablate, _parse, argv)


if __name__ == "__main__":
    sys.exit(main())
