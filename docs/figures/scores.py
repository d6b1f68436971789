"""Score the shipped ×4 weights in windows, in tiles, by self-ensemble and in exported files, for tables of pages.

``python -m docs.figures.scores`` writes ``docs/results/shipped/*.md`` from ``measured/scores.json``; ``--measure``
first regenerates that file, in a few minutes on one core. An interrupted measurement resumes unless the weights have
changed. The test sets and the calibration images for int8 are read from ``../shared/data``, or ``SC_BLOCKS_DATA``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from docs.figures.plotting import MEASURED, command, read_numbers, write_numbers
from examples import markdown
from examples.mren.data import imresize, list_images, mod_crop, photograph
from examples.mren.ensemble import SelfEnsemble, Upscale, network_upscaler
from examples.mren.evaluate import Row, evaluate, mean_score
from examples.mren.export import export
from examples.mren.files import sha256, write_text
from examples.mren.fold import fold_mren
from examples.mren.metrics import psnr
from examples.mren.model import load_mren, weights_path
from examples.mren.onnxfile import onnx_upscaler
from examples.mren.quantize import calibration_images
from sc_blocks import to_local

NAME = "scores"
SCALE = 4
TRAINED_ON = 80  # side of the low-resolution patches in the last training stage
ROOT = Path(__file__).parents[2]
TABLES = ROOT / "docs" / "results" / "shipped"
DATA = Path(os.environ.get("SC_BLOCKS_DATA", ROOT.parent / "shared" / "data"))
PHOTOGRAPHS = ("chelsea", "coffee")
SOME = "Urban100, every tenth image"


def in_settings() -> dict[str, Upscale]:
    """The network with whole-map and windowed statistics, on whole images and in tiles."""
    net, local = load_mren(SCALE), load_mren(SCALE)
    to_local(local, torch.zeros(1, 3, TRAINED_ON, TRAINED_ON))
    return {
        "whole": network_upscaler(net, "cpu"),
        "tiles of 128": network_upscaler(net, "cpu", tile=128, scale=SCALE),
        "tiles of 64": network_upscaler(net, "cpu", tile=64, scale=SCALE),
        "windows": network_upscaler(local, "cpu"),
        "windows, tiles of 64": network_upscaler(local, "cpu", tile=64, scale=SCALE),
    }


def means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of each method, and the range over images of its PSNR difference from the first method."""
    methods = list(dict.fromkeys(row.method for row in rows))
    own = {method: [row for row in rows if row.method == method] for method in methods}
    table = {}
    for method, scored in own.items():
        changes = [a.score.psnr - b.score.psnr for a, b in zip(scored, own[methods[0]], strict=True)]
        mean = mean_score(scored)
        table[method] = {"psnr": mean.psnr, "ssim": mean.ssim, "least": min(changes), "most": max(changes)}
    return table


def exported(folder: Path) -> dict[str, dict[str, float]]:
    """Files in each precision: megabytes, distance from torch, and scores on Set5."""
    files = {
        "float32": ("float32", False),
        "float32, folded": ("float32", True),
        "float16": ("float16", False),
        "int8": ("int8", False),
    }
    table = {}
    for name, (precision, fold) in files.items():
        file = folder / f"{len(table)}.onnx"
        calibration = calibration_images(DATA / "train" / "bsds500", SCALE) if precision == "int8" else []
        metadata = {"scale": str(SCALE)}
        away = export(
            load_mren(SCALE), file, precision=precision, fold=fold, calibration=calibration, metadata=metadata
        )
        rows = list(evaluate(list_images(DATA / "test" / "Set5"), SCALE, {name: onnx_upscaler(file, SCALE)}))
        mean = mean_score(rows)
        table[name] = {"megabytes": file.stat().st_size / 1e6, "psnr": mean.psnr, "ssim": mean.ssim, "away": away}
        print(name, table[name], flush=True)
    return table


def photographs(settings: dict[str, Upscale]) -> dict[str, dict]:
    """Sizes and PSNR of photographs from scikit-image."""
    table = {}
    for name in PHOTOGRAPHS:
        original = mod_crop(photograph(name), SCALE)
        small = imresize(original, 1 / SCALE)
        scores = {what: psnr(settings[what](small), original, SCALE) for what in ("whole", "windows", "tiles of 64")}
        table[name] = {"size": list(small.shape[:0:-1]), **scores}
    return table


