"""Tiled runs: equal to untiled ones where they can be, bounded in memory, loud about arguments that cannot work."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import accelerate
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from examples.mren.model import MREN
from sc_blocks import WSILBV, to_local
from sc_blocks.tiling import tiled


def conv_net(radius: int, scale: int = 1, *, seed: int = 0) -> nn.Module:
    """Convolutions that see ``radius`` pixels far, then an enlargement by ``scale``."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(radius):
        layers += [nn.Conv2d(2, 2, 3, padding=1), nn.GELU()]
    shuffle = [nn.Conv2d(2, 3 * scale**2, 1), nn.PixelShuffle(scale)]
    return nn.Sequential(*layers, *shuffle).eval()


class Recorder(nn.Module):
    """Identity that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.tiles: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tiles.append(x)
        return x


class Limited(nn.Module):
    """Fails as an allocator does on tiles of more than ``limit`` pixels, and remembers their heights."""

    def __init__(self, net: nn.Module, limit: int, error: Exception) -> None:
        super().__init__()
        self.net, self.limit, self.error = net, limit, error
        self.heights: list[int] = []

    @property
    def refused(self) -> int:
        return sum(height * height > self.limit for height in self.heights)

    def forward(self, x: Tensor) -> Tensor:
        self.heights.append(x.shape[2])
        if x.shape[2] * x.shape[3] > self.limit:
            raise self.error
        return self.net(x)


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    radius=st.integers(0, 3),
    scale=st.integers(1, 3),
    tile=st.integers(10, 40),
    batch=st.integers(1, 2),
)
def test_equals_one_call_if_the_overlap_is_three_times_what_the_net_sees(
    size: tuple[int, int], radius: int, scale: int, tile: int, batch: int
) -> None:
    net = conv_net(radius, scale)
    x = torch.rand(batch, 2, *size)
    with torch.no_grad():
        expected = net(x)
    result = tiled(net, x, scale=scale, tile=tile, overlap=3 * radius)
    assert result.shape == (batch, 3, size[0] * scale, size[1] * scale)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    multiple=st.integers(1, 4),
    tiles=st.integers(2, 6),
    scale=st.integers(1, 2),
    data=st.data(),
)
def test_weights_sum_to_one(size: tuple[int, int], multiple: int, tiles: int, scale: int, data: st.DataObject) -> None:
    tile = multiple * tiles
    overlap = data.draw(st.integers(0, tile - multiple))
    x = torch.full((1, 1, *size), 0.7)
    result = tiled(nn.Upsample(scale_factor=scale), x, scale=scale, tile=tile, overlap=overlap, size_multiple=multiple)
    torch.testing.assert_close(result, torch.full((1, 1, size[0] * scale, size[1] * scale), 0.7), atol=1e-6, rtol=0)


@given(size=st.tuples(st.integers(1, 50), st.integers(1, 50)), tile=st.sampled_from([12, 16, 20]))
def test_size_multiple_keeps_strided_networks_on_their_grid(size: tuple[int, int], tile: int) -> None:
    net = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 16, 1), nn.PixelShuffle(4)).eval()
    x = torch.rand(1, 1, *size)
    padded = nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4), mode="replicate")
    with torch.no_grad():
        expected = net(padded)[:, :, : size[0], : size[1]]
    result = tiled(net, x, tile=tile, overlap=6, size_multiple=4)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)


def small_mren(*, local: bool) -> nn.Module:
    """One block of MREN, which sees 22 pixels far where its statistics are taken over windows of 12."""
    torch.manual_seed(0)
    net = MREN(2, channels=12, num_blocks=1).eval()
    return to_local(net, torch.zeros(1, 3, 8, 8)) if local else net


@pytest.mark.parametrize("local", [True, False])
def test_no_seams_where_statistics_are_local(local: bool) -> None:
    net = small_mren(local=local)
    brighter_to_the_right = torch.linspace(0.1, 1, 150)
    x = torch.rand(1, 3, 110, 150) * brighter_to_the_right
    with torch.no_grad():
        whole = net(x)
    difference = (tiled(net, x, scale=2, tile=96, overlap=66) - whole).abs().max().item()
    # Over the whole map, the same tiles differ: the docs say by how much.
    assert (difference <= 1e-4) == local, difference


UPSCALE_8192 = """
import re, sys
import torch
from examples.mren import upscale
from examples.mren.model import MREN

