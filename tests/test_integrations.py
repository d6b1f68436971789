"""MREN in the packages of the field: each is asked, as its users ask it, and must give what MREN gives."""

from __future__ import annotations

import copy
import inspect
import json
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import spandrel
import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

from benchmarks import isolated
from examples.mren import timm_models
from examples.mren.hub import HubMREN
from examples.mren.model import MREN, WEIGHTS, load_mren, save_weights, weights_path
from examples.mren.spandrel_arch import ARGUMENTS, MRENArch, register_spandrel, write_for_spandrel
from sc_blocks import GatedCommunication, LearnableCommunication
from tests.images import photo

SMALL = {"channels": 12, "num_blocks": 2}

# Each option of MREN with another value than the default: what a tool has to bring back.
TOLD = [
    {"parts": "spatial"},
    {"parts": "channel"},
    {"communication": "learnable"},
    {"communication": "gated"},
    {"communication": "gated", "chain": "network"},
    {"num_blocks": 3, "channels": 16},
    {"reconstruct_channels": [8, 8]},
]
UNTOLD = [
    {"exchange": "inputs"},
    {"exchange": None},
    {"residual": False},
    {"communication": 0.7},
    {"communication": None},
    {"gate": False},
    {"relay": "fused"},
    {"chain": "network"},
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    looked_for: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        looked_for.append(address)  # what is raised here may be caught by who called
        raise AssertionError("something was looked for in the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert looked_for == []


@pytest.fixture
def x() -> Tensor:
    return photo(12, 17)[None].float() / 255


def lively(net: nn.Module) -> nn.Module:
    """Random numbers in every tensor: biases and gates that start at zero or alike would hide a wrong option."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def run(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(x)


def test_imports_register_in_timm_and_nowhere_else() -> None:
    program = (
        "import spandrel, timm\n"
        "assert not timm.is_model('mren')\n"
        "import examples.mren.hub, examples.mren.spandrel_arch, examples.mren.timm_models\n"
        "assert timm.list_models('mren*') == ['mren', 'mren_l', 'mren_s']\n"
        "assert 'MREN' not in spandrel.MAIN_REGISTRY\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], check=True, cwd=root)


# spandrel


@pytest.fixture
def registry() -> spandrel.ArchRegistry:
    registry = spandrel.MAIN_REGISTRY.copy()
    register_spandrel(registry)
    return registry


@pytest.fixture
def loader(registry: spandrel.ArchRegistry) -> spandrel.ModelLoader:
    return spandrel.ModelLoader(registry=registry)


@pytest.fixture
def global_registry() -> Iterator[None]:
    """Spandrel's own registry, put back as it was."""
    names = ("_architectures", "_ordered", "_by_id")
    before = {name: getattr(spandrel.MAIN_REGISTRY, name) for name in names}
    yield
    for name, value in before.items():
        setattr(spandrel.MAIN_REGISTRY, name, value)


@pytest.mark.usefixtures("global_registry")
def test_spandrel_loads_the_shipped_weights_after_one_call(x: Tensor) -> None:
    register_spandrel()
    with pytest.warns(UserWarning, match="alike"):
        model = spandrel.ModelLoader().load_from_file(WEIGHTS / "mren_x4.safetensors")
    assert isinstance(model, spandrel.ImageModelDescriptor)
    assert isinstance(model.model, MREN)
    assert (model.architecture.id, model.architecture.name, model.purpose) == ("MREN", "MREN", "SR")
    assert (model.scale, model.input_channels, model.output_channels) == (4, 3, 3)
    assert model.size_requirements.none
    assert model.tiling is spandrel.ModelTiling.SUPPORTED
    assert model.tags == ["60ch", "6nb"]
    assert not model.model.training
    ours = run(load_mren(4), x)
    assert torch.equal(run(model.model, x), ours)
    assert torch.equal(model(x), ours.clamp(0, 1))  # spandrel clamps, as its contract says


@pytest.mark.parametrize(("dtype", "levels"), [(torch.float16, 1), (torch.bfloat16, 6)], ids=str)
@pytest.mark.filterwarnings("ignore:MREN. the tensors of x3 and x4")
def test_spandrel_may_lower_the_precision(
    loader: spandrel.ModelLoader, x: Tensor, dtype: torch.dtype, levels: float
) -> None:
    model = loader.load_from_file(WEIGHTS / "mren_x4.safetensors")
    full = model(x)
    low = model.to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    assert (low.float() - full).abs().max() <= levels / 255


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 2), (13, 9)], ids=str)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_spandrel_need_not_pad(loader: spandrel.ModelLoader, tmp_path: Path, scale: int, size: tuple[int, int]) -> None:
    model = loader.load_from_file(marked(tmp_path, lively(MREN(scale, **SMALL)), {"scale": scale, **SMALL}))
    assert model(torch.rand(1, 3, *size)).shape == (1, 3, scale * size[0], scale * size[1])


