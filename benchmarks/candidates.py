"""Networks and blocks to measure, and the forms in which they run. To add one, add a line here."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.mren.engines import Runtime
from examples.mren.engines.program import portable
from examples.mren.fold import fold_mren, pad_widths
from examples.mren.model import MREN, mren, mren_l, mren_s
from examples.mren.training.recipes import blocks_of
from examples.peers import CCA, IMDB, IMDN, RFDB, srcnn, vdsr
from sc_blocks import DRACB, MREB, RBWA, SCACB, WSILB, WSILBV, DRACBChain, to_local
from sc_blocks.deploy import fold
from sc_blocks.surgery import replace_modules

Call = Callable[[Tensor], object]
Step = Callable[[nn.Module, Tensor], tuple[Call, Tensor]]


class Unavailable(RuntimeError):  # noqa: N818 (not a program error)
    """A candidate cannot run here; the message says why and goes into the results."""


@dataclass(frozen=True)
class Net:
    """A network, with the forms in which it is timed and those whose memory is measured."""

    make: Callable[[], nn.Module]
    forms: tuple[str, ...] = ("eager",)
    memory_forms: tuple[str, ...] = ("eager",)
    scale: int = 4


def peer(module: str, name: str, **arguments: object) -> Callable[[], nn.Module]:
    """Return a constructor for a network from an optional package."""

    def make() -> nn.Module:
        try:
            return getattr(import_module(module), name)(**arguments)
        except ImportError as error:
            raise Unavailable(f"the package {module.partition('.')[0]} is not installed") from error

    return make


# Forms: steps from left to right, see STEPS.
OURS = (
    "eager",
    "channels_last",
    "compiled",
    "channels_last, compiled",
    "folded",
    "folded, channels_last",
    "folded, compiled",
    "folded, channels_last, compiled",
    "channels_last, bf16",
    "folded, bf16",
    "onnx",
    "folded, onnx",
)
FOLDED = ("eager", "folded")
# The same forms with local statistics.
LOCAL = {"eager": "local", "folded": "local, folded"}
COMMON = ("eager", "channels_last", "compiled", "channels_last, compiled", "channels_last, bf16", "onnx")

SPAN = "spandrel.architectures.SPAN"
SAFMN = "spandrel.architectures.SAFMN"
NETS: dict[str, Net] = {
    "MREN ×4": Net(mren, (*OURS, *LOCAL.values()), OURS),
    "MREN-S ×4": Net(mren_s, ("eager", "folded", "folded, compiled", "folded, onnx"), FOLDED),
    "MREN-L ×4": Net(mren_l, FOLDED, FOLDED),
    "MREN ×2": Net(lambda: mren(2), FOLDED, FOLDED, scale=2),
    "MREN-S ×2": Net(lambda: mren_s(2), FOLDED, (), scale=2),
    "MREN ×3": Net(lambda: mren(3), FOLDED, (), scale=3),
    "MREN-S ×3": Net(lambda: mren_s(3), FOLDED, (), scale=3),
    "IMDN ×4": Net(IMDN, COMMON, COMMON),
    "SRCNN ×4": Net(srcnn),
    "VDSR ×4": Net(vdsr),
    "CARN ×4": Net(peer("torchsr.models", "carn", scale=4)),
    "NinaSR-B0 ×4": Net(peer("torchsr.models", "ninasr_b0", scale=4)),
    "SPAN ×4": Net(peer(SPAN, "SPAN", num_in_ch=3, num_out_ch=3)),
    "SAFMN ×4": Net(peer(SAFMN, "SAFMN", dim=36)),
    "SeemoRe-T ×4": Net(
        peer("spandrel.architectures.SeemoRe", "SeemoRe", num_experts=3, embedding_dim=36, lr_space="exp")
    ),
    "DITN ×4": Net(peer("spandrel.architectures.DITN", "DITN", dim=60)),
    "SwinIR-light ×4": Net(
        peer(
            "spandrel.architectures.SwinIR",
            "SwinIR",
            upscale=4,
            window_size=8,
            embed_dim=60,
            depths=[6, 6, 6, 6],
            num_heads=[6, 6, 6, 6],
            mlp_ratio=2,
            upsampler="pixelshuffledirect",
        )
    ),
    # Only in the suites that name them.
    "IMDN ×2": Net(lambda: IMDN(2), (), (), scale=2),
    "SPAN ×2": Net(peer(SPAN, "SPAN", num_in_ch=3, num_out_ch=3, upscale=2), (), (), scale=2),
    "SAFMN ×2": Net(peer(SAFMN, "SAFMN", dim=36, upscaling_factor=2), (), (), scale=2),
}
REFERENCE_NET = "IMDN ×4"

CONVOLUTION = "3×3 convolution"
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    CONVOLUTION: lambda: nn.Conv2d(60, 60, 3, padding=1),
    "SCACB": lambda: SCACB(60),
    "DRACB": lambda: DRACB(60, 15),
    "DRACBChain of 4": lambda: SharedInputChain(DRACBChain(60, 15, 4), 4),
    "WSILB": lambda: WSILB(60),
    "WSILBV": lambda: WSILBV(60),
    "RBWA to twice the size": lambda: RBWA(60, scale_factor=2),
    "MREB": lambda: MREB(60),
    "CCA of IMDN": lambda: CCA(60),
    "IMDB of IMDN": lambda: IMDB(60),
    "RFDB of RFDN": lambda: RFDB(60),
    "SqueezeExcite of timm": peer("timm.layers", "SqueezeExcite", channels=60),
    "CbamModule of timm": peer("timm.layers.cbam", "CbamModule", channels=60),
}
# Blocks that fold rewrites, whole or in part.
FOLDED_BLOCKS = ("RBWA to twice the size", "SCACB", "MREB")


class SharedInputChain(nn.Module):
    """A chain whose stages all take the same map."""

    def __init__(self, chain: DRACBChain, stages: int) -> None:
        super().__init__()
        self.chain = chain
        self.stages = stages

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.chain([x] * self.stages)


def make(name: str, size: tuple[int, int], *, seed: int = 0, num_blocks: int | None = None) -> tuple[nn.Module, Tensor]:
    """Build a network with a random image, or a block with a random map of 60 channels, on the CPU.

    Args:
        name: Name in :data:`NETS` or :data:`BLOCKS`.
        size: Height and width of the input.
        seed: Random seed of the weights and the input.
        num_blocks: Depth of MREN, for quick runs.

    Raises:
        Unavailable: If a package is missing.
    """
    torch.manual_seed(seed)
    net = (NETS[name].make if name in NETS else BLOCKS[name])().eval()
    if num_blocks and isinstance(net, MREN):
        net.body = net.body[:num_blocks]
    return net, torch.rand(1, 3 if name in NETS else 60, *size)


def _channels_last(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    return net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


def _folded(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    # MREN's own folding does more than that of its blocks.
    return (fold_mren(net) if isinstance(net, MREN) else fold(net)), x


def _compiled(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    # fullgraph: a network that falls back to eager would be timed under the wrong name.
    return _run_once(torch.compile(net, fullgraph=True, dynamic=False), x), x


def _compiled_blocks(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    for block in blocks_of(net):
        block.compile(dynamic=False)
    return _run_once(net, x), x


def _run_once(call: Call, x: Tensor) -> Call:
    try:
        # The same blocks are compiled for many sizes and types in one process; by default torch gives up after eight.
        torch._dynamo.config.cache_size_limit = 256  # the name in torch 2.6, an alias since then
        with torch.inference_mode():
            call(x)
    except Exception as error:
        raise Unavailable(f"torch.compile failed (on a CPU it needs a C++ compiler): {reason(error)}") from error
    return call


@functools.cache
def _graph_pool() -> Any:
    # Shared, because dozens of graphs with their own memory would fill the device. They never run at the same time, and
    # no result is read after another graph has been replayed.
    return torch.cuda.graph_pool_handle()


def _cuda_graph(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    """Capture a forward pass in a CUDA graph and return its replay. Input and result keep the captured memory."""
    if x.device.type != "cuda":
        raise Unavailable("CUDA graphs need --device cuda")
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(stream)
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(3):  # allocations, algorithm selection and autotuning cannot be captured
            net(x)
    stream.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph, pool=_graph_pool(), capture_error_mode="thread_local"):
        result = net(x)

    def replay(given: Tensor) -> object:
        if given is not x:
            x.copy_(given)
        graph.replay()
        return result

    return replay, x


def runtime(name: Runtime, *, calibration: Sequence[Tensor] = (), **options: str) -> Step:
    """Return a step that converts to an engine of :mod:`examples.mren.engines`; to int8 with calibration images."""

    def step(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
        if x.device.type != "cpu":
            raise Unavailable(f"{name} is measured on the CPU only")
        net = portable(net) if isinstance(net, MREN) else net
        try:
            engine = import_module(f"examples.mren.engines.{name}")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "network"
                if calibration:
                    import_module("examples.mren.quantize").write_int8(net, path, name, x, calibration)
                else:
                    # SAFMN pools to sizes that depend on the image, which ncnn does not support.
                    engine.write(net, path, x, **({"any_size": False} if name == "ncnn" else {}))
                return engine.load(path, threads=torch.get_num_threads(), **options), x
        except ImportError as error:
            raise Unavailable(reason(error)) from error

    return step


NOISE = (torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)),)  # the images do not affect speed
# Each takes a network and an example input, and returns a callable and its input.
ENGINES: dict[str, Step] = {
    "eager": lambda net, x: (net, x),
    "compiled": _compiled,
    "onnx": runtime("onnx"),
    "onnx int8": runtime("onnx", calibration=NOISE),
    "openvino": runtime("openvino"),
    "openvino bf16": runtime("openvino", precision="bf16"),
    "openvino int8": runtime("openvino", calibration=NOISE),
    "ncnn": runtime("ncnn"),
}
# ncnn has its own order of computation and is slower folded; transposed convolutions are not quantised.
UNFOLDED_ENGINES = frozenset({"ncnn", "onnx int8", "openvino int8"})

STEPS: dict[str, Step] = {
    **ENGINES,
    "channels_last": _channels_last,
    "bf16": lambda net, x: (net.bfloat16(), x.bfloat16()),
    "fp16": lambda net, x: (net.half(), x.half()),
    # The windows of a network trained on patches of 48 × 48.
    "local": lambda net, x: (to_local(net, x.new_zeros(1, 3, 48, 48)), x),
    "padded": lambda net, x: (pad_widths(net) if isinstance(net, MREN) else net, x),
    "folded": _folded,
    "compiled blocks": _compiled_blocks,
    "CUDA graph": _cuda_graph,
}


def merge_branches(net: nn.Module, x: Tensor) -> nn.Module:
    """Replace each multi-branch convolution of SPAN by its merged convolution for inference, in place.

    SPAN merges its branches in every call and writes the result into its own parameters, which no exporter can trace.
    ``x`` is an example input.
    """
    branched = {type(module) for module in net.modules() if hasattr(module, "eval_conv")}
    if branched:
        with torch.no_grad():  # not inference_mode: exporters read the weights that this writes
            net(x)
        replace_modules(net, tuple(branched), lambda old, name: old.eval_conv)
    return net


def prepare(net: nn.Module, x: Tensor, form: str) -> tuple[Call, Tensor]:
    """Convert a network and its input to a form, such as ``"folded, channels_last, compiled"``.

    Raises:
        ValueError: If there is no such step.
        Unavailable: If a step cannot run here.
    """
    call: Call = merge_branches(net.eval(), x)
    for step in form.split(", "):
        if step not in STEPS:
            raise ValueError(f"form must be made of {', '.join(STEPS)}, separated by ', '; got {form!r}.")
        try:
            call, x = STEPS[step](call, x)
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"{step} failed: {reason(error)}") from error
    return call, x


def reason(error: BaseException) -> str:
    """Return the first line of an error without paths of this machine."""
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {re.sub(r'/[^ ]*/', '', first)}"[:200]