def measure() -> None:
    if not (DATA / "test" / "Set5").is_dir():
        raise FileNotFoundError(f"no test sets at {DATA}; set SC_BLOCKS_DATA to their folder.")
    settings = in_settings()
    folded = fold_mren(load_mren(SCALE))
    orientations = {
        "one": network_upscaler(folded, "cpu"),
        "eight": network_upscaler(SelfEnsemble(folded), "cpu"),
    }
    tiles = {name: settings[name] for name in ("whole", "tiles of 128", "tiles of 64")}
    windows = {name: settings[name] for name in settings if name != "tiles of 128"}
    files = {name: list_images(DATA / "test" / name) for name in ("Set5", "Set14")}
    files[SOME] = list_images(DATA / "test" / "Urban100")[::10]
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], dict]] = {
            "photographs": lambda: photographs(settings),
            "Set5": lambda: means(list(evaluate(files["Set5"], SCALE, windows))),
            "Set14": lambda: means(list(evaluate(files["Set14"], SCALE, tiles))),
            "exported": lambda: exported(Path(folder)),
            SOME: lambda: means(list(evaluate(files[SOME], SCALE, tiles))),
            "orientations": lambda: {
                name: means(list(evaluate(images, SCALE, orientations))) for name, images in files.items()
            },
        }
        checksum = sha256(weights_path(SCALE))
        numbers: dict = read_numbers(NAME) if (MEASURED / f"{NAME}.json").exists() else {}
        if numbers.get("weights") != checksum or parts.keys() <= numbers.keys():
            numbers = {"weights": checksum}  # only an interrupted measurement resumes
        for name, part in parts.items():
            if name not in numbers:
                numbers[name] = part()
                print(name, numbers[name], flush=True)
                write_numbers(NAME, numbers)


def tables() -> dict[str, str]:
    """The tables of the measured scores, by file name."""
    numbers = read_numbers(NAME)
    set5 = numbers["Set5"]
    windows = [["×4", "of the whole map", "of windows"], *measures("Set5", [set5["whole"], set5["windows"]])]
    photos = [["PSNR, dB", "whole map", "windows", "tiles of 64", "low-resolution size"]]
    for name in PHOTOGRAPHS:
        width, height = numbers["photographs"][name]["size"]
        cells = [f"{numbers['photographs'][name][what]:.2f}" for what in ("whole", "windows", "tiles of 64")]
        photos.append([name, *cells, f"{width} × {height}"])
    tiles = [["×4", "whole", "tiles of 128", "tiles of 64"]]
    for name in ("Set14", SOME):
        if name in numbers:
            tiles += measures(name, [numbers[name][what] for what in ("whole", "tiles of 128", "tiles of 64")])
    both = [
        ["Set5 ×4", "whole", "tiles of 64"],
        *measures("statistics of the whole map", [set5["whole"], set5["tiles of 64"]]),
        *measures(f"of windows, `--local {TRAINED_ON}`", [set5["windows"], set5["windows, tiles of 64"]]),
    ]
    ensemble = [["×4", "one orientation", "self-ensemble"]]
    for name, scores in numbers.get("orientations", {}).items():
        ensemble += measures(name, [scores["one"], scores["eight"]])
    files = [["MREN ×4", "file", "Set5, dB", "SSIM", "difference from torch"]]
    for name, file in numbers.get("exported", {}).items():
        away = f"{file['away']:.0f} dB" if name.startswith("int8") else f"{file['away']:.0e}".replace("e-0", "e-")
        size, psnr, ssim = f"{file['megabytes']:.2f} MB", f"{file['psnr']:.2f}", f"{file['ssim']:.4f}"
        files.append([name, size, psnr, ssim, away])
    made = {
        "windows": windows,
        "photographs": photos,
        "tiles": tiles,
        "tiles_windows": both,
        "self_ensemble": ensemble,
        "exported": files,
    }
    return {f"{name}.md": markdown.table(head, rows, text=head[:1]) for name, (head, *rows) in made.items() if rows}


def measures(name: str, scores: Sequence[dict[str, float]]) -> list[list[str]]:
    """A row of PSNR and a row of SSIM."""
    return [
        [f"{name}, dB", *(f"{score['psnr']:.2f}" for score in scores)],
        [f"{name}, SSIM", *(f"{score['ssim']:.4f}" for score in scores)],
    ]


def draw() -> None:
    for name, text in tables().items():
        write_text(TABLES / name, text)


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, measure, draw)


if __name__ == "__main__":
    main()
