"""The table of a comparison, and what its seeds say about the differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance

import numpy as np
from scipy.stats import t as students_t

from examples.markdown import table
from examples.records import read_records

Scores = dict[int, float]
"""PSNR by seed."""


@dataclass(frozen=True)
class Run:
    """The score of one trained network on one set of test images."""

    name: str
    """Of the row."""
    seed: int
    parameters: int
    steps: int
    batch_size: int
    patch_size: int
    minutes: float
    """Spent on the training: of the processor if that was one thread, else of the clock."""
    dataset: str
    psnr: float
    ssim: float = math.nan
    macs: int = 0
    """For a result of 1280 x 720."""
    channels: int = 0
    """Width, where rows differ in it."""
    matched: str = ""
    """What all rows have alike: ``"parameters"``, ``"macs"``, ``"channels"`` or nothing."""
    paired: int = 0
    """1 if runs with the same seed began from the same weights and saw the same patches."""


def read_runs(file: Path) -> list[Run]:
    """The runs of a comparison. In files of earlier versions the name of a row is called ``variant`` or ``blocks``."""
    return read_records(file, Run, renamed={"variant": "name", "blocks": "name"})


@dataclass(frozen=True)
class Difference:
    """How far the mean of a row lies from that of the first row."""

    mean: float
    """In dB."""
    margin: float | None
    """Half the width of its 95 % confidence interval; ``None`` if there is no more than one seed."""

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero (p < 0.05)."""
        return self.margin is not None and abs(self.mean) > self.margin


COLUMNS: dict[str, tuple[str, Callable[[Sequence[Run]], str]]] = {
    "channels": ("channels", lambda runs: f"{runs[0].channels}"),
    "parameters": ("parameters", lambda runs: f"{runs[0].parameters:,}"),
    "macs": ("MACs", lambda runs: f"{runs[0].macs / 1e9:.2f} G"),
    "steps": ("steps", lambda runs: f"{mean(run.steps for run in runs):,.0f}"),
    "cpu_minutes": ("CPU minutes", lambda runs: f"{mean(run.minutes for run in runs):.1f}"),
    "minutes": ("minutes", lambda runs: f"{mean(run.minutes for run in runs):.1f}"),
}
MATCHED = {"parameters": "parameters", "macs": "multiply-accumulates", "channels": "width"}


