"""Damaged files of every kind, and faults of the machine, with a fixed seed and a bounded number.

The rule for all: no traceback, no hang, one line that names the file, nothing overwritten, the rest of the batch done.
Files are read in a process of their own: a decoder that crashes or takes all memory must not take the tests with it.
One process reads all of them, because starting one takes longer than reading hundreds of files.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import imagecodecs
import numpy as np
import onnx
import pytest
import tifffile
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.mren import train, upscale
from examples.mren.images.read import read_picture
from examples.mren.model import MREN, save_weights
from examples.mren.weightfile import KEY
from tests.images import pil_photo, write_photos, write_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="Windows limits no memory, and has no signals to handle"),
]

ROOT = Path(__file__).parents[1]
DAMAGED = 100  # of each kind
LONGEST = 10  # seconds of the processor for one file
CONFIG = {"scale": 2, "channels": 12, "num_blocks": 1}

# Reads the files whose kinds and names stand on stdin, and prints for each what became of it. The limit of memory is
# relative to what the packages have taken already.
READER = """
import json, resource, sys, time
from pathlib import Path
import torch
import examples.mren.onnxfile
from examples.mren.data import load_pairs, read_rgb
from examples.mren.training.patches import PatchSampler
from examples.mren.images.read import read_picture, read_size
from examples.mren.model import MREN, load_mren
from examples.mren.onnxfile import onnx_upscaler
from examples.mren.training.recipes import Training
from examples.mren.training.trainer import Trainer
torch.set_num_threads(1)
pairs = load_pairs([Path(sys.argv[1])], 2)
training = Training(steps=3, batch_size=1, patch_size=16, channels_last=False)
sampler = PatchSampler(pairs, 2, patch_size=16, batch_size=1, seed=0)

def read_image(file):
    read_size(file)
    assert read_picture(file).color.isfinite().all()

def read_weights(file):
    net = load_mren(path=file)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())

def read_onnx(file):
    onnx_upscaler(file, 2)(torch.zeros(3, 8, 9, dtype=torch.uint8))

def begin():
    net = MREN(2, channels=12, num_blocks=1)
    return Trainer(net, training, sampler, Path(), label="fuzz", held_out={"psnr": pairs})

def go_on(folder):
    global trainer
    trainer.output = folder
    trainer.resume()
    # What is accepted must be fit to be trained on.
    taken, trainer = trainer, begin()
    assert taken.run(validate_every=1).step == 3

trainer = begin()

read = {"rgb": read_rgb, "weights": read_weights, "onnx": read_onnx, "checkpoint": go_on}
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for line in sys.stdin:
    kind, file = line.rstrip("\\n").split("\\t")
    started = time.process_time()
    try:
        read.get(kind, read_image)(Path(file))
        said = None
    except (ValueError, MemoryError) as error:
        said = f"{type(error).__name__}: {error}"
    print("result", json.dumps([kind, file, said, time.process_time() - started]), flush=True)
