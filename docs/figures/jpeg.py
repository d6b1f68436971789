"""Measure what the weights for photographs gain on JPEGs, for tables and a picture.

``python -m docs.figures.jpeg`` writes ``docs/results/shipped/jpeg_x*.md`` from ``measured/jpeg.json`` and draws
``docs/images/jpeg.webp``, for both themes; ``--measure`` first regenerates the JSON file, in about half an hour on one
core. The test sets are read from ``../shared/data``, or from ``SC_BLOCKS_DATA``. The picture shows a photograph from
scikit-image.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from docs.figures.plotting import command, dark_variant, read_numbers, write_numbers
from docs.figures.scores import DATA, ROOT, TABLES
from examples import markdown
from examples.markdown import signed
from examples.mren.data import imresize, list_images, mod_crop, photograph
from examples.mren.degradation import Degradation, degrade, make_generator
from examples.mren.ensemble import Upscale, network_upscaler
from examples.mren.evaluate import evaluate, mean_score
from examples.mren.files import write_text
from examples.mren.model import PHOTO, Scale, load_mren
from sc_blocks.deploy import fold

NAME = "jpeg"
SCALES = (4, 3, 2)
SETS = ("Set14", "B100")
# Degradations of the low-resolution images, by column heading.
INPUTS = {
    "clean": None,
    "quality 75": Degradation(quality=75),
    "quality 50": Degradation(quality=50),
    "quality 30": Degradation(quality=30),
    "quality 75, noise 5": Degradation(quality=75, noise=5.0),
}
TITLES = {"bicubic": "bicubic", "clean": "MREN-S", PHOTO: "MREN-S, for photographs"}
PICTURE = ROOT / "docs" / "images" / "jpeg.webp"
ENLARGED = 4  # in the picture
SHOWN, QUALITY, CORNER, SIDE = "coffee", 50, (100, 120), 240  # of the original: row and column, height and width


def upscalers(scale: Scale) -> dict[str, Upscale]:
    """Bicubic, the weights for clean images, and those for photographs."""
    return {
        "bicubic": lambda lr: imresize(lr, scale),
        "clean": network_upscaler(fold(load_mren(scale, "mren_s")), "cpu"),
        PHOTO: network_upscaler(fold(load_mren(scale, "mren_s", path=PHOTO)), "cpu"),
    }


def measure() -> None:
    if not (DATA / "test" / "Set14").is_dir():
        raise FileNotFoundError(f"no test sets at {DATA}; set SC_BLOCKS_DATA to their folder.")
    numbers: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for scale in SCALES:
        methods = upscalers(scale)
        for name in SETS:
            files = list_images(DATA / "test" / name)
            for title, degradation in INPUTS.items():
                rows = list(evaluate(files, scale, methods, degradation=degradation))
                means = {method: mean_score([row for row in rows if row.method == method]).psnr for method in methods}
                found = gains(means)
                numbers.setdefault(f"×{scale}", {}).setdefault(name, {})[title] = found
                print(f"×{scale}", name, title, found, flush=True)
    write_numbers(NAME, numbers)


def gains(means: dict[str, float]) -> dict[str, float]:
    """The PSNR of bicubic, and the gain of each network over it."""
    return {method: mean - (method != "bicubic") * means["bicubic"] for method, mean in means.items()}


def table(scale: Scale) -> str:
    """A table with the PSNR of bicubic and the gain of each network over it."""
    numbers = read_numbers(NAME)[f"×{scale}"]
    head, rows = [f"×{scale}, PSNR in dB", *INPUTS], []
    for name in SETS:
        for method, title in TITLES.items():
            cells = [numbers[name][column] for column in INPUTS]
            if method == "bicubic":
                rows.append([f"{name}, {title}", *(f"{cell[method]:.2f}" for cell in cells)])
            else:
                rows.append([title, *(signed(cell[method], 2) for cell in cells)])
    return markdown.table(head, rows, text=head[:1])


def tables() -> dict[str, str]:
    """Every table, by the name of its file."""
    return {f"{NAME}_x{scale}.md": table(scale) for scale in SCALES}


def picture() -> Image.Image:
    """A compressed photograph enlarged by each method, and the original."""
    original = mod_crop(photograph(SHOWN), ENLARGED)
    small = degrade(imresize(original, 1 / ENLARGED), Degradation(quality=QUALITY), make_generator(0))
    panels = {TITLES[name]: upscale(small) for name, upscale in upscalers(ENLARGED).items()}
    panels["original"] = original
    top, left = CORNER
    side, caption = 2 * SIDE, 28
    font = ImageFont.load_default(16)
    drawn = Image.new("RGB", (len(panels) * (side + 4) - 4, side + caption), "white")
    for number, (title, image) in enumerate(panels.items()):
        crop = image[:, top : top + SIDE, left : left + SIDE].permute(1, 2, 0).contiguous().numpy()
        x = number * (side + 4)
        drawn.paste(Image.fromarray(crop).resize((side, side), Image.Resampling.NEAREST), (x, caption))
        ImageDraw.Draw(drawn).text((x + side / 2, caption / 2), title, "black", font, anchor="mm")
    return drawn


def draw() -> None:
    for file, text in tables().items():
        write_text(TABLES / file, text)
    light = picture()
    light.save(PICTURE, quality=88)
    dark_variant(light).save(PICTURE.with_suffix(f".dark{PICTURE.suffix}"), quality=88)


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, measure, draw)


if __name__ == "__main__":
    main()
