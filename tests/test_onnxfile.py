"""ONNX files from anybody: one line says what is wrong with them, and none runs for ever or reads other files."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from examples.mren import evaluate, onnxfile
from tests.images import write_photos, write_weights

SCALE = 2


def enlarging(
    *, kind: int = TensorProto.FLOAT, size: tuple = ("h", "w"), channels: object = 3, factor: float = SCALE
) -> onnx.ModelProto:
    """A model that repeats each pixel."""
    scales = numpy_helper.from_array(np.array([1, 1, factor, factor], dtype=np.float32), "scales")
    nodes = [helper.make_node("Resize", ["input", "", "scales"], ["output"], mode="nearest")]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", kind, ["n", channels, *size])],
        [helper.make_tensor_value_info("output", kind, ["n", channels, "H", "W"])],
        [scales],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"scale": str(SCALE)})
    return model


def looping() -> onnx.ModelProto:
    """A model that would add 1 more often than anybody can wait for."""
    step = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"]), helper.make_node("Identity", ["go"], ["on"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    model = enlarging()
    model.graph.initializer.append(numpy_helper.from_array(np.int64(2**62), "times"))
    model.graph.initializer.append(numpy_helper.from_array(np.bool_(True), "true"))
    model.graph.node.insert(0, helper.make_node("Loop", ["times", "true", "input"], ["looped"], body=step))
    model.graph.node[1].input[0] = "looped"
    return model


def reading_elsewhere() -> onnx.ModelProto:
    model = enlarging()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/hostname"
    return model


def with_two_inputs() -> onnx.ModelProto:
    model = enlarging()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    return model


def with_a_function() -> onnx.ModelProto:
    model = enlarging()
    opset = helper.make_opsetid("", 20)
    same = helper.make_function("local", "Same", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [opset])
    model.functions.append(same)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.insert(0, helper.make_node("Same", ["input"], ["same"], domain="local"))
    model.graph.node[1].input[0] = "same"
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), scale=SCALE, channels=12, num_blocks=1)


def score(tmp_path: Path, weights: Path, *files: Path, more: tuple[str, ...] = ()) -> int:
    write_photos(tmp_path / "set", [(48, 48)])
    arguments = ["--data", str(tmp_path / "set"), "--scale", str(SCALE), "--weights", str(weights), "--device", "cpu"]
    return evaluate.main([*arguments, "--onnx", *map(str, files), *more])


def test_a_model_of_anybody_is_scored(tmp_path: Path, weights: Path, capsys) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    onnx.save(enlarging(), tmp_path / "a" / "net.onnx")
    onnx.save(with_a_function(), tmp_path / "b" / "net.onnx")
    assert score(tmp_path, weights, tmp_path / "a" / "net.onnx", tmp_path / "b" / "net.onnx") == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == ["bicubic", "small", "a/net.onnx", "b/net.onnx"]


def test_scores_do_not_replace_a_model_that_is_scored(tmp_path: Path, weights: Path, capsys) -> None:
    file = tmp_path / "net.onnx"
    onnx.save(enlarging(), file)
    before = file.read_bytes()
    assert score(tmp_path, weights, file, more=("--csv", str(file), "--overwrite")) == 2
    assert f"{file}: is an input, which is never overwritten" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (looping, "has the operator Loop"),
        (reading_elsewhere, "keeps its weights in other files"),
        (with_two_inputs, "has 2 inputs"),
        (lambda: enlarging(kind=TensorProto.UINT8), "takes images of uint8; float is needed"),
        (lambda: enlarging(kind=TensorProto.INT64), "takes images of int64; float is needed"),
        (lambda: enlarging(size=(64, 64)), "takes images of one size only"),
        (lambda: enlarging(channels=1), "does not take images of shape (N, 3, H, W)"),
        (lambda: enlarging(factor=3), "gives torch.float32 of (1, 3, 72, 72); float of (1, 3, 48, 48) is needed"),
        (onnx.ModelProto, "net.onnx: "),
    ],
)
def test_what_is_wrong_with_a_model_is_one_line(make, words: str, tmp_path: Path, weights: Path, capsys) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(make().SerializeToString())
    started = time.process_time()
    assert score(tmp_path, weights, file) == 1
    assert time.process_time() - started < 10
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(file) in errors[0]
    assert words in errors[0]


def test_the_command_for_times_names_the_file_that_fails(tmp_path: Path, capsys) -> None:
    onnx.save(enlarging(), tmp_path / "good.onnx")
    onnx.save(enlarging(size=(64, 64)), tmp_path / "fixed.onnx")
    arguments = ["--size", "8", "9", "--rounds", "1"]
    assert onnxfile.main([str(tmp_path / "good.onnx"), str(tmp_path / "good.onnx"), *arguments]) == 1
    output = capsys.readouterr()
    assert "good.onnx: is given twice" in output.err
    assert output.out == ""  # before anything is timed
    assert onnxfile.main([str(tmp_path / "good.onnx"), *arguments]) == 0
    assert onnxfile.main([str(tmp_path / "good.onnx"), str(tmp_path / "fixed.onnx"), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'fixed.onnx'}: onnxruntime fails at images of (1, 3, 8, 9)")


def test_more_threads_than_a_computer_has_are_a_usage_error(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        onnxfile.main([str(tmp_path / "net.onnx"), "--threads", "1000000000000"])
    assert "--threads: must be a whole number of at least 0 and at most 4096" in capsys.readouterr().err


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.onnx: no such file; python -m examples\.mren\.export -o"):
        onnxfile.open_session(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="is a folder, but a file is needed"):
        onnxfile.open_session(tmp_path)


def test_a_session_computes(tmp_path: Path) -> None:
    onnx.save(enlarging(), tmp_path / "net.onnx")
    x = torch.rand(1, 3, 4, 5)
    expected = x.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    assert torch.equal(onnxfile.run_session(onnxfile.open_session(tmp_path / "net.onnx"), x), expected)