"""


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


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have right checksums, so that more than these is looked at."""
    mended, place = png[:8], 8
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        chunk = png[place + 4 : place + 8 + length]
        mended += png[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + length
    return mended


def write_damaged(folder: Path, content: bytes, suffix: str, seed: str, count: int = DAMAGED) -> list[Path]:
    dice = random.Random(seed)
    files = [folder / f"{number:03}{suffix}" for number in range(count)]
    for number, file in enumerate(files):
        damaged = damage(content, dice)
        file.write_bytes(with_checksums(damaged) if suffix == ".png" and number % 2 else damaged)
    return files


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    image = pil_photo(40, 50).convert(mode)
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


def damaged_weights(folder: Path) -> list[Path]:
    net = MREN(**CONFIG)
    save_weights(net, folder / "good.safetensors", CONFIG)
    files = write_damaged(folder, (folder / "good.safetensors").read_bytes(), ".safetensors", "weights")
    # Whole files whose arguments are not.
    dice = random.Random("arguments")
    values = [0, -1, 10**5, 2**70, 1.5, float("nan"), True, None, "x", "both", [], [1] * 10_000, {"a": {}}, "\x1b[2J"]
    for number in range(DAMAGED):
        arguments = dict(CONFIG)
        for _ in range(dice.randrange(1, 4)):
            name = dice.choice(("scale", "channels", "num_blocks", "parts", "exchange", "communication", "chain", "x"))
            arguments[name] = dice.choice(values)
        file = folder / f"arguments_{number}.safetensors"
        save_file(dict(net.state_dict()), file, metadata={KEY: json.dumps(arguments)})
        files.append(file)
    return files


def damaged_onnx(folder: Path) -> list[Path]:
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
    onnx.save(model, folder / "good.onnx")
    return write_damaged(folder, (folder / "good.onnx").read_bytes(), ".onnx", "onnx")


def damaged_checkpoints(folder: Path, picture: Path) -> list[Path]:
    """Folders of runs, each with one checkpoint."""
    arguments = "--num-blocks 1 --recipe short --steps 2 --batch-size 1 --patch-size 16 --held-out 1 --cpu --scale 2"
    images, run = folder / "images", folder / "run"
    images.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(picture, images / name)
    options = ["--config", '{"channels": 12}', "--data", str(images), "-o", str(run)]
    assert train.main([*arguments.split(), *options]) == 0
    good = run / "checkpoints" / "step_0000002"
    dice, runs = random.Random("checkpoints"), []

    def copied() -> Path:
        runs.append(folder / f"{len(runs):03}")
        shutil.copytree(good, runs[-1] / "checkpoints" / good.name)
        return runs[-1] / "checkpoints" / good.name

    files = sorted(path.name for path in good.iterdir())
    for name in files:
        for _ in range(DAMAGED // 5):
            (copied() / name).write_bytes(damage((good / name).read_bytes(), dice))
        for fault in FAULTS.values():
            fault(copied() / name)
        shutil.copy(good / dice.choice(files), copied() / name)
    # Whole files whose values are not.
    state = json.loads((good / "state.json").read_text())
    for name in state["progress"]:
        for value in (-1, 7, 2**70, float("nan"), True, None, "x", [{}], {"a": []}):
            changed = state | {"progress": state["progress"] | {name: value}}
            (copied() / "state.json").write_text(json.dumps(changed))
    for name in files:
        if name.endswith(".safetensors"):
            tensors = load_file(good / name)
            for change in CHANGES.values():
                save_file(change(tensors, dice.choice(sorted(tensors))), copied() / name)
    return runs


FAULTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "link to itself": lambda file: (file.unlink(), file.symlink_to(file)),
}
CHANGES: dict[str, Callable[[Mapping[str, torch.Tensor], str], dict[str, torch.Tensor]]] = {
    "one less": lambda tensors, key: {name: value for name, value in tensors.items() if name != key},
    "one more": lambda tensors, key: {**tensors, "999.step": torch.zeros(())},
    "renamed": lambda tensors, key: {f"0{name}" if name == key else name: value for name, value in tensors.items()},
    "nan": lambda tensors, key: {**tensors, key: torch.full_like(tensors[key], torch.nan)},
    "integers": lambda tensors, key: {**tensors, key: tensors[key].int()},
    "longer": lambda tensors, key: {**tensors, key: torch.zeros(*tensors[key].shape, 2)},
    "huge": lambda tensors, key: {**tensors, key: torch.full_like(tensors[key], 3e38)},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str | None, float]]]:
    """What became of each damaged file, by kind: its name, what was said of it, and the seconds that it took."""
    files: dict[str, list[Path]] = {"rgb": []}
    for kind, (suffix, make) in IMAGES.items():
        files[kind] = write_damaged(tmp_path_factory.mktemp("images"), make(), suffix, kind)
        files["rgb"] += files[kind][::10]  # as training and scoring read them
    files["weights"] = damaged_weights(tmp_path_factory.mktemp("weights"))
    files["onnx"] = damaged_onnx(tmp_path_factory.mktemp("onnx"))
    (picture,) = write_photos(tmp_path_factory.mktemp("picture"), [(40, 50)])
    files["checkpoint"] = damaged_checkpoints(tmp_path_factory.mktemp("checkpoints"), picture)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(picture)],
        input="".join(f"{kind}\t{file}\n" for kind, several in files.items() for file in several),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines = [line.removeprefix("result ") for line in done.stdout.splitlines() if line.startswith("result ")]
    last = lines[-1] if lines else "none"
    assert done.returncode == 0, f"after {last}: {done.returncode}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    assert len(lines) == sum(map(len, files.values()))
    of_kind: dict[str, list[tuple[str, str | None, float]]] = {kind: [] for kind in files}
    for kind, file, said, seconds in map(json.loads, lines):
        of_kind[kind].append((file, said, seconds))
    return of_kind


@pytest.mark.parametrize("kind", [*IMAGES, "rgb", "weights", "onnx", "checkpoint"])
def test_damaged_files_are_refused_by_name_and_soon(kind: str, results) -> None:
    for file, said, seconds in results[kind]:
        assert seconds < LONGEST, file
        if said is not None and not said.startswith("MemoryError"):
            assert file in said
            assert len(said) < 3000
    refused = sum(said is not None for _, said, _ in results[kind])
    assert len(results[kind]) // 4 < refused <= len(results[kind])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), **CONFIG)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def run_elsewhere(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False, env=environment)


