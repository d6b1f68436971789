"""Tables of the how-to pages and of README: what each block costs, what each form gains, MREN beside a few others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.candidates import BLOCKS, CONVOLUTION, Unavailable
from benchmarks.suites import BACKWARD, FORWARD
from benchmarks.timing import ratio
from sc_blocks.introspect import complexity

if TYPE_CHECKING:
    from benchmarks.report import Suite

Row = dict[str, Any]
OWN_NET = "MREN ×4"
# What README shows: network, form, and how it is called there.
IN_README = (
    (OWN_NET, "eager", "MREN ×4, as it is written"),
    (OWN_NET, "folded", "MREN ×4, folded"),
    (OWN_NET, "folded, onnx", "MREN ×4, folded, in ONNX Runtime"),
    ("IMDN ×4", "eager", "IMDN ×4"),
    ("IMDN ×4", "onnx", "IMDN ×4, in ONNX Runtime"),
    ("SPAN ×4", "eager", "SPAN ×4"),
    ("SAFMN ×4", "eager", "SAFMN ×4"),
    ("CARN ×4", "eager", "CARN ×4"),
    ("SwinIR-light ×4", "eager", "SwinIR-light ×4"),
)


def costs_tables(results: dict[str, list[Suite]]) -> str:
    """For each machine that the blocks were timed on, a line for each of them; empty where none was."""
    from benchmarks.report import digits, table  # there the tables are gathered, these too

    peaks = {
        (row["name"], row["form"]): row["peak_bytes"]
        for suite in results.get("memory", [])
        for row in suite.rows
        if row["name"] in BLOCKS and row.get("peak_bytes") is not None
    }
    parts = []
    for suite in results.get("blocks", []):
        plain = suite.row(CONVOLUTION, "eager", FORWARD)
        if plain is None:
            continue
        lines = []
        for row in suite.rows:
            name, form = row["name"], row["form"]
            if row["mode"] != FORWARD or "skipped" in row or form not in ("eager", "folded"):
                continue
            there_and_back = suite.row(name, form, BACKWARD)
            cells = [
                name if form == "eager" else f"{name}, {form}",
                *(_counted(row) if form == "eager" else ["", ""]),
                *(_median(each) for each in (row, there_and_back)),
                _kept(row) if there_and_back else "",
            ]
            peak = peaks.get((name, form))
            lines.append([*cells, digits(peak / 2**20) if peak is not None else ""])
        header = ["", "parameters", "GMACs", "forward", "forward + backward", "kept for it, MiB", "peak, MiB"]
        if not peaks:
            header, lines = header[:-1], [line[:-1] for line in lines]
        seconds = [each["seconds"]["median"] for each in (plain, suite.row(CONVOLUTION, "eager", BACKWARD)) if each]
        times = " and ".join(f"{digits(1000 * each)} ms" for each in seconds)
        parts.append(f"{suite.title} Times are those of the convolution, {times}.\n\n{table(header, lines)}")
    return "\n".join(parts)


def forms_tables(results: dict[str, list[Suite]]) -> str:
    """What each form takes beside the same thing as it is written: MREN first, then the blocks."""
    from benchmarks.report import digits, table

    memory = {
        (_threads(suite), row["name"], row["form"]): digits(row["peak_bytes"] / 2**20)
        for suite in results.get("memory", [])
        for row in suite.rows
        if row.get("peak_bytes") is not None
    }
    parts = []
    for suite in results.get("nets", []):
        lines = []
        eager = suite.row(OWN_NET, "eager")
        for row in suite.rows:
            if row["name"] == OWN_NET and "rounds" in row and eager is not None:
                times = digits(ratio(row["rounds"], eager["rounds"]).median)
                peak = memory.get((_threads(suite), row["name"], row["form"]), "")
                lines.append([row["form"], digits(1000 * row["seconds"]["median"]), times, peak])
        if lines:
            text = table(["form", "ms", "times eager", "peak, MiB"], lines)
            sizes = f"{OWN_NET} on an image of {_size(suite.rows, OWN_NET)}"
            sizes += "".join(f", its memory of {_size(each.rows, OWN_NET)}" for each in results.get("memory", [])[:1])
            parts.append(f"{sizes}. {suite.title}\n\n{text}")
    for suite in results.get("blocks", []):
        lines = []
        for row in suite.rows:
            if row["mode"] != FORWARD or row["form"] == "eager" or "rounds" not in row:
                continue
            cells = []
            for mode in (FORWARD, BACKWARD):
                this, eager = (suite.row(row["name"], form, mode) for form in (row["form"], "eager"))
                cells.append(digits(ratio(this["rounds"], eager["rounds"]).median) if this and eager else "")
            lines.append([row["name"], row["form"], *cells])
        if lines:
            text = table(["", "form", "forward", "forward + backward"], lines)
            parts.append(f"Blocks, times the same block eager. {suite.title}\n\n{text}")
    return "\n".join(parts)


def readme_table(results: dict[str, list[Suite]]) -> str:
    """A few networks in milliseconds and times IMDN; from the first machine that they were timed on."""
    from benchmarks.report import digits, table

    suites = results.get("nets", [])[:1]
    lines = [
        [called, f"{row['parameters']:,}", digits(1000 * row["seconds"]["median"]), digits(row["ratio"]["median"])]
        for suite in suites
        for name, form, called in IN_README
        if (row := suite.row(name, form)) and "rounds" in row
    ]
    title = "".join(f"An image of {_size(suite.rows, OWN_NET)}, {suite.title}\n\n" for suite in suites)
    return title + table(["", "parameters", "ms", "times IMDN"], lines)


def kept_for_backward(block: nn.Module, size: Sequence[int]) -> int:
    """Bytes that a training step holds between forward and backward: what autograd saves, parameters apart.

    Counted once for each piece of memory, on the ``meta`` device; a block's own input counts where it is saved.
    """
    block = block.to("meta")
    ours = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that no address is given out twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ours:
            saved[storage._cdata] = storage
        return tensor

    x = torch.empty(tuple(size), device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(x)
    return sum(storage.nbytes() for storage in saved.values())


def _counted(row: Row) -> list[str]:
    """Parameters and multiply-accumulates, counted anew where the block can be built here."""
    try:
        cost = complexity(BLOCKS[row["name"]]().to("meta"), row["size"])
        parameters, macs = cost.parameters, cost.macs
    except Unavailable:
        parameters, macs = row["parameters"], row["macs"]
    return [f"{parameters:,}", f"{macs / 1e9:.3f}"]


def _kept(row: Row) -> str:
    from benchmarks.report import digits

    try:
        return digits(kept_for_backward(BLOCKS[row["name"]](), row["size"]) / 2**20)
    except Unavailable:
        return ""


def _median(row: Row | None) -> str:
    from benchmarks.report import digits

    return digits(row["ratio"]["median"]) if row and "ratio" in row else ""


def _size(rows: Sequence[Row], name: str) -> str:
    height, width = next(row["size"][-2:] for row in rows if row["name"] == name)
    return f"{width} × {height}"


def _threads(suite: Suite) -> tuple[Any, ...]:
    machine = suite.machine
    return suite.settings["threads"], machine["cpu"], machine["instructions"], machine["gpu"]