def comparison_table(
    runs: Sequence[Run], *, titles: Mapping[str, str] | None = None, paper: Mapping[str, float] | None = None
) -> str:
    """A table in Markdown: for each row means, differences from the first row, the scores of the seeds, and the cost.

    Args:
        runs: What was measured.
        titles: What to print for the name of a row, in the order of the table; rows without runs are left out. Without
            it, all rows are printed under their names as they come.
        paper: PSNR on Set5 that the paper prints for a row.

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
    # Unpaired runs are of earlier versions: of the processor's minutes, or without costs but the parameters.
    wanted = {
        "channels": first.matched,
        "parameters": True,
        "macs": first.matched or first.paired,
        "steps": first.paired,
        "cpu_minutes": first.matched and not first.paired,
        "minutes": first.paired,
    }
    shown = [column for column, show in wanted.items() if show]
    # On a narrow page the first columns are seen without scrolling: the scores.
    head, last = [""], []
    lines = [[titles[name]] for name in rows]
    details: list[list[str]] = [[] for _ in rows]
    notes: dict[str, list[str]] = {}  # what is said of several sets alike is said once
    for dataset in dict.fromkeys(run.dataset for own in rows.values() for run in own):
        scores = [{run.seed: run.psnr for run in own if run.dataset == dataset} for own in rows.values()]
        differences, sentence = (paired if first.paired else pooled)(scores)
        head += [f"{dataset}, dB", "difference"]
        last.append(f"seeds, {dataset}")
        # The margins of unpaired runs are in the sentence.
        cells = [
            f"{difference.mean:+.3f}"
            + ("" if difference.margin is None or not first.paired else f" ± {difference.margin:.3f}")
            for difference in differences
        ]
        for line, detail, own, difference in zip(lines, details, scores, ["", *cells], strict=True):
            line += [f"{mean(own.values()):.2f}", difference]
            detail.append(", ".join(f"{own[seed]:.2f}" for seed in sorted(own)))
        notes.setdefault(sentence, []).append(dataset)
    head += [*last, *(COLUMNS[column][0] for column in shown), *(["paper, Set5"] if published else [])]
    for name, line, detail in zip(rows, lines, details, strict=True):
        line += [*detail, *(COLUMNS[column][1](rows[name]) for column in shown)]
        line += [published.get(name, "")] if published else []
    sentences = [f"\n{', '.join(datasets)}: {sentence}\n" for sentence, datasets in notes.items()]
    if first.matched:
        costs = [getattr(run, first.matched) for run in runs]
        off = 100 * max(abs(cost / costs[0] - 1) for cost in costs)
        sentences.append(
            f"\nEqual in {MATCHED[first.matched]}, to within {off:.1f} %; MACs are those of a result of 1280 × 720.\n"
        )
    return table(head, lines) + "".join(sentences)


ONE_ROW = "one row, and nothing to compare it with."
ONE_SEED = "one seed a row, which does not show which differences are significant."


def paired(scores: Sequence[Scores]) -> tuple[list[Difference], str]:
    """Differences from the first row within a seed, and a sentence on them.

    A randomised block design, with the seeds as blocks: what is left of a score after the mean of its row and the mean
    of its seed is chance, whose variance is pooled over the rows. For two rows this is the paired t-test.

    Args:
        scores: For each row its scores; seeds that not all rows have are left out.
    """
    seeds = sorted(set.intersection(*(set(own) for own in scores)))
    values = np.array([[own[seed] for seed in seeds] for own in scores])
    means = values.mean(axis=1)
    differences = (means[1:] - means[0]).tolist()
    freedom = (len(scores) - 1) * (len(seeds) - 1)
    if not freedom:
        return [Difference(difference, None) for difference in differences], ONE_SEED if differences else ONE_ROW
    chance = values - means[:, None] - values.mean(axis=0) + values.mean()
    deviation = math.sqrt(2 * np.square(chance).sum() / freedom / len(seeds))
    margin = float(students_t.ppf(0.975, freedom)) * deviation
    found = [Difference(difference, margin) for difference in differences]
    return found, (
        f"differences within a seed, with their 95 % confidence interval ({len(seeds)} seeds, {freedom} degrees of "
        f"freedom). Significant: {sum(difference.significant for difference in found)} of {len(found)}."
    )


def pooled(scores: Sequence[Scores]) -> tuple[list[Difference], str]:
    """Differences from the first row of independent runs, and a sentence on them.

    The spread is pooled over the rows: each one's variance over its seeds, averaged. A difference is
    significant, p < 0.05, if the means are further apart than Student's t times the standard error of a difference.

    Args:
        scores: For each row its scores.
    """
    rows = [list(own.values()) for own in scores]
    differences = [mean(own) - mean(rows[0]) for own in rows[1:]]
    freedom = sum(len(own) - 1 for own in rows)
    if not freedom:
        return [Difference(difference, None) for difference in differences], ONE_SEED
    spread = math.sqrt(sum(variance(own) * (len(own) - 1) for own in rows if len(own) > 1) / freedom)
    factor = float(students_t.ppf(0.975, freedom)) * spread
    margins = [factor * math.sqrt(1 / len(rows[0]) + 1 / len(own)) for own in rows[1:]]
    found = [Difference(difference, margin) for difference, margin in zip(differences, margins, strict=True)]
    seeds = " or ".join(str(count) for count in sorted({len(own) for own in rows}))
    thresholds = " or ".join(dict.fromkeys(f"{margin:.2f}" for margin in sorted(margins)))
    return found, (
        f"the seeds of a row spread by {spread:.3f} dB (standard deviation, {freedom} degrees of freedom). With "
        f"{seeds} seeds a row, a difference is significant (p < 0.05) from {thresholds} dB; "
        f"{sum(difference.significant for difference in found)} of {len(found)} are."
    )