UPSCALE = "import sys; from examples.mren import upscale; sys.exit(upscale.main(sys.argv[1:]))"


def complaints(stderr: str) -> list[str]:
    """The lines about what went wrong: all but the one that counts the images that were done."""
    return [line for line in stderr.splitlines() if not re.match(r"\d+ images in ", line)]


def test_a_batch_of_damaged_files_is_done_as_far_as_it_can(tmp_path: Path, weights: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for kind, (suffix, make) in IMAGES.items():
        for file in write_damaged(source, make(), suffix, f"batch {kind}", 4):
            file.rename(source / f"{kind.replace(' ', '_')}_{file.name}")
    (source / "zz_good.png").write_bytes(encoded("PNG"))
    target.mkdir()
    (target / "old.txt").write_text("not ours")
    options = ["--weights", weights, "--format", "png", "--max-megapixels", "20", "--device", "cpu"]
    done = run_elsewhere(UPSCALE, source, "-o", target, *options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "zz_good.png" in names(target)
    assert (target / "old.txt").read_text() == "not ours"
    for line in complaints(done.stderr):
        assert any(name in line for name in names(source)), line
        assert line.isprintable()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) + len(done.stdout.splitlines()) == len(names(source))


# Starts the command again and again, as forks of a process that has imported everything, and sends each a signal some
# time after its first result.
STRUCK = """
import json, os, signal, sys, time
from examples.mren import upscale
import torch
torch.set_num_threads(1)
for number, (name, delay) in enumerate(json.loads(sys.argv[1])):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(os.open(f"{sys.argv[2]}/said_{number}", os.O_CREAT | os.O_WRONLY), 2)
        os._exit(upscale.main([*sys.argv[3:], "-o", f"{sys.argv[2]}/out_{number}"]))
    os.read(reading, 1)
    time.sleep(delay)
    os.kill(child, getattr(signal, name))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(writing), os.close(reading)
"""


def test_signals_at_random_moments(tmp_path: Path, weights: Path) -> None:
    import signal

    dice = random.Random("signals")
    source = tmp_path / "in"
    write_photos(source, [(100, 120)] * 6)
    moments = [(name, dice.uniform(0, 0.2)) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "SIGKILL")]
    options = [str(source), "--weights", str(weights), "--device", "cpu", "--threads", "1"]
    done = run_elsewhere(STRUCK, json.dumps(moments), tmp_path, *options)
    assert done.returncode == 0, done.stderr
    codes = [int(line) for line in done.stdout.splitlines()]
    for number, ((name, _), code) in enumerate(zip(moments, codes, strict=True)):
        target, said = tmp_path / f"out_{number}", (tmp_path / f"said_{number}").read_text()
        assert "Traceback" not in said
        if name != "SIGKILL" and code != 0:  # 0: it was done before
            assert code == 128 + getattr(signal, name)
            assert len(said.splitlines()) == 1
            assert not [each for each in names(target) if each.startswith(".")]
        for each in names(target):
            if not each.startswith("."):  # one that was killed could not clean up
                assert read_picture(target / each).color.shape == (3, 200, 240)
        assert upscale.main([*options, "-o", str(target), "--skip-existing"]) == 0
        assert [each for each in names(target) if not each.startswith(".")] == names(source)
    assert sum(code != 0 for code in codes) > 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB; where none can be mounted, a folder in which no file can be larger than that."""
    import resource

    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and not subprocess.run(mount, capture_output=True, check=False).returncode
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
    yield folder
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    write_photos(tmp_path / "in", [(20, 20), (300, 300), (21, 21), (400, 400), (22, 22)])
    return tmp_path / "in"


def test_a_full_disk(photographs: Path, small_disk: Path, weights: Path, capsys) -> None:
    target = small_disk / "out"
    assert upscale.main([str(photographs), "-o", str(target), "--weights", str(weights), "--device", "cpu"]) == 1
    assert names(target) == ["0.png", "2.png", "4.png"]
    errors = complaints(capsys.readouterr().err)
    assert len(errors) == 2
    for name, line in zip(("1.png", "3.png"), errors, strict=True):
        assert line.startswith((f"error: {photographs / name}: ", f"error: {target / name}: "))
        assert "No space left" in line or "File too large" in line
        assert "choose another output" in line
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
    write_photos(source, [(20, 20), (20, 20), (21, 21)])
    Image.new("RGB", (3000, 3000)).save(source / "1.png")
    done = run_elsewhere(LITTLE_MEMORY, source, "-o", target, "--weights", weights, "--device", "cpu", "--threads", "1")
    assert done.returncode == 1, done.stderr
    assert names(target) == ["0.png", "2.png"]
    (line,) = complaints(done.stderr)
    assert line.startswith(f"error: {source / '1.png'}: ")
    assert "not enough memory" in line
