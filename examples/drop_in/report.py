"""Write the tables of the documentation from the committed comparisons.

Run as ``python -m examples.drop_in.report``: it reads ``results/*.csv``, as ``compare`` writes them, and writes
``docs/results/hosts_*.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.compare.tables import comparison_table, read_runs
from examples.drop_in.variants import title_of
from examples.mren.cli import run_command
from examples.mren.files import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parents[1] / "docs" / "results"


def tables() -> dict[str, str]:
    """Every generated Markdown file: its name and its text."""
    texts = {}
    for file in sorted(RESULTS.glob("*.csv")):
        runs = read_runs(file)
        texts[f"hosts_{file.stem}.md"] = comparison_table(runs, titles={run.name: title_of(run.name) for run in runs})
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.drop_in.report", description=__doc__.partition("\n")[0])
    return run_command(run, parser.parse_args, argv)


def run(_: argparse.Namespace) -> None:
    """Run the command."""
    for name, text in tables().items():
        write_text(DOCS / name, text)
        print(DOCS / name)


if __name__ == "__main__":
    sys.exit(main())