def marked(folder: Path, net: nn.Module, arguments: dict[str, Any]) -> Path:
    save_weights(net, folder / "plain.safetensors", arguments)
    write_for_spandrel(folder / "plain.safetensors", folder / "marked.safetensors")
    return folder / "marked.safetensors"


@pytest.mark.parametrize("options", [{}, *TOLD], ids=str)
def test_spandrel_reads_from_tensors_what_they_tell(
    loader: spandrel.ModelLoader, x: Tensor, options: dict[str, Any]
) -> None:
    net = lively(MREN(2, **SMALL | options))
    state = net.state_dict()
    names = list(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is guessed
        model = loader.load_from_state_dict(state)
    assert list(state) == names
    assert model.scale == 2
    assert torch.equal(run(model.model, x), run(net, x))
    expected = SMALL | options
    tags = [f"{expected['channels']}ch", f"{expected['num_blocks']}nb"]
    assert model.tags == tags + [f"{name}={options[name]}" for name in options if name not in SMALL]


def test_tensors_do_not_tell_3_from_4() -> None:
    """If this fails, they do: then read_arguments should look, and not warn."""
    three, four = ({n: t.shape for n, t in MREN(s, **SMALL).state_dict().items()} for s in (3, 4))
    assert three == four


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *((dtype, {"scale": 3}) for dtype in (torch.float32, torch.float16)),
        *((torch.bfloat16, options) for options in ({"scale": 3}, *TOLD, *UNTOLD)),
    ],
    ids=str,
)
def test_spandrel_gets_every_option_from_a_marked_copy(
    loader: spandrel.ModelLoader, tmp_path: Path, x: Tensor, options: dict[str, Any], dtype: torch.dtype
) -> None:
    arguments = {"scale": 4, **SMALL} | options
    net = lively(MREN(**arguments))
    file = marked(tmp_path, net, arguments)
    # Tools that store files in half precision cast all tensors; the arguments must live through that.
    state = {name: tensor.to(dtype) for name, tensor in loader.load_state_dict_from_file(file).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = loader.load_from_state_dict(state)
    assert model.scale == arguments["scale"]
    assert torch.equal(run(model.model, x), run(net.to(dtype).float(), x))
    for name in options.keys() - {"scale", *SMALL}:
        assert f"{name}={options[name]}" in model.tags


def test_a_copy_for_spandrel_leaves_the_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_weights(MREN(2, **SMALL), file, {"scale": 2, **SMALL})
    before = file.read_bytes()
    with pytest.raises(ValueError, match="must be another file"):
        write_for_spandrel(file, tmp_path / "." / "own.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got .*own\.pth"):
        write_for_spandrel(file, tmp_path / "own.pth")
    assert file.read_bytes() == before
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no constructor arguments"):
        write_for_spandrel(tmp_path / "other.safetensors", tmp_path / "copy.safetensors")


def as_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("not json", "mren_arguments must hold .* as JSON"),
        ("[2]", r"by name, got \[2\]"),
        ('{"scale": 2, "wide": 12}', "unexpected keyword argument 'wide'"),
        ('{"scale": 5}', "scale must be one of 2, 3, 4; got 5"),
        ('{"scale": 2, "channels": 12, "num_blocks": 1}', r"do not fit .*'num_blocks': 1.*Unexpected key"),
    ],
)
def test_marks_that_are_wrong_are_named(loader: spandrel.ModelLoader, mark: str, message: str) -> None:
    state = MREN(2, **SMALL).state_dict() | {ARGUMENTS: as_tensor(mark)}
    with pytest.raises(ValueError, match=f"(?s)MREN: .*{message}"):
        loader.load_from_state_dict(state)


