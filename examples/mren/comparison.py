"""What runs of a comparison share: their lines in a CSV file, their budget, and what the spread of seeds says of them.

:mod:`examples.mren.ablate` and :mod:`examples.drop_in.compare` write their tables with it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any, TypeVar

from scipy.stats import t as students_t

Record = TypeVar("Record")


@dataclass(frozen=True)
class Line:
    """A row of a table of scores."""

    cells: tuple[str, ...]
    """What stands before the scores."""
    scores: dict[str, list[float]]
    """PSNR of every seed, by test set."""


def tabulate_lines(head: Sequence[str], lines: Sequence[Line]) -> str:
    """A table in Markdown: for each line its cells, and for each test set mean, seeds and difference from the first.

    The spread is pooled over the lines: each one's variance over its seeds, averaged. Two lines differ by more than
    chance, at 95 %, where their means are further apart than Student's t times the standard error of a difference.

    Args:
        head: Titles of the cells that stand before the scores; the first is the name, the others are numbers.
        lines: The rows; the first is what the others are held against.
    """
    datasets = list(dict.fromkeys(dataset for line in lines for dataset in line.scores))
    titles = list(head)
    for dataset in datasets:
        titles += [f"{dataset}, dB", "seeds", "difference"]
    table = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for line in lines:
        cells = list(line.cells)
        for dataset in datasets:
            scores = line.scores[dataset]
            difference = mean(scores) - mean(lines[0].scores[dataset])
            cells += [f"{mean(scores):.2f}", ", ".join(f"{score:.2f}" for score in scores)]
            cells.append("" if line is lines[0] else f"{difference:+.3f}")
        table.append(cells)
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    spreads = [describe_spread(dataset, [line.scores[dataset] for line in lines]) for dataset in datasets]
    return "\n".join([f"{rows}\n", *spreads])


def describe_spread(dataset: str, scores: Sequence[Sequence[float]]) -> str:
    """What the seeds of all lines say about the differences from the first, in a sentence.

    Args:
        dataset: Name of the test set.
        scores: For each line those of its seeds.
    """
    freedom = sum(len(own) - 1 for own in scores)
    if not freedom:
        return f"{dataset}: one seed a row, which says nothing about which differences are real.\n"
    spread = math.sqrt(sum(variance(own) * (len(own) - 1) for own in scores if len(own) > 1) / freedom)
    factor = float(students_t.ppf(0.975, freedom)) * spread
    least = [factor * math.sqrt(1 / len(scores[0]) + 1 / len(own)) for own in scores[1:] or scores]
    told_apart = sum(abs(mean(own) - mean(scores[0])) > enough for own, enough in zip(scores[1:], least, strict=False))
    seeds = " or ".join(str(count) for count in sorted({len(own) for own in scores}))
    from_on = " or ".join(dict.fromkeys(f"{enough:.2f}" for enough in sorted(least)))
    return (
        f"{dataset}: the seeds of a row spread by {spread:.3f} dB (standard deviation, {freedom} degrees of freedom). "
        f"With {seeds} seeds a row, a difference is told from chance from {from_on} dB on; {told_apart} of the "
        f"{len(scores) - 1} differences here are that large.\n"
    )


def check_budget(settings: dict[str, dict[str, Any]], keys: Sequence[str]) -> None:
    """Refuse to compare runs of different budgets.

    Args:
        settings: What each run's ``run.json`` says, by the name of the run.
        keys: What must be the same in all.

    Raises:
        ValueError: If they differ in length, data or precision; the message names two and the first difference.
    """
    (first, expected), *others = settings.items()
    for name, found in others:
        for key in keys:
            if found.get(key) != expected.get(key):
                raise ValueError(
                    f"not one budget: {key} is {expected.get(key)!r} in {first}, {found.get(key)!r} in {name}; take "
                    "another --output, or the same options as there."
                )


def to_csv(records: Sequence[Any], kind: type[Any]) -> str:
    """Dataclasses of one kind as lines of a CSV file, as :func:`read_csv` reads them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(record) for record in records)
    return text.getvalue()


def read_csv(file: Path, kind: type[Record]) -> list[Record]:
    """The lines of a CSV file as dataclasses whose fields are text, whole numbers or fractions."""
    types = typing.get_type_hints(kind)
    with file.open(newline="") as opened:
        return [kind(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(opened)]
