"""Exported files: onnxruntime computes with them what torch computes, and wrong ones are not kept."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from statistics import fmean

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from examples.mren import evaluate, export, onnxfile, quantize
from examples.mren.engines import SUFFIXES
from examples.mren.export import export as export_net
from examples.mren.export import main
from examples.mren.model import MREN, WEIGHTS, load_mren
from examples.records import read_rows
from tests.images import DATA, needs_data, photo, pil_photo, write_photos, write_weights
from tests.test_readme import code_blocks

SMALL = {"scale": 2, "channels": 12, "num_blocks": 1}
SIZES = [(1, 36, 51), (3, 8, 9), (2, 1, 30)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), **SMALL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "Photos"
    write_photos(folder, [(60, 80), (75, 51), (64, 64)])
    return folder


in_each_precision = pytest.mark.parametrize(
    "precision", ["float32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float16", "int8"))]
)


class Exported(dict[str, Path]):
    """The small network by precision, exported by the command when it is first asked for."""

    def __init__(self, weights: Path, photos: Path) -> None:
        super().__init__()
        self.weights, self.photos = weights, photos

    def __missing__(self, precision: str) -> Path:
        file = self.weights.parent / f"{precision}.onnx"
        calibrate = ["--calibrate", str(self.photos)] if precision == "int8" else []
        command = ["--scale", "2", "--weights", str(self.weights), "--precision", precision, *calibrate]
        assert main([*command, "-o", str(file)]) == 0
        return self.setdefault(precision, file)


@pytest.fixture(scope="module")
def files(weights: Path, photos: Path) -> dict[str, Path]:
    return Exported(weights, photos)


def run(file: Path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), pytest.param("float16", 8e-3, marks=pytest.mark.slow)]
)
def test_computes_what_torch_computes(
    files: dict[str, Path], weights: Path, precision: str, tolerance: float, size: tuple[int, int, int]
) -> None:
    x = torch.rand(size[0], 3, *size[1:])
    with torch.no_grad():
        expected = load_mren(2, path=weights)(x)
    torch.testing.assert_close(run(files[precision], x), expected, rtol=0, atol=tolerance)


@in_each_precision
def test_is_one_file_for_any_size_in_float32(files: dict[str, Path], precision: str) -> None:
    model = onnx.load(files[precision], load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    sides = {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sides == {
        "input": (onnx.TensorProto.FLOAT, ["batch", 3, "height", "width"]),
        "output": (onnx.TensorProto.FLOAT, ["batch", 3, "2*height", "2*width"]),
    }
    modes = {onnx.helper.get_node_attr_value(node, "mode") for node in model.graph.node if node.op_type == "Resize"}
    assert modes == {b"linear"}, "those of RBWA; bicubic is a convolution"
    assert not any(node.metadata_props for node in model.graph.node)


@in_each_precision
def test_says_what_it_is(files: dict[str, Path], weights: Path, precision: str) -> None:
    told = {prop.key: prop.value for prop in onnx.load(files[precision]).metadata_props}
    assert told == {
        "scale": "2",
        "variant": "other",
        "precision": precision,
        "folded": "no",
        "values": "RGB between 0 and 1; clamp the output",
        "config": json.dumps(SMALL),
        "weights": "small.safetensors",
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def test_shipped_weights_say_their_variant() -> None:
    assert export.describe_export(WEIGHTS / "mren_x4.safetensors", "float32", folded=True)["variant"] == "mren"


@pytest.mark.slow
def test_statistics_in_float16_do_not_overflow(files: dict[str, Path], weights: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(files["float16"]))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    means = [types[node.input[0]] for node in model.graph.node if node.op_type == "ReduceMean"]
    assert set(means) == {onnx.TensorProto.FLOAT}
    x = torch.rand(1, 3, 200, 200) + 0.5  # a sum over 400 x 400 values near 1 is more than float16 holds
    with torch.no_grad():
        expected = load_mren(2, path=weights)(x)
    torch.testing.assert_close(run(files["float16"], x), expected, rtol=0, atol=8e-3)


# Of the table of the ONNX parser of TensorRT 10.15, docs/operators.md of github.com/onnx/onnx-tensorrt, which takes
# opsets 9 to 24: those of its operators that an export of ours has had. Resize is taken if it is linear or nearest.
TENSORRT = {
    *("Add", "Concat", "Conv", "ConvTranspose", "Gelu", "Mul", "ReduceMax", "ReduceMean", "Resize", "Sigmoid", "Slice"),
    *("Cast", "Gather", "Reshape", "Shape", "Sqrt", "Sub", "Unsqueeze", "Div"),
}


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_tensorrt_has_every_operator(files: dict[str, Path], precision: str) -> None:
    model = onnx.load(files[precision])
    assert {node.op_type for node in model.graph.node} <= TENSORRT
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [20]
    weights = {tensor.name for tensor in model.graph.initializer}
    reductions = [node for node in model.graph.node if node.op_type.startswith("Reduce")]
    assert all(node.input[1] in weights for node in reductions), "axes must be initializers"


@pytest.mark.slow
def test_int8_computes_nearly_the_same(files: dict[str, Path], weights: Path) -> None:
    x = photo(40, 50, seed=7)[None].float() / 255
    with torch.no_grad():
        expected = load_mren(2, path=weights)(x)
    assert -10 * (run(files["int8"], x) - expected).square().mean().log10() > quantize.MIN_PSNR


@pytest.mark.slow
def test_int8_logs_no_warning(weights: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = ["--scale", "2", "--weights", str(weights), "--precision", "int8", "--calibrate", str(photos)]
    assert main([*command, "-o", str(tmp_path / "int8.onnx")]) == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.slow
def test_int8_quantises_the_convolutions_of_features_alone(files: dict[str, Path]) -> None:
    model = onnx.load(files["int8"])
    makers = {output: node for node in model.graph.node for output in node.output}

    def weight(node: onnx.NodeProto) -> str:
        maker = makers.get(node.input[1])
        return node.input[1] if maker is None else maker.input[0]

    names = [weight(node) for node in model.graph.node if node.op_type == "Conv"]
    quantised = [name for name in names if "quantized" in name]
    in_float = [name for name in names if "quantized" not in name]
    assert {name.split(".")[0] for name in quantised} == {"body", "reconstruct"}
    assert all(name.startswith(("head.", "tail.", "enlarge.")) or ".attention." in name for name in in_float)
    assert len(quantised) > len(in_float)
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    assert any(len(scales[node.input[1]].dims) == 1 for node in makers.values() if node.op_type == "DequantizeLinear")


@pytest.mark.slow
def test_what_is_not_what_torch_computes_is_not_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(export.TOLERANCES, "float32", -1.0)
    target = tmp_path / "there.onnx"
    target.write_text("what was there before")
    assert main(["--scale", "2", "--weights", str(weights), "-o", str(target), "--overwrite"]) == 1
    assert "not written: for an input of (1, 3, 1, 1) onnx is" in capsys.readouterr().err
    assert target.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_int8_gone_wrong_is_not_written(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "MIN_PSNR", 200.0)
    images = [photo(20, 24).float() / 255]
    with pytest.raises(ValueError, match=r"not written: .* int8 to torch is \d+\.\d dB .* calibrate on more images"):
        export_net(load_mren(2, path=weights), tmp_path / "bad.onnx", precision="int8", calibration=images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x4.pt"], "x4.pt: must end in .onnx"),
        (["--format", "openvino", "-o", "x4.onnx"], "x4.onnx: has the name of a file, but openvino writes a folder"),
        (["-o", "there.onnx"], "there.onnx: would be overwritten; pass --overwrite"),
        (["--precision", "int8", "-o", "new.onnx"], "--precision int8: needs --calibrate FOLDER"),
        (["--calibrate", ".", "-o", "new.onnx"], "--calibrate: is for --precision int8; float32 needs no images"),
        (
            ["--precision", "int8", "--calibrate", ".", "--fold", "-o", "new.onnx"],
            "--precision int8 cannot be folded",
        ),
        (["--precision", "int8", "--calibrate", "no", "-o", "new.onnx"], "no folder at no"),
        (["--precision", "int8", "--calibrate", ".", "-o", "new.onnx"], "no images; looked for"),
        (["--weights", "no.safetensors", "-o", "new.onnx"], "no weights at no.safetensors"),
        (["--scale", "3", "--weights", "SMALL", "-o", "new.onnx"], "was saved with scale=2, asked for scale=3"),
    ],
)
def test_wrong_arguments(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    code = 1 if "--calibrate" in arguments and "int8" in arguments and "--fold" not in arguments else 2
    assert main([str(weights) if argument == "SMALL" else argument for argument in arguments]) == code
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_wrong_arguments_in_a_program(tmp_path: Path) -> None:
    net = MREN(**SMALL)
    with pytest.raises(ValueError, match="precision must be one of float32, float16, int8; got 'half'"):
        export_net(net, tmp_path / "x.onnx", precision="half")
    with pytest.raises(ValueError, match="int8 needs images to calibrate on, got 0 images"):
        export_net(net, tmp_path / "x.onnx", precision="int8")
    with pytest.raises(ValueError, match="int8 cannot be folded: ONNX Runtime quantises no transposed convolution"):
        export_net(net, tmp_path / "x.onnx", precision="int8", fold=True, calibration=[torch.rand(3, 8, 8)])
    with pytest.raises(ValueError, match="float16 takes no calibration"):
        export_net(net, tmp_path / "x.onnx", precision="float16", calibration=[torch.rand(3, 8, 8)])


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("ncnn", "pnnx", "ncnn"),
        ("litert", "litert_torch", "litert"),
        ("coreml", "coremltools", "coreml"),
    ],
)
def test_missing_packages_are_named(
    format: str,
    package: str,
    extra: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    target = tmp_path / f"x{SUFFIXES[format]}"
    size = ["--size", "8", "8"] if format == "litert" else []
    command = ["--weights", str(weights), "--format", format, *size, "-o", str(target)]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f'python -m pip install -e ".[examples,{extra}]"' in line
    assert not list(tmp_path.iterdir())


def test_the_script_in_the_docs(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mren_x4.onnx").write_bytes(files["float32"].read_bytes())
    pil_photo(20, 30).save("photo.png")
    (script,) = code_blocks(Path("docs/how-to/export.md"), "python")
    exec(compile(script, "docs/how-to/export.md", "exec"), {})
    with Image.open("photo_x4.png") as enlarged:
        assert enlarged.size == (60, 40)
        expected = run(files["float32"], photo(20, 30)[None].float() / 255)[0].clamp(0, 1).mul(255).round()
        assert np.abs(np.array(enlarged).astype(int) - expected.permute(1, 2, 0).int().numpy()).max() <= 1


@pytest.mark.slow
def test_exported_files_can_be_scored(
    files: dict[str, Path], weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(photos), "--scale", "2", "--weights", str(weights), "--onnx"]
    assert evaluate.main([*command, str(files["float32"]), str(files["int8"])]) == 0
    lines = {line.split("  ")[0]: line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()}
    assert lines["float32.onnx"].strip() == lines["small"].strip()
    assert "int8.onnx" in lines
    assert evaluate.main(["--data", str(photos), "--scale", "4", "--onnx", str(files["float32"])]) == 1
    assert "is of scale 2, asked for 4" in capsys.readouterr().err
    assert evaluate.main([*command, "no.onnx"]) == 1
    assert "no.onnx: no such file; python -m examples.mren.export -o no.onnx makes one" in capsys.readouterr().err


@pytest.mark.slow
def test_latencies_are_measured_in_turn(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(files["float32"]), str(files["int8"])]
    capsys.readouterr()  # what exporting the files printed, if this test is the first that needs them
    assert onnxfile.main([*given, "--size", "12", "16", "--rounds", "3"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("1 x 3 x 12 x 16, one thread, processor time")
    assert [line.split(":")[0] for line in rest] == ["float32.onnx", "int8.onnx"]
    assert rest[0].endswith("ratio 1.00")
    with pytest.raises(SystemExit, match="2"):
        onnxfile.main([*given, "--rounds", "0"])
    assert "--rounds: must be a whole number of at least 1, got 0" in capsys.readouterr().err
    broken = files["float32"].parent / "broken.onnx"
    broken.write_text("no model")
    assert onnxfile.main([str(broken)]) == 1
    assert "broken.onnx: onnxruntime cannot run it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("scale", [3, 4])
def test_other_scales(scale: int, fold: bool, tmp_path: Path) -> None:
    net = MREN(scale, channels=12, num_blocks=1)
    assert export_net(net, tmp_path / "net.onnx", fold=fold) <= 1e-4
    assert run(tmp_path / "net.onnx", torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


@pytest.mark.slow
@needs_data
def test_the_shipped_network_in_every_precision(tmp_path: Path) -> None:
    # float32 as in the committed scores; float16 loses nothing, int8 less than a tenth of a decibel.
    rows = read_rows(WEIGHTS / "mren_x4.scores.csv")
    scored = fmean(float(row["psnr"]) for row in rows if (row["dataset"], row["method"]) == ("Set5", "mren"))
    for precision, lost in {"float32": 0.0, "float16": 0.0, "int8": 0.09}.items():
        file = tmp_path / f"{precision}.onnx"
        calibrate = ["--calibrate", str(DATA / "train" / "bsds500")] if precision == "int8" else []
        assert main(["--precision", precision, *calibrate, "-o", str(file)]) == 0
        methods = {precision: onnxfile.onnx_upscaler(file, 4)}
        scores = list(evaluate.evaluate(sorted((DATA / "test" / "Set5").glob("*.png")), 4, methods))
        assert evaluate.mean_score(scores).psnr == pytest.approx(scored - lost, abs=0.02), precision
