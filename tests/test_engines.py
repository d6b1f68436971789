"""MREN in other runtimes: what is exported is read by the runtime itself and gives what torch gives."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import ncnn
import numpy as np
import openvino
import pytest
import torch
from PIL import Image
from torch import Tensor

from examples.mren import export as command
from examples.mren import upscale
from examples.mren.engines import FOLDERS, compile_network, engine_module
from examples.mren.engines.program import PortableBicubic
from examples.mren.export import export
from examples.mren.files import write_text
from examples.mren.model import MREN, load_mren
from tests.images import photo, write_photos, write_weights
from tests.test_readme import code_blocks

SMALL = {"scale": 3, "channels": 12, "num_blocks": 1}
SIZES = [(7, 11), (40, 33)]  # of an image; neither was exported
FORMATS = ("openvino", "ncnn", "pt2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), **SMALL)


@pytest.fixture(scope="module")
def exported(weights: Path) -> dict[str, Path]:
    """The small network, in each format that is not tested elsewhere, by the command."""
    made = {name: weights.parent / f"small.{name}" for name in FORMATS}
    for name, target in made.items():
        assert command.main(["--format", name, "--scale", "3", "--weights", str(weights), "-o", str(target)]) == 0
    return made


def in_openvino(folder: Path, x: Tensor) -> Tensor:
    model = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(model(x.numpy())[0])


def in_ncnn(folder: Path, x: Tensor) -> Tensor:
    net = ncnn.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_bf16_storage = False
    assert net.load_param(str(folder / "model.ncnn.param")) == 0
    assert net.load_model(str(folder / "model.ncnn.bin")) == 0
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(x[0].numpy()).clone())
    return torch.from_numpy(np.array(extractor.extract("out0")[1]))[None]


def in_torch(file: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.export.load(file).module()(x)


RUN: dict[str, Callable[[Path, Tensor], Tensor]] = {"openvino": in_openvino, "ncnn": in_ncnn, "pt2": in_torch}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_gives_what_torch_gives(name: str, size: tuple[int, int], exported: dict[str, Path], weights: Path) -> None:
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = load_mren(3, path=weights)(x)
    torch.testing.assert_close(RUN[name](exported[name], x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_an_engine_takes_any_size_in_turn(name: str, exported: dict[str, Path], weights: Path) -> None:
    engine, net = engine_module(name).load(exported[name], threads=1), load_mren(3, path=weights)
    for shape in ((1, 3, 8, 9), (1, 3, 12, 7), (2, 3, 8, 9)):
        x = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(engine(x), net(x), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "pt2"])
def test_folded_for_images_of_any_size(name: str, weights: Path, tmp_path: Path) -> None:
    """Each puts the border of a map in its place in a way of its own, OpenVINO after widths are padded."""
    target = tmp_path / f"folded.{name}"
    options = ["--format", name, "--fold", "--scale", "3", "--weights", str(weights), "-o", str(target)]
    assert command.main(options) == 0
    net = load_mren(3, path=weights)
    for size in ((1, 1), (1, 9), (2, 3), (40, 33)):
        x = torch.rand(2, 3, *size)
        with torch.inference_mode():
            assert (RUN[name](target, x) - net(x)).abs().max() < 1e-4, size


@pytest.mark.slow
def test_what_was_quantised_for_onnx_runtime_runs_in_openvino(weights: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", [(60, 81), (75, 60)])
    arguments = ["--format", "openvino", "--precision", "int8", "--calibrate", str(tmp_path / "photos")]
    arguments += ["--scale", "3", "--weights", str(weights), "-o", str(tmp_path / "int8")]
    assert command.main(arguments) == 0
    x = photo(40, 50, seed=7)[None].float() / 255
    with torch.no_grad():
        error = in_openvino(tmp_path / "int8", x) - load_mren(3, path=weights)(x)
    assert 38 < -10 * error.square().mean().log10() < 90  # in float32 it would be closer
    model = openvino.Core().read_model(tmp_path / "int8" / "model.xml")
    assert any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    assert model.get_rt_info(["mren", "precision"]).astype(str) == "int8"


def test_each_says_what_it_is(exported: dict[str, Path]) -> None:
    model = openvino.Core().read_model(exported["openvino"] / "model.xml")
    assert model.get_rt_info(["mren", "scale"]).astype(str) == "3"
    assert json.loads((exported["ncnn"] / "metadata.json").read_text())["scale"] == "3"
    told = {"weights": ""}
    torch.export.load(exported["pt2"], extra_files=told)
    for name in ("openvino", "ncnn"):
        assert {file.name for file in exported[name].iterdir()} == FOLDERS[name]
    assert told["weights"] == "small.safetensors"


@pytest.mark.parametrize(("name", "folder"), [("openvino", "mren_x4_openvino"), ("ncnn", "mren_s_x4_ncnn")])
def test_the_script_on_the_page(
    name: str, folder: str, exported: dict[str, Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script,) = code_blocks(Path(f"docs/how-to/{name}.md"), "python")
    monkeypatch.chdir(tmp_path)
    Path(folder).symlink_to(exported[name])
    write_photos(tmp_path, [(23, 31)])[0].rename("photo.png")
    exec(compile(script, f"docs/how-to/{name}.md", "exec"), {})
    photo = torch.from_numpy(np.array(Image.open("photo.png"))).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = load_mren(3, path=weights)(photo)[0].clamp(0, 1).mul(255).permute(1, 2, 0).numpy()
    assert np.abs(np.array(Image.open("photo_x4.png")) - expected).max() <= 3  # ncnn may choose 16 bits


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_in_portable_operators_is_bicubic(factor: int) -> None:
    for size in ((1, 1), (2, 5), (9, 14)):
        x = torch.rand(2, 3, *size)
        expected = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
        torch.testing.assert_close(PortableBicubic(factor)(x), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process holds open is read there")
@pytest.mark.parametrize("name", ["onnx", "openvino", "ncnn"])
def test_an_engine_holds_no_file_that_is_gone(name: str) -> None:
    """On Windows, a file that is mapped into memory cannot be deleted."""
    engine = compile_network(torch.nn.Conv2d(3, 64, 31, padding=15).eval(), name, torch.rand(1, 3, 8, 8), threads=1)
    assert engine(torch.rand(1, 3, 9, 9)).shape[1] == 64
    held = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/network" in line]
    assert held == []


def test_a_network_of_another_kind_is_compiled() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2)).eval()
    x = torch.rand(1, 3, 10, 13)
    for name in ("openvino", "ncnn"):
        with torch.no_grad():
            engine = compile_network(net, name, torch.rand(1, 3, 8, 8), threads=1)
            torch.testing.assert_close(engine(x), net(x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="runtime must be one of onnx, openvino, ncnn; got 'coreml'"):
        compile_network(net, "coreml", x)


class Caching(torch.nn.Module):
    """Keeps what it makes of its weights, as SPAN does, and pools to a size that depends on the image, as SAFMN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.kept = torch.nn.Parameter(torch.zeros(3, 3, 3, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.data = 2 * self.conv.weight
        small = torch.nn.functional.adaptive_max_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2))
        large = torch.nn.functional.interpolate(small, size=x.shape[2:], mode="nearest")
        return torch.nn.functional.conv2d(large, self.kept, padding=1)


