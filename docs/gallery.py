"""The cards of the landing page, made from the committed counts, times and comparisons while the site is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from examples.compare import tables
from examples.compare.tables import Run, read_runs
from examples.drop_in.report import RESULTS as HOSTS
from examples.drop_in.variants import LOCAL, PLAIN, is_local
from examples.markdown import signed
from examples.mren.ablate import TABLES
from examples.mren.report import RESULTS as ABLATIONS

CONVOLUTION = "3×3 convolution"
UNCOMPARED = "Not compared in a network yet."


@dataclass(frozen=True)
class Card:
    """Text of a block's card, besides the numbers."""

    title: str
    figure: str
    page: str
    purpose: str
    shape: str
    counted: str
    """Name of the block in the committed counts and times."""
    verdict: Callable[[], str] = lambda: UNCOMPARED


def compared(
    file: Path,
    base: str,
    row: str,
    what: str,
    against: str,
    *,
    among: Callable[[str], bool] = lambda name: True,
    datasets: Sequence[str] = ("Set5",),
) -> Callable[[], str]:
    """Return a function that writes a sentence on the difference of two rows, with 95 % confidence intervals.

    Args:
        file: The runs of a comparison.
        base: The row to compare with.
        row: The row of the block.
        what: The network, for the sentence.
        against: What ``base`` has in place of the block.
        among: Whether a row of this name counts for the estimate of the random variation.
        datasets: The test sets.
    """

    def difference_on(dataset: str, runs: Sequence[Run]) -> str:
        names = dict.fromkeys(run.name for run in runs if run.name in (base, row) or among(run.name))
        if not {base, row} <= names.keys():
            return UNCOMPARED
        order = [base, row, *(name for name in names if name not in (base, row))]
        difference, *_ = tables.compared(runs, order).differences
        if difference.margin is None:
            return f"compared on {dataset} with one seed only"
        printed = f"{signed(difference.mean, 2)} ± {difference.margin:.2f}"
        outcome = "significant" if difference.significant else "not significant"
        return f"{printed} dB on {dataset}, {outcome}"

    def verdict() -> str:
        runs = read_runs(file) if file.exists() else []
        found = [difference_on(name, [run for run in runs if run.dataset == name]) for name in datasets]
        return UNCOMPARED if UNCOMPARED in found else f"In {what}, compared with {against}: {'; '.join(found)}."

    return verdict


def in_table_4(name: str) -> bool:
    """Whether an ablation is a row of table 4."""
    return name in {variant.key for variant in TABLES["4"].variants}


def attention(row: str) -> Callable[[], str]:
    """Gain of a channel attention with local statistics in the U-Net."""
    return compared(
        HOSTS / "unet_denoise.csv",
        PLAIN,
        f"{row}+{LOCAL}",
        "a denoising U-Net with local statistics",
        "no attention",
        among=is_local,
        datasets=("Set5", "Set14"),
    )


CARDS = (
    Card(
        "SCACB",
        "scacb",
        "reference/scacb",
        "A residual block with a spatial and a channel part, each with three receptive fields.",
        "C → C",
        "SCACB",
        compared(HOSTS / "rfdn_sr.csv", "plain", "scacb", "a distillation network", "plain convolutions"),
    ),
    Card(
        "DRACB",
        "dracb",
        "reference/dracb",
        "Distils the features of a stage and gates them with their own attention map.",
        "C → C/4, and a map",
        "DRACB",
        compared(
            ABLATIONS / "parts.csv",
            "gate=False",
            "default",
            "MREN-S ×4",
            "DRACBs without the gate",
            among=in_table_4,
        ),
    ),
    Card(
        "DRACBChain",
        "chain",
        "reference/dracb",
        "One DRACB for each stage of a network; each passes its attention map to the next.",
        "4 × C → 4 × C/4",
        "DRACBChain of 4",
        compared(
            ABLATIONS / "parts.csv",
            "communication=0",
            "default",
            "MREN-S ×4",
            "DRACBs that pass no maps",
            among=in_table_4,
        ),
    ),
    Card(
        "WSILB",
        "wsilb",
        "reference/wsilb",
        "Channel attention from the contrast and the maximum of each channel.",
        "C → C",
        "WSILB",
        attention("wsilb"),
    ),
    Card(
        "WSILB-V",
        "wsilb",
        "reference/wsilb",
        "WSILB with a bottleneck: half the parameters.",
        "C → C",
        "WSILBV",
        attention("wsilbv"),
    ),
    Card(
        "RBWA",
        "rbwa",
        "reference/rbwa",
        "Upsampling with attention, for the end of a network.",
        "C × H × W → C × 2H × 2W",
        "RBWA to twice the size",
        compared(HOSTS / "imdn_tail.csv", "plain", "rbwa", "IMDN ×4", "a pixel shuffle"),
    ),
    Card(
        "MREB",
        "mreb",
        "reference/mreb",
        "Three SCACBs, a chain of four DRACBs and WSILB-V as one block.",
        "C → C",
        "MREB",
        compared(
            ABLATIONS / "trunk.csv", "trunk=IMDB", "default", "MREN-S ×4", "IMDN's blocks, equal in parameters and time"
        ),
    ),
)


def text() -> str:
    """The gallery, in Markdown."""
    loaded = results.load()
    (counts,) = loaded["counts"]
    times = next(suite for suite in loaded["blocks"] if suite.settings["threads"] == 1)
    cards = "\n".join(_card(card, counts, times) for card in CARDS)
    where, torch = f"{times.place} of {times.machine['cpu']}", times.machine["versions"]["torch"]
    note = (
        "Cost relative to a 3×3 convolution from 60 to 60 channels on a map of 60 × 180 × 320; time on "
        f"{where}, torch {torch}. Differences are those of short training runs; "
        "[Choose a block](how-to/choose-a-block.md) links to all comparisons."
    )
    return f"::::::{{grid}} 1 2 2 3\n:gutter: 3\n:class-container: gallery\n\n{cards}\n::::::\n\n{note}\n"


def _card(card: Card, counts: results.Suite, times: results.Suite) -> str:
    count, plain = counts.row(card.counted, "eager"), counts.row(CONVOLUTION, "eager")
    time = times.row(card.counted, "eager", "forward")
    if count is None or plain is None or time is None:
        raise ValueError(f"no committed count or time of {card.counted}; run python -m benchmarks.run.")
    images = "\n".join(
        f"```{{image}} figures/{card.figure}.{theme}.svg\n:class: only-{theme}\n:alt:\n```"
        for theme in ("light", "dark")
    )
    share = count["macs"] / plain["macs"]
    macs = f"{share:.2f} ×" if share >= 0.005 else "<0.01 ×"
    return f"""\
:::::{{grid-item-card}} {card.title}
:link: {card.page}
:link-type: doc

{images}

{card.purpose}

`{card.shape}`, {count["parameters"]:,} parameters; {macs} the MACs and {time["ratio"]["median"]:.2f} × the time
of a 3×3 convolution

*{card.verdict()}*
:::::
"""