torch.set_num_threads(1)
upscale.load_mren = lambda scale, variant, *, device, path: MREN(scale, channels=12, num_blocks=1).eval()
code = upscale.main([*sys.argv[1:], "--scale", "4"])
with open("/proc/self/status") as status:
    print(re.search(r"VmHWM:\\s*(\\d+) kB", status.read()).group(1))
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_an_output_of_8192_x_8192_stays_under_4_gib(tmp_path: Path) -> None:
    # A fifth of MREN's width and a sixth of its blocks, so that it takes a minute. What grows with the image does not
    # depend on the network; a tile, which does, takes 0.9 GB with all of MREN. So 3 GiB here are less than 4 there.
    Image.new("RGB", (2048, 2048), (90, 120, 60)).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", UPSCALE_8192, str(tmp_path / "photo.png"), "-o", str(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (8192, 8192)
    assert int(done.stdout.splitlines()[-1]) / 2**20 < 3


def test_an_image_within_one_tile_is_one_plain_call() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), WSILBV(8)).eval()
    x = torch.rand(1, 3, 30, 40)
    with torch.no_grad():
        assert torch.equal(tiled(net, x, tile=40, overlap=8), net(x))


def test_last_tile_is_moved_inwards_not_shrunk() -> None:
    recorder = Recorder()
    x = torch.arange(50.0).view(1, 1, 1, 50).expand(1, 1, 40, 50)
    torch.testing.assert_close(tiled(recorder, x, tile=20, overlap=4), x)
    assert {tuple(tile.shape[2:]) for tile in recorder.tiles} == {(20, 20)}
    assert [tile[0, 0, 0, 0].item() for tile in recorder.tiles[:3]] == [0, 16, 30]


def test_tiles_share_32_pixels_by_default() -> None:
    recorder = Recorder()
    tiled(recorder, torch.arange(600.0).view(1, 1, 1, 600))
    assert [tile[0, 0, 0, 0].item() for tile in recorder.tiles] == [0, 224, 344]


@pytest.mark.parametrize(("tile", "total"), [(20, 9), (50, 1)])
def test_callback_counts_every_tile(tile: int, total: int) -> None:
    calls: list[tuple[int, int]] = []
    tiled(nn.Identity(), torch.rand(1, 1, 40, 50), tile=tile, overlap=4, on_tile=lambda *call: calls.append(call))
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_callback_can_cancel() -> None:
    recorder = Recorder()

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiled(recorder, torch.rand(1, 1, 40, 50), tile=20, overlap=4, on_tile=cancel)
    assert len(recorder.tiles) == 2


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    MemoryError("Unable to allocate 2.00 GiB"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "mps", "cublas", "c++", "python"])
@pytest.mark.parametrize("tile", [64, 1000])
def test_out_of_memory_halves_the_tile(error: RuntimeError, tile: int) -> None:
    net = conv_net(2, 2)
    limited = Limited(net, 20 * 20, error)
    x = torch.rand(1, 2, 70, 61)
    calls: list[tuple[int, int]] = []
    result = tiled(limited, x, scale=2, tile=tile, overlap=6, on_tile=lambda *call: calls.append(call))
    with torch.no_grad():
        torch.testing.assert_close(result, net(x), atol=1e-6, rtol=1e-6)
    assert limited.refused == 2, "64 and 32, or 70 and 35, are too large"
    assert calls[-1][0] == calls[-1][1]


def test_a_real_allocation_that_fails_halves_the_tile() -> None:
    net, sizes = nn.Identity(), []

    def model(part: Tensor) -> Tensor:
        sizes.append(part.shape[2])
        if part.shape[2] > 40:
            torch.empty(2**50, dtype=torch.uint8)
        return net(part)

    x = torch.rand(1, 1, 80, 80)
    torch.testing.assert_close(tiled(model, x, tile=80, overlap=4), x)
    assert sizes[:2] == [80, 40]