@pytest.mark.parametrize("tensor", [torch.zeros(2, 3), torch.tensor(300.0)], ids=["matrix", "scalar"])
def test_a_mark_of_another_shape_is_named(loader: spandrel.ModelLoader, tensor: Tensor) -> None:
    with pytest.raises(ValueError, match=f"MREN: {ARGUMENTS} must hold the constructor's arguments as JSON"):
        loader.load_from_state_dict(MREN(2, **SMALL).state_dict() | {ARGUMENTS: tensor})


def test_tensors_that_do_not_fit_are_named(loader: spandrel.ModelLoader) -> None:
    per_channel = MREN(2, **SMALL, communication=lambda c: LearnableCommunication(c, per_channel=True))
    with pytest.raises(ValueError, match=r"(?s)do not fit .*'communication': 'learnable'.*size mismatch"):
        loader.load_from_state_dict(per_channel.state_dict())


@pytest.mark.parametrize("more", [{}, {"head.weight": torch.zeros(1024, 3, 3, 3)}], ids=["size", "name"])
def test_a_small_file_does_not_allocate_a_large_network(loader: spandrel.ModelLoader, more: dict[str, Tensor]) -> None:
    small = {name: tensor[:1] for name, tensor in MREN(2, **SMALL).state_dict().items()}
    state = small | more | {ARGUMENTS: as_tensor('{"scale": 2, "channels": 1024, "num_blocks": 16}')}

    def load() -> None:
        with pytest.raises(ValueError, match=r"do not fit .*(size mismatch|missing key)"):
            loader.load_from_state_dict(state)

    allocated = isolated.peak(load, torch.device("cpu"))
    assert allocated is None or allocated < 300e6  # the network takes 686 MB; only Linux counts


def test_registering_twice_is_registering_once(registry: spandrel.ArchRegistry) -> None:
    count = len(registry)
    register_spandrel(registry)
    assert len(registry) == count == len(set(registry.architectures()))
    assert sum(support.architecture.id == "MREN" for support in registry) == 1


def test_a_stranger_of_our_name_is_not_taken_for_ours() -> None:
    class Stranger(spandrel.Architecture[nn.Module]):
        def __init__(self) -> None:
            super().__init__(id="MREN", detect=lambda state: False)

        def load(self, state_dict: spandrel.StateDict) -> spandrel.ImageModelDescriptor[nn.Module]:
            raise NotImplementedError

    registry = spandrel.ArchRegistry()
    registry.add(spandrel.ArchSupport.from_architecture(Stranger()))
    with pytest.raises(spandrel.DuplicateArchitectureError, match="MREN"):
        register_spandrel(registry)


