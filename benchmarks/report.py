"""Write the tables and plots of the documentation from the committed results: ``python -m benchmarks.report``.

It reads ``benchmarks/results`` and writes ``docs/results/benchmarks/*.md`` and ``*.svg``, tables of
``docs/results/engines``, and the one in ``README.md``. Ratios are taken within the rounds here, too. A table of several
machines has one part for each.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks import plots
from benchmarks.candidates import CONVOLUTION, ENGINES, FOLDED_BLOCKS, LOCAL, REFERENCE_NET
from benchmarks.precision import read_current as read_precision
from benchmarks.results import Results, Row, Suite, load
from benchmarks.runner import BACKWARD, FORWARD
from benchmarks.suites import CONVERTED
from examples import markdown
from examples.markdown import digits, mib, signed, spread, with_part
from examples.mren.cli import run_command
from examples.mren.files import write_text
from examples.timing import Summary, ratio

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "results" / "benchmarks"
README = ROOT / "README.md"
COMMAND = "benchmarks.report"
NOT_MEASURED = "Not measured.\n"
OURS = "MREN ×4"
# Columns of words; all others hold numbers.
table = partial(markdown.table, text=("", "form", "code", "machine", "engine", "pass"))
NOISE = 1.02  # slower: a ratio is above this in at least three of four rounds

# What a user chooses between: network, form, and its name in the table.
CHOICES = (
    (OURS, "eager", "MREN ×4"),
    (OURS, "folded", "MREN ×4, folded"),
    (OURS, "folded, compiled", "MREN ×4, folded, compiled"),
    (OURS, "padded, folded, openvino", "MREN ×4, folded, in OpenVINO"),
    ("MREN-S ×4", "folded", "MREN-S ×4, folded"),
    ("MREN-S ×4", "padded, folded, openvino", "MREN-S ×4, folded, in OpenVINO"),
    (REFERENCE_NET, "eager", "IMDN ×4"),
    (REFERENCE_NET, "openvino", "IMDN ×4, in OpenVINO"),
    ("SPAN ×4", "eager", "SPAN ×4"),
    ("SAFMN ×4", "eager", "SAFMN ×4"),
    ("SwinIR-light ×4", "eager", "SwinIR-light ×4"),
)
BLOCK_PAIRS = (
    ("WSILBV", "CCA of IMDN"),
    ("SCACB", CONVOLUTION),
    ("DRACB", CONVOLUTION),
    ("MREB", "RFDB of RFDN"),
    ("MREB", "IMDB of IMDN"),
)

Comparison = tuple[str, str, Summary]
"""Two things, of which the first is ours, the machine, and the ratio of their times or memory."""


def comparisons(results: Results) -> Iterator[Comparison]:
    """How long, and how much memory, ours takes beside something else; suite by suite."""
    for suite in results.get("nets", []):
        best, theirs = suite.best(OURS), suite.best(REFERENCE_NET)
        for form in ("eager", "channels_last", "compiled", "channels_last, compiled"):
            yield from _compare(suite, suite.row(OURS, form), suite.row(REFERENCE_NET, form))
        yield from _compare(suite, best, theirs)
        yield from _compare(suite, suite.best(OURS, onnx=True), suite.row(REFERENCE_NET, "onnx"))
        yield from _compare(suite, suite.row(OURS, "folded, bf16"), suite.row(REFERENCE_NET, "channels_last, bf16"))
        for whole_map, local in LOCAL.items():
            yield from _compare(suite, suite.row(OURS, local), suite.row(OURS, whole_map))
        for row in suite.rows:
            if row["form"] == "eager" and row["name"].endswith("×4") and not row["name"].startswith("MREN"):
                yield from _compare(suite, best, row)
    for suite in results.get("memory", []):
        ran = [
            row for row in suite.rows if row.get("peak_bytes") and not {"onnx", "bf16"} & set(row["form"].split(", "))
        ]
        mine = [row for row in ran if row["name"] == OURS]
        reference = suite.row(REFERENCE_NET, "eager")
        if mine and reference:
            least = min(mine, key=lambda row: row["peak_bytes"])
            times = least["peak_bytes"] / reference["peak_bytes"]
            label = f"peak memory: {_label(least)} / {_label(reference)}"
            yield label, suite.place, Summary(times, times, times)
    for suite in results.get("blocks", []):
        for mode, (mine, other) in product((FORWARD, BACKWARD), BLOCK_PAIRS):
            yield from _compare(suite, suite.row(mine, "eager", mode), suite.row(other, "eager", mode))
        for name in FOLDED_BLOCKS:
            yield from _compare(suite, suite.row(name, "folded", FORWARD), suite.row(name, "eager", FORWARD))
    for suite in results.get("gpu", []):
        names = (OURS, REFERENCE_NET)
        single = [row for row in suite.rows if row["name"] in names and row["size"][0] == 1 and "rounds" in row]
        fastest = [min((row for row in single if row["name"] == name), key=_seconds, default=None) for name in names]
        yield from _compare(suite, *fastest)
    for name in ("training", "engines", "fold"):
        for suite in results.get(name, []):
            for row in suite.rows:
                if name != "engines" or row["name"].startswith("MREN"):
                    yield from _to_reference(row, suite)


def _compare(suite: Suite, mine: Row | None, other: Row | None) -> Iterator[Comparison]:
    if mine and other and mine is not other and "rounds" in mine and "rounds" in other:
        yield f"{_label(mine)} / {_label(other)}", suite.place, ratio(mine["rounds"], other["rounds"])


def _to_reference(row: Row, suite: Suite) -> Iterator[Comparison]:
    """A row of ours beside its own reference; nothing for the reference itself, and for other code."""
    times = dict(row.get("ratio", {"to": "", "q1": 1, "q3": 1}))
    to = ", ".join(map(_code, times.pop("to").split(" | ")[:2]))
    if not times["q1"] == times["q3"] == 1 and row.get("code", "this code") == "this code":
        size = f" at {_size(row)}" if "size" in row else ""
        yield f"{_label(row)}{size} / {to}", suite.place, Summary(**times)


def is_worse(comparison: Comparison) -> bool:
    """Whether ours takes more, by more than noise."""
    return comparison[2].q1 > NOISE


def comparison_table(found: Iterable[Comparison]) -> str:
    """Comparisons in a table, each once: the best forms may be of the same kind."""
    lines = [[what, place, spread(vars(times))] for what, place, times in dict.fromkeys(found)]
    return table(["", "machine", "times"], lines) or NOT_MEASURED


def choices_table(results: Results, *, memory: bool = True) -> str:
    """What a user chooses between, in milliseconds, times IMDN in the same engine, and memory; on the first machine."""
    suite = next(iter(results.get("nets", [])), None)
    if suite is None:
        return NOT_MEASURED
    # OpenVINO runs in the suite of the engines, at the same size.
    suites = [suite, *(each for each in results.get("engines", []) if each.place == suite.place)]
    peaks = {(row["name"], row["form"]): row.get("peak_bytes") for row in _rows(results, "memory", suite.place)}
    lines = [
        [
            label,
            _parameters(row),
            _ms(row),
            _times_reference(row, found),
            mib(peaks.get((name, form))) if memory else "",
        ]
        for name, form, label in CHOICES
        for found in [each for each in suites if (each.row(name, form) or {}).get("rounds")][:1]
        if (row := found.row(name, form))
    ]
    title = f"An image of {_size(suite.row(OURS, 'eager') or suite.rows[0])}. {suite.title}"
    if len(suites) > 1:
        title += " OpenVINO: another run on that machine."
    return f"{title}\n\n{table(['', 'parameters', 'ms', 'times IMDN, same engine', 'peak, MiB'], lines)}"


def costs_table(suite: Suite, results: Results) -> str:
    """Each block beside the convolution: what it computes and keeps, and how long it takes."""
    counts = {row["name"]: row for row in _rows(results, "counts") if "skipped" not in row}
    lines = []
    for row in suite.rows:
        name, form = row["name"], row["form"]
        if row["mode"] == FORWARD and "skipped" not in row and form in ("eager", "folded"):
            counted = counts.get(name, row) if form == "eager" else {}
            numbers = [_median(row), _median(suite.row(name, form, BACKWARD)), mib(counted.get("kept_bytes"))]
            numbers += [_parameters(counted), _gmacs(counted, 3)]
            lines.append([name if form == "eager" else f"{name}, {form}", *numbers])
    plain = {mode.replace("+", " and "): suite.row(CONVOLUTION, "eager", mode) for mode in MODES}
    times = ", ".join(f"{_ms(row)} ms {mode}" for mode, row in plain.items() if row)
    header = ["", "forward", "forward + backward", "saved, MiB", "parameters", "GMACs"]
    return f"Times are relative to the convolution's: {times}.\n\n{table(header, lines)}"


def forms_tables(results: Results) -> str:
    """How long each form takes beside the same network or block as it is written: MREN first, then the blocks."""
    parts = []
    for suite in results.get("nets", []):
        if (eager := suite.row(OURS, "eager")) is None:
            continue
        memory = {row["form"]: row for row in _rows(results, "memory", suite.place) if row["name"] == OURS}
        lines = [
            [row["form"], _ms(row), _times(row, eager), mib(memory.get(row["form"], {}).get("peak_bytes"))]
            for row in suite.rows
            if row["name"] == OURS and "rounds" in row
        ]
        sizes = f"{OURS} on an image of {_size(eager)}"
        sizes += f", its memory of {_size(memory['eager'])}" if "eager" in memory else ""
        parts.append(f"{sizes}. {suite.title}\n\n{table(['form', 'ms', 'times eager', 'peak, MiB'], lines)}")
    for suite in results.get("blocks", []):
        lines = []
        for row in suite.rows:
            if row["mode"] == FORWARD and row["form"] != "eager" and "rounds" in row:
                pairs = [[suite.row(row["name"], form, mode) for form in (row["form"], "eager")] for mode in MODES]
                lines.append([row["name"], row["form"], *(_times(*pair) for pair in pairs)])
        text = table(["", "form", "forward", "forward + backward"], lines)
        parts.append(f"Blocks, times the same block eager. {suite.title}\n\n{text}")
    return "\n".join(parts) or NOT_MEASURED


def fold_table(suite: Suite, _: Results) -> str:
    """Folded and unfolded, and whether anything folded is slower."""
    found = [each for row in suite.rows for each in _to_reference(row, suite)]
    slower = sum(map(is_worse, found))
    text = f"**{f'{slower} of {len(found)}' if slower else 'Nothing'} folded is slower**"
    text += f" by more than {100 * (NOISE - 1):.0f} % in at least three of four rounds."
    worst = max(found, key=lambda each: each[2].median, default=None)
    text += f" The highest ratio: {worst[0]}, {spread(vars(worst[2]))}." if worst else ""
    peaks = {(row["name"], *row["size"]): row.get("peak_bytes") for row in suite.rows if row["form"] == "eager"}
    lines = []
    for row in suite.rows:
        before = peaks.get((row["name"], *row["size"]))
        if row["form"] == "folded":
            memory = digits(row["peak_bytes"] / before) if row.get("peak_bytes") and before else ""
            lines.append([row["name"], _size(row), _spread_ms(row), _ratio(row), memory])
    return f"{text}\n\n{table(['', 'input', 'ms, folded', 'times unfolded', 'memory, times unfolded'], lines)}"


def precision_table() -> str:
    """How far each precision of PyTorch is from float64."""
    rows = [row for row in read_precision() if row["network"] == OURS and row["form"] not in ENGINES]
    lines = [
        [row["form"], *(_small(float(row[key])) for key in ("largest", "rms")),
         f"{100 * float(row['bytes_changed']):.1f} %", f"{float(row['psnr']):.3f}"]
        for row in rows
    ]  # fmt: skip
    return table(["form", "largest error", "root mean square", "bytes that differ", "PSNR, dB"], lines) or NOT_MEASURED


def engine_precision_table(results: Results) -> str:
    """What each precision of another engine loses, and how long it takes."""
    rows = read_precision()
    exact = {row["network"]: float(row["psnr"]) for row in rows if row["form"] == "float64"}
    # All times are of one run, so that they can be compared.
    timed = next((suite.rows for suite in results.get("engines", []) if suite.row(OURS, "openvino int8")), [])
    times = {(row["name"], row["engine"]): _ms(row) for row in timed if "seconds" in row}
    lines = []
    for row in rows:
        key, psnr = (row["network"], row["form"]), float(row["psnr"])
        if row["form"] in ENGINES:
            lines.append([*key, times.get(key, ""), f"{psnr:.3f}", signed(psnr - exact[row["network"]], 3)])
    return table(["", "engine", "ms", "PSNR, dB", "difference from float64, dB"], lines) or NOT_MEASURED


def pivot_table(suite: Suite, rows: Iterable[Row], column: str) -> str:
    """Milliseconds of networks, one column each, in lines by a value of their rows."""
    found = {(row["name"], row[column]): _ms(row) for row in rows if "seconds" in row}
    if not found:
        return f"{suite.title}\n\n{NOT_MEASURED}"
    names, values = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
    lines = [[value, *(found.get((name, value), "") for name in names)] for value in values]
    return f"{suite.title}\n\n{table([column, *names], lines)}"


def engine_tables(results: Results) -> dict[str, str]:
    """The tables of the pages of engines; those of times where these were measured."""
    texts = {"precision.md": engine_precision_table(results)}
    for suite in results.get("engines", [])[:1]:
        texts["times.md"] = pivot_table(suite, filter(_is_as_upscaling_runs_it, suite.rows), "engine")
        if all(suite.row(OURS, form) for form in CONVERTED):
            ours = [row for row in suite.rows if row["name"].startswith("MREN") and row["engine"] in CONVERTED]
            texts["folded.md"] = pivot_table(suite, ours, "form")
    return texts


def _is_as_upscaling_runs_it(row: Row) -> bool:
    """Whether a row is of a form that ``upscale --engine`` runs; of two such rows, a table keeps the last."""
    return row["engine"] != "onnx" or "folded" not in row["form"].split(", ")


def arithmetic_rate(row: Row, suite: Suite) -> Summary | None:
    """MACs per second beside those of a plain convolution in the same rounds; MACs of the network as it was written."""
    plain = suite.best(CONVOLUTION)
    if plain is None or not row.get("macs") or "rounds" not in row or row["name"] == CONVOLUTION:
        return None
    mine, other = ([each["macs"] / seconds for seconds in each["rounds"]] for each in (row, plain))
    return ratio(mine, other)


def _rows(results: Results, suite: str, place: str | None = None) -> list[Row]:
    return [row for each in results.get(suite, []) if place in (None, each.place) for row in each.rows]


def _times_reference(row: Row, suite: Suite) -> str:
    """Times the reference in the same engine: eager or compiled torch, or OpenVINO."""
    engine = next((step for step in ("openvino", "compiled") if step in row["form"].split(", ")), None)
    return _times(row, suite.row(REFERENCE_NET, engine)) if engine else _median(row)


def _code(code: str) -> str:
    return "earlier code" if code.startswith("code of") else code


def _label(row: Row) -> str:
    """The name of a row in a sentence."""
    parts = [row["name"], row["form"], row.get("mode", "").replace("+", " + ")]
    parts += [_patches(row), _code(row["code"])] if "code" in row else []
    return ", ".join(filter(None, parts))


def _patches(row: Row) -> str:
    return "{0} of {1} × {1}".format(*row["patches"])


def _batch(row: Row) -> str:
    if "patches" in row:
        return str(row["patches"][0])
    return str(row["size"][0]) if "frames_per_second" in row else ""


def _tiles(row: Row) -> str:
    return f"tiles of {row['tile']}" if row["tile"] else ""


def _size(row: Row) -> str:
    return f"{row['size'][-1]} × {row['size'][-2]}"


def _parameters(row: Row) -> str:
    return f"{row['parameters']:,}" if "parameters" in row else ""


def _gmacs(row: Row, decimals: int | None = None) -> str:
    if not row.get("macs"):
        return ""
    return digits(row["macs"] / 1e9) if decimals is None else f"{row['macs'] / 1e9:.{decimals}f}"


def _seconds(row: Row) -> float:
    return row["seconds"]["median"]


def _ms(row: Row) -> str:
    return digits(1000 * _seconds(row))


def _spread_ms(row: Row) -> str:
    """Milliseconds, or why there are none."""
    return spread(row["seconds"], 1000) if "seconds" in row else _skip_reason(row)


def _skip_reason(row: Row) -> str:
    return f"not run: {row['skipped']}" if row.get("skipped") else ""


def _ratio(row: Row) -> str:
    return spread(row["ratio"]) if "ratio" in row else ""


def _median(row: Row | None) -> str:
    return digits(row["ratio"]["median"]) if row and "ratio" in row else ""


def _times(row: Row | None, other: Row | None) -> str:
    if not row or not other or "rounds" not in row or "rounds" not in other:
        return ""
    return digits(ratio(row["rounds"], other["rounds"]).median)


def _backward(row: Row, suite: Suite) -> Row:
    return suite.row(row["name"], row["form"], BACKWARD) or {}


def _memory(row: Row, suite: Suite) -> str:
    reference = suite.row(REFERENCE_NET, "eager")
    return digits(row["peak_bytes"] / reference["peak_bytes"]) if row.get("peak_bytes") and reference else ""


def _number(key: str) -> Callable[[Row, Suite], str]:
    return lambda row, _: digits(row[key]) if key in row else ""


def _small(number: float) -> str:
    return "< 0.001" if 0 < number < 0.001 else f"{number:.2f}" if number >= 0.1 else f"{number:.3f}"


MODES = (FORWARD, BACKWARD)
Column = Callable[[Row, Suite], str]
NAME: dict[str, Column] = {"": lambda row, _: row["name"]}
FORM: dict[str, Column] = NAME | {"form": lambda row, _: row["form"]}
COUNTED: dict[str, Column] = {"parameters": lambda row, _: _parameters(row), "GMACs": lambda row, _: _gmacs(row)}
MS: dict[str, Column] = {"ms": lambda row, _: _spread_ms(row)}
# Tables with a line for each row of a suite: the columns, each with the text of its cells. Measurements come first,
# because a phone shows only the first columns.
COLUMNS: dict[str, Mapping[str, Column]] = {
    "blocks": FORM
    | {
        "forward, ms": lambda row, _: _spread_ms(row),
        "times": lambda row, _: _ratio(row),
        "forward + backward, ms": lambda row, suite: _spread_ms(_backward(row, suite)),
        "times, with backward": lambda row, suite: _ratio(_backward(row, suite)),
    },
    "nets": FORM
    | MS
    | {
        f"times {REFERENCE_NET} eager": lambda row, _: _ratio(row),
        "rate": lambda row, suite: digits(rate.median) if (rate := arithmetic_rate(row, suite)) else "",
    }
    | COUNTED,
    "memory": FORM
    | {
        "MiB": lambda row, _: mib(row.get("peak_bytes")) or _skip_reason(row),
        f"times {REFERENCE_NET} eager": _memory,
        "MiB, default allocator": lambda row, _: mib(row.get("peak_bytes_with_default_allocator")),
    },
    "growth": NAME
    | {
        "form": lambda row, _: ", ".join(filter(None, (row["form"], _tiles(row), _skip_reason(row)))),
        "input": lambda row, _: _size(row),
        "s": lambda row, _: spread(row["seconds"], 1) if "seconds" in row else "",
        "MiB": lambda row, _: mib(row.get("peak_bytes")),
    },
    "training": {"patches": lambda row, _: _patches(row), "code": lambda row, _: _code(row["code"])}
    | {"form": FORM["form"]}
    | MS
    | {
        "times the reference": lambda row, _: _ratio(row),
        "first loss": lambda row, _: f"{row['first_loss']:.5f}" if "first_loss" in row else "",
    },
    "engines": FORM
    | MS
    | {
        "times IMDN, same engine": lambda row, _: _ratio(row),
        "times IMDN eager": lambda row, suite: _times(row, suite.row(REFERENCE_NET, "eager")),
    },
    "gpu": {"": lambda row, _: row["name"] + (" on {1} × {1}".format(*row["patches"]) if "patches" in row else "")}
    | {"form": FORM["form"]}
    | {"frames/s": _number("frames_per_second")}
    | MS
    | {
        "steps/s": _number("steps_per_second"),
        "batch": lambda row, _: _batch(row),
        "fraction of measured limit": _number("fraction_of_measured"),
        "fraction of data-sheet limit": _number("fraction_of_data_sheet"),
    },
}


def rows_table(name: str, suite: Suite, _: Results) -> str:
    """The table of :data:`COLUMNS` for a suite of that name."""
    columns = COLUMNS[name]
    rows = [row for row in suite.rows if row.get("mode") != BACKWARD]
    return table(list(columns), [[cell(row, suite) for cell in columns.values()] for row in rows])


def gpu_table(suite: Suite, results: Results) -> str:
    """The rows that ran on a GPU, and how many did not, for lack of time or of a package."""
    ran = replace(suite, rows=[row for row in suite.rows if "rounds" in row])
    budget = suite.settings.get("budget")  # not in older files
    late = f" did not fit into the {budget:g} seconds" if budget else " did not fit into the time"
    short = ("no time was left", "not prepared within")
    why = [row["skipped"] for row in suite.rows if "skipped" in row]
    counts = Counter(late if reason.startswith(short) else f", because {reason}" for reason in why)
    others = "; ".join(f"{count}{reason}" for reason, count in counts.items())
    return rows_table("gpu", ran, results) + (f"\nForms that were not run: {others}.\n" if others else "")


def tables(results: Results) -> dict[str, str]:
    """Every generated Markdown file: its name and its text."""
    texts = {
        "choices.md": choices_table(results),
        "losses.md": comparison_table(filter(is_worse, comparisons(results))),
        "summary.md": comparison_table(comparisons(results)),
        "forms.md": forms_tables(results),
        "precision.md": precision_table(),
    }
    drawn: dict[str, Callable[[Suite, Results], str]] = {name: partial(rows_table, name) for name in COLUMNS}
    drawn |= {"fold": fold_table, "costs": costs_table, "gpu": gpu_table}
    for name, draw in drawn.items():
        suites = results.get("blocks" if name == "costs" else name, [])
        texts[f"{name}.md"] = "\n".join(f"{each.title}\n\n{draw(each, results)}" for each in suites) or NOT_MEASURED
    return texts


def pages(results: Results) -> dict[Path, str]:
    """Every file of Markdown that is written, in whole or in part, with its text."""
    return {
        **{DOCS / name: text for name, text in tables(results).items()},
        **{DOCS.parent / "engines" / name: text for name, text in engine_tables(results).items()},
        README: with_part(README.read_text(encoding="utf-8"), COMMAND, choices_table(results, memory=False)),
    }


def run(_: argparse.Namespace) -> None:
    """Run the command."""
    results = load()
    for file, text in pages(results).items():
        write_text(file, text)
        print(file)
    for name, draw in plots.PLOTS.items():
        draw(results, DOCS / name)
        print(DOCS / name)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
