"""Write the tables of the documentation from the committed comparisons.

``python -m examples.drop_in.report`` reads ``results/*.csv``, as written by ``compare``, and writes
``docs/results/hosts_*.md`` and an overview, ``docs/results/hosts.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.compare.tables import MATCHED, Run, comparable, compared, comparison_table, printed, read_runs
from examples.drop_in.variants import HOSTS, is_local, title_of
from examples.markdown import table
from examples.mren.arguments import command_parser
from examples.mren.cli import run_command
from examples.mren.files import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parents[1] / "docs" / "results"
DATASETS = ("Set5", "Set14", "B100")
STATISTICS = ("Scored with statistics of the whole map", "The same networks, scored with local statistics")


def tables() -> dict[str, str]:
    """The text of every generated Markdown file, by file name."""
    found = {file.stem: read_runs(file) for file in sorted(RESULTS.glob("*.csv"))}
    texts = {f"hosts_{name}.md": comparison_tables(runs) for name, runs in found.items()}
    return texts | {"hosts.md": overview(found)}


def comparison_tables(runs: Sequence[Run]) -> str:
    """The table of a comparison, with a second one for rows scored with local statistics."""
    texts = [comparison_table(own, titles={run.name: title_of(run.name) for run in own}) for own in by_statistics(runs)]
    if len(texts) == 1:
        return texts[0]
    return "\n".join(f"**{title}**\n\n{text}" for title, text in zip(STATISTICS, texts, strict=True))


def by_statistics(runs: Sequence[Run]) -> list[Sequence[Run]]:
    """Group runs by how they are scored; the first row is in both groups.

    The seeds of a row may spread far more with statistics of the whole map than with local ones.
    """
    local = [run for run in runs if run.name == runs[0].name or is_local(run.name)]
    whole = [run for run in runs if not is_local(run.name)]
    return [own for own in (whole, local) if len({run.name for run in own}) > 1] or [runs]


def overview(found: Mapping[str, Sequence[Run]]) -> str:
    """A table with a line for each row of each comparison: differences from the plain network with 95 % intervals.

    Args:
        found: The runs of each comparison by file name.
    """
    lines = []
    for name, runs in found.items():
        host, task, *rest = name.split("_")
        scale = next((part[1:] for part in rest if part in ("x2", "x3")), "4")
        what = "denoising" if task == "denoise" else f"×{scale}"
        without = ", without bicubic" if "skip" in rest else ""
        for own in by_statistics(runs):
            seeds = {run.name: len({each.seed for each in own if each.name == run.name}) for run in own}
            same_steps = len({run.steps for run in own}) == 1
            budget = f"{own[0].steps:,} steps" if same_steps else f"{own[0].minutes:.0f} minutes"
            columns = [_differences([run for run in own if run.dataset == name], [*seeds]) for name in DATASETS]
            for row, *cells in zip([*seeds][1:], *columns, strict=True):
                title = f"{HOSTS[host].title.partition(',')[0]}, {what}{without}"
                lines.append([title, title_of(row), *cells, MATCHED[own[0].matched], budget, str(seeds[row])])
    head = ["network", "with", *(f"{name}, dB" for name in DATASETS), "equal", "budget", "seeds"]
    return table(head, lines, text=("network", "with", "equal"))


def _differences(runs: Sequence[Run], rows: Sequence[str]) -> list[str]:
    """The cells of one test set; empty for rows that were not scored."""
    names = comparable(runs, rows)
    found = dict(zip(names[1:], compared(runs, names).differences if names else [], strict=True))
    cells = {
        name: printed(each, 2) if each.margin is None else f"{printed(each, 2)} ± {each.margin:.2f}"
        for name, each in found.items()
    }
    return [cells.get(name, "") for name in rows[1:]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("examples.drop_in.report", __doc__)
    return run_command(run, parser.parse_args, argv)


def run(_: argparse.Namespace) -> None:
    """Run the command."""
    for name, text in tables().items():
        write_text(DOCS / name, text)
        print(DOCS / name)


if __name__ == "__main__":
    sys.exit(main())
