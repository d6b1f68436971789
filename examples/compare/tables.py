"""The table of a comparison, and the significance of its differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance

import numpy as np
from scipy.stats import t as students_t

from examples.markdown import signed, table
from examples.records import read_records, write_records

Scores = dict[int, float]
"""PSNR by seed."""


@dataclass(frozen=True)
class Run:
    """The score of one trained network on one set of test images."""

    name: str
    """Name of the row."""
    seed: int
    parameters: int
    steps: int
    batch_size: int
    patch_size: int
    minutes: float
    """Training time: processor time if training ran on one CPU thread, wall-clock time otherwise."""
    dataset: str
    psnr: float
    ssim: float = math.nan
    macs: int = 0
    """For an output of 1280 x 720."""
    channels: int = 0
    """Width, where rows differ in it."""
    matched: str = ""
    """What is equal in all rows: ``"parameters"``, ``"macs"``, ``"channels"`` or nothing."""
    paired: int = 0
    """1 if runs with the same seed share initial weights and patches."""


def read_runs(file: Path) -> list[Run]:
    """The runs of a comparison. Files of earlier versions call the column of names ``variant`` or ``blocks``."""
    return read_records(file, Run, renamed={"variant": "name", "blocks": "name"})


def write_runs(file: Path, runs: Sequence[Run]) -> None:
    """Write the runs of a comparison. Other rows, seeds and test sets in the file are kept, after these."""
    written = {(run.name, run.seed, run.dataset) for run in runs}
    held = read_runs(file) if file.exists() else []
    others = [run for run in held if (run.name, run.seed, run.dataset) not in written]
    write_records(file, [*runs, *others], Run)


@dataclass(frozen=True)
class Difference:
    """How far the mean of a row lies from that of the first row."""

    mean: float
    """In dB."""
    margin: float | None
    """Half the width of the 95 % confidence interval; ``None`` with a single seed."""

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero (p < 0.05)."""
        return self.margin is not None and abs(self.mean) > self.margin


@dataclass(frozen=True)
class Comparison:
    """The differences of the rows from the first row on one test set, and their spread."""

    differences: list[Difference]
    """For each row after the first."""
    seeds: tuple[int, ...]
    """Number of seeds per row; several numbers if the rows differ."""
    freedom: int
    """Degrees of freedom of the spread; 0 if it cannot be estimated."""
    spread: float | None
    """Standard deviation of the scores of a row over its seeds, in dB; for paired runs, of the residuals."""


COLUMNS: dict[str, tuple[str, Callable[[Sequence[Run]], str]]] = {
    "channels": ("channels", lambda runs: f"{runs[0].channels}"),
    "parameters": ("parameters", lambda runs: f"{runs[0].parameters:,}"),
    "macs": ("MACs", lambda runs: f"{runs[0].macs / 1e9:.2f} G"),
    "steps": ("steps", lambda runs: f"{mean(run.steps for run in runs):,.0f}"),
    "cpu_minutes": ("CPU minutes", lambda runs: f"{mean(run.minutes for run in runs):.1f}"),
    "minutes": ("minutes", lambda runs: f"{mean(run.minutes for run in runs):.1f}"),
}
MATCHED = {"parameters": "parameters", "macs": "MACs", "channels": "width"}


