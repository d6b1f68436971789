"""Weight files from anybody: what they claim is held to what they hold before any of it is allocated."""

from __future__ import annotations

import json
import os
import stat
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.mren import evaluate, upscale
from examples.mren.model import MREN, load_mren, read_weights, save_weights
from examples.mren.spandrel_arch import write_for_spandrel
from examples.mren.training.warmstart import warm_start
from examples.mren.weightfile import KEY, parse_arguments
from tests.images import write_photos

CONFIG = {"scale": 2, "channels": 12, "num_blocks": 1}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(MREN(**CONFIG).state_dict())


def write(file: Path, state: dict[str, torch.Tensor], arguments: object = CONFIG) -> Path:
    save_file(state, file, metadata={KEY: arguments if isinstance(arguments, str) else json.dumps(arguments)})
    return file


@pytest.mark.parametrize(
    "arguments",
    [
        CONFIG | {"num_blocks": 10**5},
        CONFIG | {"num_blocks": 2},
        CONFIG | {"num_blocks": True},
        CONFIG | {"channels": 20_000},
        CONFIG | {"channels": 1000},
        CONFIG | {"channels": -12},
        CONFIG | {"scale": 2.0},
        CONFIG | {"scale": "2"},
        CONFIG | {"scale": 5},
        CONFIG | {"device": "meta"},
        CONFIG | {"communication": float("nan")},
        CONFIG | {"communication": "os.system"},
        CONFIG | {"communication": [0.2]},
        CONFIG | {"reconstruct_channels": [10**9]},
        CONFIG | {"parts": {"both": 1}},
        CONFIG | {"exchange": "x" * 100_000},
        {"channels": 12},
        {},
        [1],
        None,
        float("nan"),
        "",
        "{",
        "[" * 9_000,
        '{"a":' * 9_000,
        '{"scale": 2, "\x1b[2J": 1}',
        "1" * 5_000,
        '{"scale": 2, "communication": ' + "9" * 400 + "}",  # more than a float holds
    ],
    ids=lambda value: repr(value)[:40],
)
def test_false_arguments_are_one_line_with_the_files_name(
    arguments: object, state: dict[str, torch.Tensor], tmp_path: Path, capsys
) -> None:
    file = write(tmp_path / "given.safetensors", state, arguments)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"given\.safetensors: "):
        load_mren(2, path=file)
    (source,) = write_photos(tmp_path / "in", [(8, 9)])
    assert upscale.main([str(source), "-o", str(tmp_path / "x.png"), "--scale", "2", "--weights", str(file)]) == 2
    assert time.process_time() - started < 10
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: ")
    assert line.isprintable()
    assert len(line) < 1500
    assert not (tmp_path / "x.png").exists()