@given(
    size=st.integers(1, 150),
    multiple=st.integers(1, 32),
    tiles=st.integers(1, 8),
    limit=st.integers(4, 100),
    overlap=st.integers(0, 40),
)
@example(size=150, multiple=32, tiles=3, limit=50, overlap=8)
@example(size=150, multiple=8, tiles=8, limit=32, overlap=20)
@example(size=150, multiple=4, tiles=8, limit=8, overlap=0)
def test_halved_tiles_stay_multiples_and_larger_than_the_overlap(
    size: int, multiple: int, tiles: int, limit: int, overlap: int
) -> None:
    tile = multiple * tiles
    overlap = min(overlap, tile - multiple)
    limited = Limited(nn.Identity(), limit**2, OUT_OF_MEMORY[0])
    x = torch.rand(1, 1, size, size)
    smallest = max(2 * overlap, overlap + multiple, 16)
    try:
        result = tiled(limited, x, tile=tile, overlap=overlap, size_multiple=multiple)
    except torch.OutOfMemoryError:
        assert min(limited.heights) // 2 // multiple * multiple < smallest
    else:
        torch.testing.assert_close(result, x)
    first, *halved = dict.fromkeys(limited.heights)
    assert all(height >= smallest for height in halved)
    for before, height in pairwise([first, *halved]):
        assert height == before // 2 // multiple * multiple


def test_halved_tiles_keep_strided_networks_on_their_grid() -> None:
    net = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 16, 1), nn.PixelShuffle(4)).eval()
    limited = Limited(net, 20 * 20, OUT_OF_MEMORY[0])
    x = torch.rand(1, 1, 60, 64)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(tiled(limited, x, tile=36, overlap=6, size_multiple=4), expected, atol=1e-6, rtol=1e-6)
    assert list(dict.fromkeys(limited.heights)) == [36, 16], "18 is not a multiple of 4"


def test_out_of_memory_at_the_smallest_tile_is_passed_on() -> None:
    limited = Limited(nn.Identity(), 0, OUT_OF_MEMORY[0])
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        tiled(limited, torch.rand(1, 1, 128, 128), tile=128, overlap=32)
    assert limited.refused == 2, "128 and 64; 32 would be all overlap"


