"""Damaged files of every kind, and faults of the machine, with a fixed seed and a bounded number.

The rule for all: no traceback, no hang, one line that names the file, nothing overwritten, the rest of the batch done.
Files are read in a process of their own: a decoder that crashes or takes all memory must not take the tests with it.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import onnx
import pytest
import tifffile
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from examples.mren.imagefile import read_picture
from examples.mren.model import MREN, save_weights
from examples.mren.weightfile import KEY
from tests.images import photo, write_photos

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DAMAGED = 60  # of each kind
LONGEST = 10  # seconds for one file
CONFIG = {"scale": 2, "channels": 12, "num_blocks": 1}

# Reads the files whose names stand on stdin, and prints for each what became of it. The limit of memory is relative to
# what the packages have taken already.
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
import torch
from examples.mren.data import read_rgb
from examples.mren.imagefile import read_picture, read_size
from examples.mren.model import load_mren
torch.set_num_threads(1)

def read_image(file):
    read_size(file)
    picture = read_picture(file)
    assert picture.color.isfinite().all()

def read_weights(file):
    net = load_mren(None, path=file)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())

def read_onnx(file):
    from examples.mren.onnxfile import onnx_upscaler
    onnx_upscaler(file, 2)(torch.zeros(3, 8, 9, dtype=torch.uint8))

read = {"image": read_image, "rgb": read_rgb, "weights": read_weights, "onnx": read_onnx}[sys.argv[1]]
if read is read_onnx:
    import examples.mren.onnxfile
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for line in sys.stdin:
    file = line.rstrip("\\n")
    started = time.monotonic()
    try:
        read(Path(file))
        said = None
    except (ValueError, MemoryError) as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([file, said, time.monotonic() - started]), flush=True)
"""