def test_arguments_that_a_file_may_hold() -> None:
    given = {
        "scale": 4,
        "channels": 60,
        "num_blocks": 6,
        "parts": "both",
        "exchange": None,
        "residual": True,
        "communication": "gated",
        "chain": "network",
        "gate": False,
        "relay": "raw",
        "reconstruct_channels": [24, 16],
    }
    assert parse_arguments(json.dumps(given)) == given
    assert parse_arguments('{"scale": 2, "reconstruct_channels": null}')["reconstruct_channels"] is None
    with pytest.raises(ValueError, match="its arguments are 10012 characters long, more than any network needs"):
        parse_arguments('{"scale": 2' + " " * 10_000 + "}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_no_numbers_are_refused(value: float, dtype: torch.dtype, state, tmp_path: Path) -> None:
    broken = {name: tensor.to(dtype) for name, tensor in state.items()}
    broken["tail.bias"] = torch.full((3,), value, dtype=dtype)
    with pytest.raises(ValueError, match=r"a\.safetensors: tail\.bias holds NaN or infinite values"):
        load_mren(2, path=write(tmp_path / "a.safetensors", broken))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_weights_that_are_not_floating_point_are_refused(dtype: torch.dtype, state, tmp_path: Path) -> None:
    cast = state | {"tail.bias": state["tail.bias"].to(dtype)}
    with pytest.raises(ValueError, match=r"a\.safetensors: tail\.bias is of type .*; save it as floating-point"):
        load_mren(2, path=write(tmp_path / "a.safetensors", cast))


def test_half_precision_is_loaded_as_float32(state, tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in state.items()}
    net = load_mren(2, path=write(tmp_path / "a.safetensors", half))
    for name, tensor in net.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[name].float()), name
    save_weights(net.half(), tmp_path / "b.safetensors", CONFIG)
    assert {tensor.dtype for tensor in load_file(tmp_path / "b.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("tail.bias"), "it lacks 'tail.bias'"),
        (lambda state: state.update({"x" * 5000: torch.zeros(1)}), "it has 'xxx"),
        (lambda state: state.update({f"\x1b[2J{i}": torch.zeros(1) for i in range(50)}), r"\\x1b.* and 49 more"),
        (lambda state: state.update({"tail.bias": torch.zeros(4)}), r"tail\.bias is \(4,\), not \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_cut(change, words: str, state, tmp_path: Path) -> None:
    changed = dict(state)
    change(changed)
    with pytest.raises(ValueError, match=words) as caught:
        load_mren(2, path=write(tmp_path / "a.safetensors", changed))
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_shapes_that_the_file_only_claims_are_not_allocated(tmp_path: Path) -> None:
    header = {"__metadata__": {KEY: json.dumps(CONFIG)}}
    header["head.weight"] = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(ValueError, match=r"a\.safetensors: not a readable"):
        load_mren(2, path=tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 2**62) + text)
    with pytest.raises(ValueError, match=r"b\.safetensors: not a readable"):
        load_mren(2, path=tmp_path / "b.safetensors")


def test_every_reader_is_careful(state, tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "a.safetensors", state | {"tail.bias": torch.full((3,), torch.nan)})
    with pytest.raises(ValueError, match="NaN or infinite"):
        read_weights(file)
    with pytest.raises(ValueError, match="NaN or infinite"):
        warm_start(MREN(**CONFIG), file)
    write_photos(tmp_path / "set", [(48, 48)])
    assert evaluate.main(["--data", str(tmp_path / "set"), "--scale", "2", "--weights", str(file)]) == 1
    assert "NaN or infinite" in capsys.readouterr().err


def test_the_scale_is_the_files_own_if_none_is_asked_for(tmp_path: Path) -> None:
    save_weights(MREN(3, channels=12, num_blocks=1), str(tmp_path / "a.safetensors"), CONFIG | {"scale": 3})
    assert load_mren(path=tmp_path / "a.safetensors").scale == 3
    assert load_mren().scale == 4
    with pytest.raises(ValueError, match="scale must be one of"):
        load_mren(5)
    with pytest.raises(TypeError, match=r"load_mren: scale must be .* got 2\.0"):
        load_mren(2.0)


def test_the_variant_is_the_files_own_if_none_is_asked_for(tmp_path: Path, capsys) -> None:
    file = tmp_path / "narrow.safetensors"
    config = {"scale": 2, "channels": 60, "num_blocks": 1, "reconstruct_channels": [24, 16]}
    save_weights(MREN(**config), file, config)
    assert load_mren(2, path=file).tail.in_channels == load_mren(2, "mren_s", path=file).tail.in_channels == 24
    with pytest.raises(ValueError, match=r"narrow.* not the arguments of mren; leave out variant= \(or --variant\)"):
        load_mren(2, "mren", path=file)
    write_photos(tmp_path / "set", [(48, 48)])
    arguments = ["--data", str(tmp_path / "set"), "--weights", str(file), "--device", "cpu"]
    assert evaluate.main([*arguments, "--variant", "mren_l"]) == 1
    assert "not the arguments of mren_l" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--variant", "mren_s"]) == evaluate.main(arguments) == 0


def test_too_little_memory_is_not_the_files_fault(state, tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path / "a.safetensors", state)

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("examples.mren.weightfile.safe_open", no_memory)
    with pytest.raises(MemoryError):
        load_mren(2, path=file)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_permissions_of_a_weight_file_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_weights(MREN(**CONFIG), tmp_path / "a.safetensors", CONFIG)
        write_for_spandrel(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    finally:
        os.umask(before)
    for name in ("a", "b"):
        assert stat.S_IMODE((tmp_path / f"{name}.safetensors").stat().st_mode) == 0o640