STRANGERS = {
    "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
    "SAFMN": lambda: SAFMN(dim=8, n_blocks=1, upscaling_factor=2),
    "Compact": lambda: Compact(num_feat=8, num_conv=2, upscale=2),
    "ESRGAN": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=2),
    "RCAN": lambda: RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16),
    "PLKSR": lambda: PLKSR(dim=16, n_blocks=1, upscaling_factor=2),
    "RealPLKSR": lambda: RealPLKSR(dim=16, n_blocks=1, upscaling_factor=2),
    "SwinIR": lambda: SwinIR(
        embed_dim=12, depths=[1], num_heads=[2], window_size=8, upscale=2, upsampler="pixelshuffle"
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_other_networks_are_recognised_as_before(registry: spandrel.ArchRegistry, name: str) -> None:
    state = STRANGERS[name]().state_dict()
    assert not MRENArch().detect(state)
    model = registry.load(state)
    assert model.architecture.id == ("PLKSR" if name == "RealPLKSR" else name)
    ids = [support.architecture.id for support in registry.architectures("detection")]
    theirs = [support.architecture.id for support in spandrel.MAIN_REGISTRY.architectures("detection")]
    assert [i for i in ids if i != "MREN"] == [i for i in theirs if i != "MREN"]


@pytest.mark.parametrize("options", [{}, *TOLD], ids=str)
def test_no_other_network_is_recognised_in_mren(options: dict[str, Any]) -> None:
    state = MREN(4, **SMALL | options).state_dict()
    claims = [s.architecture.id for s in spandrel.MAIN_REGISTRY if s.detect(state) and s.architecture.id != "MREN"]
    assert claims == []
    assert MRENArch().detect(state)


def test_mren_in_part_is_not_mren(registry: spandrel.ArchRegistry) -> None:
    state = MREN(4, **SMALL).state_dict()
    body = {name.removeprefix("body."): tensor for name, tensor in state.items() if name.startswith("body.")}
    classifier = {name: tensor for name, tensor in state.items() if not name.startswith(("reconstruct", "tail"))}
    for part in (body, classifier):
        with pytest.raises(spandrel.UnsupportedModelError):
            registry.load(part)


# timm


def test_timm_knows_that_there_are_weights() -> None:
    assert timm.list_pretrained("mren*") == ["mren", "mren_l", "mren_s"]
    assert timm.is_model_pretrained("mren_s")
    assert timm.create_model("mren", scale=2, num_blocks=1).pretrained_cfg["file"] == str(weights_path(2))
    assert "file" not in timm.create_model("mren_l", scale=2, num_blocks=1).pretrained_cfg


def test_timm_takes_the_weights_that_it_is_told(x: Tensor) -> None:
    photo = timm.create_model("mren_s", pretrained=True, pretrained_cfg_overlay={"file": "photo"})
    assert torch.equal(run(photo, x), run(load_mren(4, "mren_s", path="photo"), x))
    with pytest.raises(ValueError, match="saved with scale=4, asked for scale=2"):
        timm.create_model("mren", scale=2, pretrained=True, pretrained_cfg_overlay={"file": str(weights_path(4))})


def test_timm_gives_the_shipped_weights(x: Tensor) -> None:
    net = timm.create_model("mren", scale=4, pretrained=True)
    assert not net.training
    assert torch.equal(run(net, x), run(load_mren(4), x))
    assert net.pretrained_cfg["file"] == str(weights_path(4))
    assert next(timm.create_model("mren", pretrained=True, dtype=torch.float16).parameters()).dtype == torch.float16


@pytest.mark.parametrize(("name", "channels"), [("mren", 60), ("mren_s", 60), ("mren_l", 84)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_timm_builds_each_network(name: str, channels: int, scale: int) -> None:
    net = timm.create_model(name, scale=scale, num_blocks=1)
    assert type(net) is MREN
    assert (net.scale, net.head.out_channels, len(net.body)) == (scale, channels, 1)
    narrow = {"mren_s": 24}.get(name, channels)
    assert net.reconstruct[0].in_channels == narrow


@pytest.mark.parametrize("options", [o for o in [*TOLD, *UNTOLD] if None not in o.values()], ids=str)
def test_timm_hands_options_on(x: Tensor, options: dict[str, Any]) -> None:
    options = {"num_blocks": 1} | {name: value for name, value in options.items() if "channels" not in name}
    net = lively(timm.create_model("mren", scale=2, **options))
    expected = MREN(2, **options)
    expected.load_state_dict(net.state_dict())
    assert torch.equal(run(net, x), run(expected, x))


def test_timm_says_which_weights_there_are() -> None:
    assert not weights_path(3, "mren_l").exists()
    with pytest.raises(FileNotFoundError, match=r"mren_l_x3.*Shipped: .*mren_x2, mren_x3, mren_x4.*--scale 3"):
        timm.create_model("mren_l", scale=3, pretrained=True)


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("wrong", ["num_block", "num_classes", "in_chans", "channels", "drop_rate"])
def test_timm_does_not_swallow_arguments(pretrained: bool, wrong: str) -> None:
    with pytest.raises(TypeError, match=rf"mren: no argument {wrong}; MREN takes scale, .*num_blocks"):
        timm.create_model("mren", pretrained=pretrained, **{wrong: 1})


@pytest.mark.parametrize("options", [{"num_blocks": 3}, {"exchange": "inputs"}], ids=str)
def test_timm_does_not_mix_weights_with_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"weight file determines .* got {next(iter(options))} too"):
        timm.create_model("mren", pretrained=True, **options)


def test_timm_reads_a_file_that_it_is_given(tmp_path: Path, x: Tensor) -> None:
    arguments = {"scale": 2, **SMALL, "exchange": None}
    net = lively(MREN(**arguments))
    file = str(tmp_path / "own.safetensors")
    save_weights(net, Path(file), arguments)
    for given in ({"pretrained_cfg_overlay": {"file": file}}, {"pretrained_cfg": {"file": file}}):
        loaded = timm.create_model("mren", scale=2, pretrained=True, cache_dir=tmp_path / "cache", **given)
        assert torch.equal(run(loaded, x), run(net, x))
        assert loaded.pretrained_cfg["file"] == file
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="saved with scale=2, asked for scale=4"):
        timm.create_model("mren", pretrained=True, pretrained_cfg_overlay={"file": file})
    with pytest.raises(ValueError, match="read from a file, got hf_hub_id"):
        timm.create_model("mren", pretrained=True, pretrained_cfg_overlay={"hf_hub_id": "timm/mren"})


def test_timm_loads_a_checkpoint(tmp_path: Path, x: Tensor) -> None:
    net = lively(MREN(2, num_blocks=1))
    save_weights(net, tmp_path / "own.safetensors", {"scale": 2, "num_blocks": 1})
    loaded = timm.create_model("mren", scale=2, num_blocks=1, checkpoint_path=str(tmp_path / "own.safetensors"))
    assert torch.equal(run(loaded, x), run(net, x))


def test_timm_prepares_images_as_mren_wants_them() -> None:
    net = timm.create_model("mren", num_blocks=1)
    config = timm.data.resolve_data_config(model=net)
    assert (config["mean"], config["std"]) == ((0.0,) * 3, (1.0,) * 3)
    assert net.default_cfg["num_classes"] == 0
    assert net.default_cfg["architecture"] == "mren"


def test_what_the_timm_module_says_about_none_is_so() -> None:
    """If this fails, timm hands None on: then the module's docstring should not warn."""
    assert timm.create_model("mren", num_blocks=1, exchange=None).body[0].stages[0].exchange == "outputs"
    assert timm_models.mren(num_blocks=1, exchange=None).body[0].stages[0].exchange is None


# huggingface_hub


@pytest.mark.parametrize(
    ("scale", "options"), [(2, {}), (3, {}), *((4, options) for options in ({}, *TOLD, *UNTOLD))], ids=str
)
def test_the_hub_brings_back_what_was_saved(tmp_path: Path, x: Tensor, scale: int, options: dict[str, Any]) -> None:
    arguments = SMALL | options
    net = lively(HubMREN(scale, **arguments))
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.keys() == inspect.signature(MREN).parameters.keys() - {"device", "dtype"}
    assert {name: config[name] for name in ("scale", *arguments)} == {"scale": scale, **arguments}

    loaded = HubMREN.from_pretrained(tmp_path)
    plain = load_mren(scale, path=tmp_path / "model.safetensors")
    assert loaded.scale == scale
    for again in (loaded, plain):
        assert torch.equal(run(again, x), run(net, x))
        assert not any(module.training for module in again.modules())

    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_the_hub_keeps_numbers_of_numpy(tmp_path: Path) -> None:
    given = {"channels": np.int64(12), "num_blocks": np.int32(1), "reconstruct_channels": (np.int64(8), np.int64(4))}
    given |= {"communication": np.float32(0.5), "gate": np.bool_(False)}
    HubMREN(np.int64(3), **given).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"scale": 3, "channels": 12, "num_blocks": 1, "reconstruct_channels": [8, 4], "communication": 0.5}
    assert config == config | expected | {"gate": False}
    # Saying what is so does no harm, although JSON has no pairs.
    assert HubMREN.from_pretrained(tmp_path, reconstruct_channels=(8, 4), num_blocks=np.int64(1)).scale == 3