def check_reader(kind: str, files: list[Path]) -> int:
    """Read files in another process; returns how many were refused."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        input="".join(f"{file}\n" for file in files),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 + LONGEST * 10,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    last = results[-1][0] if results else "none"
    assert done.returncode == 0, f"after {last}: {done.returncode}\n{done.stderr[-3000:]}"
    assert len(results) == len(files)
    for file, said, seconds in results:
        assert seconds < LONGEST, file
        if said is not None and not said.startswith("MemoryError"):
            assert file in said, said
            assert len(said) < 3000, said
    assert "Traceback" not in done.stderr
    return sum(said is not None for _, said, _ in results)


def damage(content: bytes, dice: random.Random) -> bytes:
    """Cut, change, repeat or insert, mostly near the beginning, where sizes and types are."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        reach = dice.choice((64, 512, len(changed)))
        place = dice.randrange(max(1, min(reach, len(changed))))
        kind = dice.randrange(6)
        if kind == 0:
            del changed[dice.randrange(max(1, len(changed))) :]
        elif kind == 1 and changed:
            changed[place] = dice.randrange(256)
        elif kind == 2:
            number = dice.choice((0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
            changed[place : place + 4] = struct.pack(dice.choice(("<I", ">I")), number)
        elif kind == 3:
            changed[place : place + dice.randrange(1, 30)] = b"\xff" * dice.randrange(40)
        elif kind == 4:
            end = min(len(changed), place + dice.randrange(1, 200))
            changed[place:place] = changed[place:end]
        else:
            changed[place:place] = dice.randbytes(dice.randrange(1, 30))
    return bytes(changed)


def write_damaged(folder: Path, content: bytes, suffix: str, seed: str, count: int = DAMAGED) -> list[Path]:
    dice = random.Random(seed)
    files = [folder / f"{number:03}{suffix}" for number in range(count)]
    for file in files:
        file.write_bytes(damage(content, dice))
    return files


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(photo(40, 50).permute(1, 2, 0).numpy()).convert(mode)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    image.save(file, format=form, **({"exif": exif} if form not in ("GIF", "BMP", "PPM") else {}), **options)
    return file.getvalue()


def deep(form: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 65_536, (40, 50, 3), dtype=np.uint16)
    if form == "png":
        return imagecodecs.png_encode(values)
    file = io.BytesIO()
    layout = {"tile": (16, 16)} if form == "tiles" else {}
    tifffile.imwrite(file, values, photometric="rgb", compression="lzw", **layout)
    return file.getvalue()


IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "png": (".png", lambda: encoded("PNG")),
    "palette": (".png", lambda: encoded("PNG", "P")),
    "png of 16 bits": (".png", lambda: deep("png")),
    "jpeg": (".jpg", lambda: encoded("JPEG", dpi=(300, 300))),
    "cmyk": (".jpg", lambda: encoded("JPEG", "CMYK")),
    "webp": (".webp", lambda: encoded("WEBP")),
    "lossless webp": (".webp", lambda: encoded("WEBP", "RGBA", lossless=True)),
    "tiff": (".tif", lambda: encoded("TIFF")),
    "compressed tiff": (".tif", lambda: encoded("TIFF", compression="tiff_lzw")),
    "tiff of 16 bits": (".tif", lambda: deep("strips")),
    "tiled tiff of 16 bits": (".tif", lambda: deep("tiles")),
    "gif": (".gif", lambda: encoded("GIF", "P")),
    "bmp": (".bmp", lambda: encoded("BMP")),
    "ppm": (".ppm", lambda: encoded("PPM")),
    "avif": (".avif", lambda: encoded("AVIF")),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_damaged_images(kind: str, tmp_path: Path) -> None:
    suffix, make = IMAGES[kind]
    files = write_damaged(tmp_path, make(), suffix, kind)
    refused = check_reader("image", files)
    assert 0 < refused <= len(files)


def test_damaged_images_as_training_and_scoring_read_them(tmp_path: Path) -> None:
    files = []
    for kind, (suffix, make) in IMAGES.items():
        folder = tmp_path / kind
        folder.mkdir()
        files += write_damaged(folder, make(), suffix, f"rgb {kind}", 10)
    assert check_reader("rgb", files) > 30


def test_damaged_weights(tmp_path: Path) -> None:
    net = MREN(**CONFIG)
    save_weights(net, tmp_path / "good.safetensors", CONFIG)
    content = (tmp_path / "good.safetensors").read_bytes()
    files = write_damaged(tmp_path, content, ".safetensors", "weights", 100)
    # Whole files whose arguments are not.
    dice = random.Random("arguments")
    values = [0, -1, 10**5, 2**70, 1.5, float("nan"), True, None, "x", "both", [], [1] * 10_000, {"a": {}}, "\x1b[2J"]
    for number in range(100):
        arguments = dict(CONFIG)
        for _ in range(dice.randrange(1, 4)):
            name = dice.choice(("scale", "channels", "num_blocks", "parts", "exchange", "communication", "chain", "x"))
            arguments[name] = dice.choice(values)
        file = tmp_path / f"arguments_{number}.safetensors"
        save_file(dict(net.state_dict()), file, metadata={KEY: json.dumps(arguments)})
        files.append(file)
    assert check_reader("weights", files) > 150


def test_damaged_onnx(tmp_path: Path) -> None:
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], dtype=np.float32), "scales")
    graph = helper.make_graph(
        [
            helper.make_node("Resize", ["input", "", "scales"], ["large"], mode="nearest"),
            helper.make_node("Conv", ["large", "weight"], ["output"], pads=[1, 1, 1, 1]),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 3, "H", "W"])],
        [scales, numpy_helper.from_array(np.ones((3, 3, 3, 3), dtype=np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"scale": "2"})
    onnx.save(model, tmp_path / "good.onnx")
    assert check_reader("onnx", [tmp_path / "good.onnx"]) == 0
    files = write_damaged(tmp_path, (tmp_path / "good.onnx").read_bytes(), ".onnx", "onnx", 150)
    assert check_reader("onnx", files) > 50


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(MREN(**CONFIG), file, CONFIG)
    return file


def upscale(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.mren.upscale", *map(str, arguments), "--device", "cpu", "--threads", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False, **options)


def results(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_batch_of_damaged_files_is_done_as_far_as_it_can(tmp_path: Path, weights: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for kind, (suffix, make) in IMAGES.items():
        for file in write_damaged(source, make(), suffix, f"batch {kind}", 4):
            file.rename(source / f"{kind.replace(' ', '_')}_{file.name}")
    (source / "zz_good.png").write_bytes(encoded("PNG"))
    target.mkdir()
    (target / "old.txt").write_text("not ours")
    done = upscale(source, "-o", target, "--weights", weights, "--format", "png", "--max-megapixels", "20")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "zz_good.png" in results(target)
    assert (target / "old.txt").read_text() == "not ours"
    names = {path.name for path in source.iterdir()}
    for line in done.stderr.splitlines():
        assert any(name in line for name in names), line
        assert line.isprintable()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) + len(done.stdout.splitlines()) == len(names)


def test_signals_at_random_moments(tmp_path: Path, weights: Path) -> None:
    dice = random.Random("signals")
    source = tmp_path / "in"
    write_photos(source, [(150, 160)] * 12)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        target = tmp_path / f"out_{dice.random()}"
        arguments = [str(source), "-o", str(target), "--weights", str(weights), "--device", "cpu", "--threads", "1"]
        command = [sys.executable, "-m", "examples.mren.upscale", *arguments]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(dice.uniform(0, 0.5))
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
        if number != signal.SIGKILL and process.returncode != 0:  # 0: it was done before
            assert process.returncode == 128 + number
            assert len(said.splitlines()) == 1
            assert not [name for name in results(target) if name.startswith(".")]
        for name in results(target):
            if not name.startswith("."):  # one that was killed could not clean up
                assert read_picture(target / name).color.shape == (3, 300, 320)
        done = upscale(source, "-o", target, "--weights", weights, "--skip-existing")
        assert done.returncode == 0, done.stderr
        assert [name for name in results(target) if not name.startswith(".")] == results(source)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB, if one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    yield folder
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path, weights: Path) -> None:
    import resource

    def limit() -> None:  # where nothing can be mounted: no file larger than the disk would be
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))

    source, target = tmp_path / "in", small_disk / "out"
    write_photos(source, [(20, 20), (300, 300), (21, 21), (400, 400), (22, 22)])
    done = upscale(source, "-o", target, "--weights", weights, preexec_fn=limit)
    assert done.returncode == 1
    assert results(target) == ["0.png", "2.png", "4.png"]
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    for name, line in zip(("1.png", "3.png"), errors, strict=True):
        assert line.startswith((f"error: {source / name}: ", f"error: {target / name}: "))
        assert "No space left" in line or "File too large" in line
    assert read_picture(target / "4.png").color.shape == (3, 44, 44)


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from examples.mren import upscale
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 150 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(upscale.main(sys.argv[1:]))
"""


def test_too_little_memory(tmp_path: Path, weights: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    write_photos(source, [(20, 20), (2500, 2500), (21, 21)])
    options = ["--weights", weights, "--device", "cpu", "--threads", "1"]
    command = [sys.executable, "-c", LITTLE_MEMORY, *map(str, [source, "-o", target, *options])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode == 1, done.stderr
    assert results(target) == ["0.png", "2.png"]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {source / '1.png'}: ")
    assert "not enough memory" in line