def comparison_table(
    runs: Sequence[Run], *, titles: Mapping[str, str] | None = None, paper: Mapping[str, float] | None = None
) -> str:
    """A Markdown table: for each row the means, differences from the first row, the scores of its seeds, and its cost.

    Args:
        runs: The scores.
        titles: Titles by row name, in the order of the table; rows without runs are left out. Without it, all rows are
            printed under their names, in the order of the runs.
        paper: PSNR on Set5 that the paper reports for a row.

    Raises:
        ValueError: If there are no runs of these rows.
    """
    titles = titles or {run.name: run.name for run in runs}
    rows = {name: [run for run in runs if run.name == name] for name in titles}
    rows = {name: own for name, own in rows.items() if own}
    if not rows:
        raise ValueError(f"no runs of {', '.join(titles) or 'any row'}.")
    first = next(iter(rows.values()))[0]
    published = {name: f"{psnr:.2f}" for name, psnr in (paper or {}).items() if name in rows}
    # Scores come first: on a narrow page, only the first columns are seen without scrolling.
    head = [""]
    lines = [[titles[name]] for name in rows]
    found: dict[str, Comparison] = {}
    for dataset in dict.fromkeys(run.dataset for own in rows.values() for run in own):
        on_set = [run for run in runs if run.dataset == dataset]
        scores = {name: _scores(own, dataset) for name, own in rows.items()}
        names = comparable(on_set, list(rows))
        if first.paired:  # like the differences, over the seeds that all rows have
            shared = set.intersection(*(set(own) for own in scores.values() if own))
            scores = {name: {seed: own[seed] for seed in own if seed in shared} for name, own in scores.items()}
        if names:
            found[dataset] = compared(on_set, names)
        head += [f"{dataset}, dB", "difference"]
        differences = [printed(difference) for difference in found[dataset].differences] if names else []
        shown = dict(zip(names[1:], differences, strict=True))
        for name, line in zip(rows, lines, strict=True):
            line += [f"{mean(scores[name].values()):.2f}" if scores[name] else "", shown.get(name, "")]
    if published:
        head.append("paper, Set5")
        lines = [[*line, published.get(name, "")] for name, line in zip(rows, lines, strict=True)]
    sentences = significance(found, paired=bool(first.paired))
    if first.matched:
        sentences.append(_match(runs, first.matched))
    costs = _costs(rows, titles, first)
    return "\n".join([table(head, lines), *(f"{sentence}\n" for sentence in sentences), costs])


def _costs(rows: Mapping[str, Sequence[Run]], titles: Mapping[str, str], first: Run) -> str:
    """A table of the scores of each seed on the first test set, and of the costs of the rows."""
    # Unpaired runs are of earlier versions: in processor time, or with the parameters as their only cost.
    wanted = {
        "channels": first.matched,
        "parameters": True,
        "macs": first.matched or first.paired,
        "steps": first.paired,
        "cpu_minutes": first.matched and not first.paired,
        "minutes": first.paired,
    }
    shown = [COLUMNS[column] for column, show in wanted.items() if show]
    lines = [
        [titles[name], ", ".join(f"{score:.2f}" for _, score in sorted(_scores(own, first.dataset).items()))]
        + [cell(own) for _, cell in shown]
        for name, own in rows.items()
    ]
    return table(["", f"seeds, {first.dataset}", *(title for title, _ in shown)], lines)


def _match(runs: Sequence[Run], matched: str) -> str:
    """A sentence on the cost that all rows have in common, and its largest deviation."""
    values = [getattr(run, matched) for run in runs]
    off = 100 * max(abs(value / values[0] - 1) for value in values)
    within = f", to within {off:.1f} %" if off else ""
    return f"Equal in {MATCHED[matched]}{within}; MACs are those of a result of 1280 × 720."


def _scores(runs: Sequence[Run], dataset: str) -> Scores:
    return {run.seed: run.psnr for run in runs if run.dataset == dataset}


def printed(difference: Difference, decimals: int = 3) -> str:
    """A difference in dB, in bold if it is significant."""
    text = signed(difference.mean, decimals)
    return f"**{text}**" if difference.significant else text