def test_the_hubs_network_takes_what_mren_takes() -> None:
    ours, hubs = (inspect.signature(cls).parameters for cls in (MREN, HubMREN))
    assert [n for n in ours if n not in ("device", "dtype")] == list(hubs)
    assert all(hubs[name].default == ours[name].default and hubs[name].kind == ours[name].kind for name in hubs)


def test_the_hub_takes_the_shipped_weights(tmp_path: Path, x: Tensor) -> None:
    net = HubMREN(4)
    net.load_state_dict(load_mren(4).state_dict())
    copy.deepcopy(net).save_pretrained(tmp_path)
    assert torch.equal(run(HubMREN.from_pretrained(tmp_path), x), run(load_mren(4), x))
    card = (tmp_path / "README.md").read_text()
    assert "library_name: sc_blocks" in card
    assert "pipeline_tag: image-to-image" in card


def test_releases_of_the_hub_that_leave_it_in_training_do_no_harm(tmp_path: Path, monkeypatch) -> None:
    HubMREN(2, **SMALL).save_pretrained(tmp_path)
    load = PyTorchModelHubMixin._load_as_safetensor.__func__
    monkeypatch.setattr(
        PyTorchModelHubMixin, "_load_as_safetensor", classmethod(lambda cls, *given: load(cls, *given).train())
    )
    assert not HubMREN.from_pretrained(tmp_path).training