def test_networks_that_keep_tensors_are_exported_without_gradients(tmp_path: Path) -> None:
    net, x = Caching().eval(), torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(compile_network(net, "onnx", torch.rand(1, 3, 16, 8))(x), net(x))


def test_ncnn_pools_to_sizes_that_are_numbers(tmp_path: Path) -> None:
    net, x = Caching().eval(), torch.rand(1, 3, 8, 12)
    module = engine_module("ncnn")
    with pytest.raises(ValueError, match=r"ncnn has no layer for F\.adaptive_max_pool2d, pnnx\.Expression"):
        module.write(net, tmp_path, x)
    module.write(net, tmp_path, x, any_size=False)
    with torch.no_grad():
        torch.testing.assert_close(module.load(tmp_path, threads=1)(x), net(x), rtol=0, atol=1e-5)


class TestFolders:
    """A folder is written whole or not at all, and nothing else is lost by it."""

    net = MREN(**SMALL).eval()

    @pytest.fixture(autouse=True)
    def conversion_in_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = engine_module("ncnn")
        monkeypatch.setattr(module, "write", lambda network, path, *_: (path / "model.ncnn.bin").write_text("new"))
        monkeypatch.setattr(module, "load", lambda path: self.net)

    def test_one_that_differs_from_torch_is_not_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_module("ncnn"), "load", lambda path: lambda x: self.net(x) + 0.001)
        with pytest.raises(ValueError, match="not written: for an input of"):
            export(self.net, tmp_path / "out", "ncnn")
        assert not list(tmp_path.iterdir())

    def test_one_of_ours_is_replaced_and_others_are_not(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        export(self.net, target, "ncnn")
        (target / "model.ncnn.bin").write_text("old")
        with pytest.raises(FileExistsError):
            export(self.net, target, "ncnn", overwrite=False)
        assert (target / "model.ncnn.bin").read_text() == "old"
        export(self.net, target, "ncnn")
        assert (target / "model.ncnn.bin").read_text() == "new"
        (target / "thesis.txt").write_text("the only copy")
        with pytest.raises(FileExistsError, match=r"also holds thesis\.txt"):
            export(self.net, target, "ncnn")
        assert (target / "thesis.txt").read_text() == "the only copy"
        assert list(tmp_path.iterdir()) == [target]

    def test_another_file_is_found_in_any_depth_and_before_the_conversion(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        target = tmp_path / "x.mlpackage"
        for name in ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/thesis.txt"):
            write_text(target / name, "the only copy")
        monkeypatch.setattr(command, "load_mren", None)  # would be called next
        assert command.main(["--format", "coreml", "-o", str(target), "--overwrite"]) == 2
        assert "also holds Data/com.apple.CoreML/thesis.txt, so it is not replaced" in capsys.readouterr().err
        monkeypatch.setattr(engine_module("coreml"), "write", None)
        with pytest.raises(FileExistsError, match=r"also holds Data/com\.apple\.CoreML/thesis\.txt"):
            export(self.net, target, "coreml")
        assert len(list(target.rglob("*.*"))) == 4

    @pytest.mark.skipif(os.name == "nt", reason="on Windows not everybody may make links")
    def test_a_link_stays_and_its_folder_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "out")
        for _ in range(2):
            export(self.net, tmp_path / "link", "ncnn")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
            assert (tmp_path / "link").is_symlink()

    def test_one_that_cannot_be_replaced_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "out"
        export(self.net, target, "ncnn")
        (target / "model.ncnn.bin").write_text("old")
        rename = Path.rename

        def stop_before_the_second(source: Path, to: Path) -> Path:
            if to == target and (source / "model.ncnn.bin").read_text() == "new":
                raise KeyboardInterrupt
            return rename(source, to)

        monkeypatch.setattr(Path, "rename", stop_before_the_second)
        with pytest.raises(KeyboardInterrupt):
            export(self.net, target, "ncnn")
        assert list(tmp_path.iterdir()) == [target]
        assert (target / "model.ncnn.bin").read_text() == "old"


@pytest.mark.parametrize(
    "engine", ["ncnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "openvino"))]
)
def test_upscale_gives_the_same_pictures(engine: str, weights: Path, tmp_path: Path, capsys) -> None:
    write_photos(tmp_path / "frames", [(20, 90), (90, 70)])
    arguments = ["--weights", str(weights), "--scale", "3", "--tile", "64", "--device", "cpu", "--threads", "1"]
    results: dict[str, list[np.ndarray]] = {}
    for name in ("torch", engine):
        assert upscale.main([str(tmp_path / "frames"), "-o", str(tmp_path / name), "--engine", name, *arguments]) == 0
        assert re.search(r"2 images in [\d.]+ s, [\d.]+ per second", capsys.readouterr().err)
        results[name] = [np.array(Image.open(file)).astype(int) for file in sorted((tmp_path / name).iterdir())]
    for expected, result in zip(results["torch"], results[engine], strict=True):
        assert expected.shape == result.shape
        assert np.abs(expected - result).max() <= 2


def test_engines_compute_on_the_cpu_over_whole_tiles(tmp_path: Path, capsys) -> None:
    write_photos(tmp_path / "frames", [(8, 8)])
    for option in (["--device", "cuda"], ["--local", "48"]):
        command_line = [str(tmp_path / "frames"), "-o", str(tmp_path / "out"), "--engine", "ncnn", *option]
        assert upscale.main(command_line) == 2
        assert "leave out --device and --local" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "litert", "-o", "x.tflite"], "needs --size HEIGHT WIDTH"),
        (["--format", "coreml", "-o", "x"], "x: must end in .mlpackage"),
        (["--format", "ncnn", "--size", "8", "8", "-o", "x"], "--size: is for litert; ncnn takes images of any size"),
        (["--format", "ncnn", "--fold", "-o", "x"], "ncnn cannot be folded; onnx, openvino, pt2 can"),
        (["--format", "openvino", "--precision", "float16", "-o", "x"], "precision float16 is for the format onnx"),
        (["--format", "ncnn", "-o", "there"], "there: would be overwritten; pass --overwrite"),
        (["--format", "ncnn", "-o", "file", "--overwrite"], "file: is a file, but ncnn is written as a folder"),
        (["--format", "openvino", "-o", ".", "--overwrite"], ".: is the current folder, or one above it"),
        (["--format", "openvino", "-o", "..", "--overwrite"], "..: is the current folder, or one above it"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").touch()
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


# What github.com/tensorflow/tensorflow, tensorflow/lite/tools/versioning/gpu_compatibility.cc, lets the GPU delegate of
# LiteRT take: those of its operators that an export of ours has had, all on maps of at most four axes.
LITERT_GPU = {
    *("ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "GELU", "LOGISTIC", "MEAN", "MUL", "REDUCE_MAX"),
    *("RESHAPE", "RESIZE_BILINEAR", "SLICE", "SQRT", "SUB", "TRANSPOSE", "TRANSPOSE_CONV"),
}

# Apple publishes no list for its neural engine. docs/unsupported-layers.md of github.com/hollance/neural-engine has
# what it is known to refuse: these, dilated convolutions, and layers that Core ML has no longer.
NEURAL_ENGINE_REFUSES = {"gather", "gather_along_axis", "gather_nd", "gru", "lstm", "rnn", "custom_layer"}


def test_a_conversion_leaves_the_log_of_the_process_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []

    class Converted:
        def export(self, path: str) -> None:
            levels.append(logging.getLogger().getEffectiveLevel())

    fake = SimpleNamespace(convert=lambda network, example: Converted())  # the real one is a download of hundreds of MB
    monkeypatch.setitem(sys.modules, "litert_torch", fake)
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    engine_module("litert").write(torch.nn.Identity(), tmp_path / "x.tflite", torch.rand(1, 3, 8, 8))
    assert levels == [logging.ERROR]
    assert logging.getLogger().level == logging.INFO


@pytest.mark.slow
def test_the_gpu_of_a_phone_has_every_operator_of_litert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("litert_torch", reason="the extra litert brings hundreds of megabytes")
    net = MREN(4, channels=12, num_blocks=1).eval()
    monkeypatch.chdir(tmp_path)
    assert export(net, "mren_s_x4.tflite", "litert", size=(24, 32)) <= 1e-4
    assert engine_module("litert").operators(Path("mren_s_x4.tflite")) <= LITERT_GPU
    write_photos(tmp_path, [(24, 32)])[0].rename("photo.png")
    (script,) = code_blocks(Path("docs/how-to/phone.md"), "python")
    exec(compile(script, "docs/how-to/phone.md", "exec"), {})
    assert Image.open("photo_x4.png").size == (128, 96)


@pytest.mark.slow
def test_core_ml_has_the_structure_that_is_promised(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="the extra coreml is not for Linux; it converts there, and no more")
    net = MREN(4, channels=12, num_blocks=1).eval()
    assert export(net, tmp_path / "small.mlpackage", "coreml", metadata={"scale": "4"}) is None
    assert not engine_module("coreml").operators(tmp_path / "small.mlpackage") & NEURAL_ENGINE_REFUSES
    assert export(net, tmp_path / "small.mlpackage", "coreml") is None  # whose files are those of FOLDERS