def test_other_errors_are_passed_on_at_once() -> None:
    limited = Limited(nn.Identity(), 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        tiled(limited, torch.rand(1, 1, 64, 64))
    assert limited.refused == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_type_of_the_model_is_kept(dtype: torch.dtype) -> None:
    x = torch.rand(1, 1, 40, 40, dtype=dtype)
    result = tiled(nn.Identity(), x, tile=16, overlap=5)
    assert result.dtype == dtype
    torch.testing.assert_close(result, x, rtol=1e-12, atol=0)  # bit for bit in half precision


def test_infinities_at_the_border_of_a_tile_stay_there() -> None:
    def infinite_at_the_border(x: Tensor) -> Tensor:
        return 1 / (1 - F.max_pool2d(1 - F.pad(x, (1, 1, 1, 1)), 3, 1))  # 1 / 0 where a padded pixel is near

    def ring(x: Tensor) -> Tensor:
        return torch.where(F.avg_pool2d(x, 3, 1, 1) < 1, math.inf, x)

    for net in (infinite_at_the_border, ring):
        tiled_, whole = tiled(net, torch.ones(1, 1, 40, 40), tile=16, overlap=8), net(torch.ones(1, 1, 40, 40))
        torch.testing.assert_close(tiled_, whole)
    result = tiled(lambda x: ring(x) * 1j, torch.ones(1, 1, 40, 40), tile=16, overlap=8)
    assert result.imag[..., 1:-1, 1:-1].isfinite().all()


def test_complex_results_are_not_rounded() -> None:
    x = torch.rand(1, 1, 40, 40)
    result = tiled(lambda part: torch.complex(part, 2 * part), x, tile=16, overlap=5)
    torch.testing.assert_close(result, torch.complex(x, 2 * x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_integers_are_rounded(dtype: torch.dtype) -> None:
    x = torch.rand(1, 3, 40, 57)

    def model(part: Tensor) -> Tensor:
        return (part * 255).round().to(dtype)

    result = tiled(model, x, tile=16, overlap=7)
    assert result.dtype == dtype
    assert torch.equal(result, model(x))


def test_leaves_input_mode_and_gradients_alone() -> None:
    net = nn.Conv2d(1, 1, 3, padding=1).train()
    x = torch.rand(1, 1, 40, 40, requires_grad=True)
    before = x.detach().clone()
    result = tiled(net, x, tile=16, overlap=3)
    assert net.training
    assert not result.requires_grad
    assert not result.is_inference(), "the result may take part in training"
    assert torch.equal(x, before)


@pytest.mark.parametrize("tile", [16, 40])
def test_networks_that_work_in_place_change_no_image(tile: int) -> None:
    x = torch.rand(1, 1, 40, 40)
    before = x.clone()
    torch.testing.assert_close(tiled(lambda part: part.mul_(2), x, tile=tile, overlap=4), 2 * before)
    assert torch.equal(x, before)


def test_runs_under_another_default_device() -> None:
    # The meta device refuses what others compute in silence, or cannot, as MPS in float64.
    image = torch.rand(1, 3, 40, 50)
    with torch.device("meta"):
        torch.testing.assert_close(tiled(torch.nn.Identity(), image, tile=16, overlap=4), image)


def test_runs_a_network_whose_weights_are_offloaded() -> None:
    net, x = nn.Conv2d(3, 3, 3, padding=1), torch.rand(1, 3, 100, 70)
    wanted = net(x)
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    torch.testing.assert_close(tiled(net, x, tile=64, overlap=8), wanted)


def test_takes_a_callable_and_non_contiguous_input() -> None:
    x = torch.rand(2, 30, 40, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(tiled(lambda part: 2 * part, x, tile=16, overlap=4), 2 * x)


def test_stays_within_one_tile_of_memory() -> None:
    largest = 0

    def model(part: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, part.numel())
        return part

    tiled(model, torch.rand(1, 3, 64, 640), tile=16, overlap=4)
    assert largest == 3 * 16 * 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_memory_does_not_grow_with_the_image() -> None:
    net = conv_net(2, 2).cuda()
    peaks: list[int] = []
    for width in (256, 2048):
        torch.cuda.reset_peak_memory_stats()
        result = tiled(net, torch.rand(1, 2, 256, width), scale=2, tile=128, overlap=12)
        assert result.device.type == "cpu"
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] == peaks[1]


IMAGE = torch.rand(1, 1, 40, 40)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": IMAGE[0]}, ValueError, r"x must have 4 dimensions .* got shape \(1, 40, 40\); .* x.unsqueeze\(0\)"),
        ({"x": IMAGE.int()}, TypeError, r"x must be a floating-point tensor, got torch.int32; pass x.float\(\)"),
        ({"x": IMAGE[:, :, :0]}, ValueError, "x must be at least 1 x 1"),
        ({"x": IMAGE.numpy()}, TypeError, "x must be a tensor, got ndarray"),
        ({"model": "net"}, TypeError, "model must be a module or another callable, got str"),
        ({"scale": 0}, ValueError, "scale must be at least 1, got 0"),
        ({"scale": 1.5}, TypeError, r"scale must be a positive integer, got 1.5 \(float\)"),
        ({"tile": 0}, ValueError, "tile must be at least 1, got 0"),
        ({"tile": True}, TypeError, "tile must be a positive integer, got True"),
        ({"overlap": 16}, ValueError, "overlap must be at most tile - size_multiple = 15, got 16"),
        ({"overlap": -1}, ValueError, "overlap must be at least 0, got -1"),
        ({"overlap": 2.0}, TypeError, r"overlap must be an integer, got 2.0 \(float\)"),
        ({"size_multiple": 0}, ValueError, "size_multiple must be at least 1, got 0"),
        ({"size_multiple": 6}, ValueError, "tile must be a multiple of size_multiple=6, got 16; use 18"),
        ({"on_tile": 3}, TypeError, "on_tile must be callable or None, got int"),
        ({"scale": 2}, ValueError, r"scale=2 must be the factor .* got \(1, 1, 16, 16\) .* expected 32 x 32"),
        ({"model": lambda x: (x, x)}, TypeError, "model must return a tensor, got tuple"),
        ({"model": lambda x: torch.cat([x, x])}, ValueError, r"scale=1 must be .* got \(2, 1, 16, 16\) from a tile"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    call = {"model": nn.Identity(), "x": IMAGE, "tile": 16, "overlap": 4} | arguments
    with pytest.raises(error, match=rf"^tiled: {message}"):
        tiled(call.pop("model"), call.pop("x"), **call)