@pytest.mark.parametrize(("name", "value"), [("num_blocks", 3), ("exchange", None), ("scale", 3)])
def test_the_hub_names_the_argument_that_differs(tmp_path: Path, name: str, value: object) -> None:
    HubMREN(2, **SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"was saved with {name}=.*, asked for {name}={value}"):
        HubMREN.from_pretrained(tmp_path, **{name: value})
    assert HubMREN.from_pretrained(tmp_path, num_blocks=2).scale == 2  # saying what is so does no harm


def test_the_hub_names_wrong_arguments_and_weights(tmp_path: Path) -> None:
    HubMREN(2, **SMALL).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="num_block"):
        HubMREN.from_pretrained(tmp_path, num_block=2)

    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_blocks": 3}))
    with pytest.raises(ValueError, match=r"(?s)weights do not fit its arguments, .*'num_blocks': 3.*Missing key"):
        HubMREN.from_pretrained(tmp_path)
    file.write_text(json.dumps(config | {"num_blocks": 1}))  # tensors too many are as wrong as too few
    with pytest.raises(ValueError, match=r"(?s)weights do not fit its arguments, .*'num_blocks': 1.*Unexpected key"):
        HubMREN.from_pretrained(tmp_path)
    file.write_text(json.dumps(config | {"heads": 8}))
    with pytest.raises(ValueError, match=r"config\.json holds heads; HubMREN takes .*num_blocks"):
        HubMREN.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        HubMREN.from_pretrained(tmp_path, scale=2)


@pytest.mark.parametrize("change", [{"num_blocks": 10**5}, {"channels": 20_000}, {"scale": 2.0}, {"gate": "yes"}])
def test_the_hub_builds_nothing_that_a_stranger_claims(tmp_path: Path, change: dict[str, object]) -> None:
    HubMREN(2, **SMALL).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=rf"config\.json: {next(iter(change))} must be"):
        HubMREN.from_pretrained(tmp_path)


@pytest.mark.parametrize("communication", [GatedCommunication, LearnableCommunication(3), ["gated"]], ids=repr)
def test_the_hub_refuses_what_a_file_cannot_hold(communication: Any) -> None:
    with pytest.raises(TypeError, match="HubMREN: communication must be a number, 'learnable', 'gated' or None"):
        HubMREN(2, communication=communication)
    with pytest.raises(ValueError, match="MREN: communication must be one of 'learnable', 'gated'; got 'gate'"):
        HubMREN(2, communication="gate")