def comparable(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """The rows that can be compared on one test set: those scored on it, or none if the first row was not."""
    scored = {run.name for run in runs}
    return [name for name in names if name in scored] if names[0] in scored else []


def compared(runs: Sequence[Run], names: Sequence[str]) -> Comparison:
    """Compare the rows with the first one on one test set, paired by seed where the runs are.

    Args:
        runs: The runs on that test set alone.
        names: Names of the rows.
    """
    scores = [{run.seed: run.psnr for run in runs if run.name == name} for name in names]
    return (paired if runs[0].paired else pooled)(scores)


def paired(scores: Sequence[Scores]) -> Comparison:
    """Differences from the first row, paired by seed.

    A randomised block design with the seeds as blocks: the residual of a score after the means of its row and its seed
    is chance, whose variance is pooled over the rows. For two rows this is the paired t-test.

    Args:
        scores: The scores of each row; seeds that some rows lack are left out.

    Raises:
        ValueError: If the rows have no seed in common.
    """
    seeds = sorted(set.intersection(*(set(own) for own in scores)))
    if not seeds:
        raise ValueError(f"{len(scores)} rows have no seed in common; train them with the same --seeds.")
    values = np.array([[own[seed] for seed in seeds] for own in scores])
    means = values.mean(axis=1)
    differences = (means[1:] - means[0]).tolist()
    freedom = (len(scores) - 1) * (len(seeds) - 1)
    spread = None
    if freedom:
        chance = values - means[:, None] - values.mean(axis=0) + values.mean()
        spread = math.sqrt(np.square(chance).sum() / freedom)
    return _compared(differences, [(len(seeds), len(seeds))] * len(differences), freedom, spread)


def pooled(scores: Sequence[Scores]) -> Comparison:
    """Differences from the first row, for independent runs.

    The variance over seeds is pooled over the rows. A difference is significant (p < 0.05) if it exceeds Student's t
    times its standard error.

    Args:
        scores: The scores of each row.
    """
    rows = [list(own.values()) for own in scores]
    differences = [mean(own) - mean(rows[0]) for own in rows[1:]]
    freedom = sum(len(own) - 1 for own in rows)
    spread = None
    if freedom:
        spread = math.sqrt(sum(variance(own) * (len(own) - 1) for own in rows if len(own) > 1) / freedom)
    return _compared(differences, [(len(rows[0]), len(own)) for own in rows[1:]], freedom, spread)


def _compared(
    differences: Sequence[float], counts: Sequence[tuple[int, int]], freedom: int, spread: float | None
) -> Comparison:
    """The comparison, with confidence margins computed from the spread.

    Args:
        differences: The difference of the mean of each row from that of the first.
        counts: For each difference, the numbers of seeds of the first row and of the other one.
        freedom: Degrees of freedom of the spread.
        spread: See :class:`Comparison`.
    """
    if spread is None:
        margins = [None] * len(differences)
    else:
        factor = float(students_t.ppf(0.975, freedom)) * spread
        # A single seed says nothing about the spread of its own row.
        margins = [factor * math.sqrt(1 / a + 1 / b) if min(a, b) > 1 else None for a, b in counts]
    return Comparison(
        [Difference(difference, margin) for difference, margin in zip(differences, margins, strict=True)],
        tuple(sorted({count for pair in counts for count in pair})),
        freedom,
        spread,
    )


def _degrees(freedom: int) -> str:
    return f"{freedom} degree{'' if freedom == 1 else 's'} of freedom"


def significance(found: Mapping[str, Comparison], *, paired: bool) -> list[str]:
    """Sentences on the significance of the differences; test sets with the same numbers of seeds share a sentence.

    Args:
        found: The comparison on each test set.
        paired: Whether the differences are paired by seed.
    """
    sentences = []
    for seeds, freedom in dict.fromkeys((each.seeds, each.freedom) for each in found.values()):
        own = {name: each for name, each in found.items() if (each.seeds, each.freedom) == (seeds, freedom)}
        count = " or ".join(map(str, seeds))
        margins = {name: _margins(each) for name, each in own.items()}
        some = any(difference.significant for each in own.values() for difference in each.differences)
        if not seeds:
            sentence = "One row, and nothing to compare it with."
        elif not any(margins.values()):
            sentence = "One seed per row, which does not show which differences are significant."
        elif paired:
            sentence = (
                f"Differences are paired by seed and averaged over {count} seeds. Their 95 % confidence intervals: "
                + ", ".join(f"± {margin} dB ({name})" for name, margin in margins.items())
                + f"; {_degrees(freedom)}. "
                + ("Significant differences are bold." if some else "No difference is significant.")
            )
        else:
            sentence = (
                f"With {count} seeds per row, the smallest significant difference (p < 0.05) is "
                + ", ".join(f"{margin} dB ({name})" for name, margin in margins.items())
                + ("; significant differences are bold." if some else "; no difference here is significant.")
                + (" A row with one seed is not tested." if 1 in seeds else "")
                + " Standard deviation of the seeds of a row: "
                + ", ".join(f"{each.spread:.3f} dB ({name})" for name, each in own.items())
                + f"; {_degrees(freedom)}."
            )
        sentences.append(sentence)
    return sentences


def _margins(comparison: Comparison) -> str:
    margins = sorted(each.margin for each in comparison.differences if each.margin is not None)
    return " or ".join(dict.fromkeys(f"{margin:.3f}" for margin in margins))
