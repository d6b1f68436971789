"""What is measured: networks, blocks, and the forms in which a network can run. A further one is a line here."""

from __future__ import annotations

import copy
import io
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

from benchmarks.fixtures import CCA, IMDB, IMDN, RFDB, srcnn, vdsr
from examples.mren.fold import fold_mren
from examples.mren.model import MREN, mren, mren_l
from sc_blocks import DRACB, MREB, RBWA, SCACB, WSILB, WSILBV, DRACBChain
from sc_blocks.deploy import fold

Call = Callable[[Tensor], object]


class Unavailable(RuntimeError):  # noqa: N818 (no fault of anybody)
    """A candidate cannot run here; the message says why and goes into the results."""


@dataclass(frozen=True)
class Net:
    """A network, with the forms in which it is timed and those of which memory is measured."""

    make: Callable[[], nn.Module]
    forms: tuple[str, ...] = ("eager",)
    memory_forms: tuple[str, ...] = ("eager",)
    scale: int = 4


def peer(module: str, name: str, **arguments: object) -> Callable[[], nn.Module]:
    """What makes a network of a package that may not be installed."""

    def make() -> nn.Module:
        try:
            return getattr(import_module(module), name)(**arguments)
        except ImportError as error:
            raise Unavailable(f"the package {module.partition('.')[0]} is not installed") from error

    return make


# Steps, done from left to right: see STEPS.
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
COMMON = ("eager", "channels_last", "compiled", "channels_last, compiled", "channels_last, bf16", "onnx")

# Blocks that fold rewrites, which must not make them slower; it leaves the others as they are.
FOLDED_BLOCKS = frozenset({"SCACB", "RBWA to twice the size", "MREB"})

NETS: dict[str, Net] = {
    "MREN ×4": Net(mren, OURS, OURS),
    "MREN-L ×4": Net(mren_l, ("eager", "folded"), ("eager", "folded")),
    "MREN ×2": Net(lambda: mren(2), ("eager", "folded"), ("eager", "folded"), scale=2),
    "IMDN ×4": Net(IMDN, COMMON, COMMON),
    "SRCNN ×4": Net(srcnn),
    "VDSR ×4": Net(vdsr),
    "CARN ×4": Net(peer("torchsr.models", "carn", scale=4)),
    "NinaSR-B0 ×4": Net(peer("torchsr.models", "ninasr_b0", scale=4)),
    "SPAN ×4": Net(peer("spandrel.architectures.SPAN", "SPAN", num_in_ch=3, num_out_ch=3)),
    "SAFMN ×4": Net(peer("spandrel.architectures.SAFMN", "SAFMN", dim=36)),
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
}
REFERENCE_NET = "IMDN ×4"

# How many tensors a block takes is 1, but for a chain: one a stage.
CONVOLUTION = "3×3 convolution"
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    CONVOLUTION: lambda: nn.Conv2d(60, 60, 3, padding=1),
    "SCACB": lambda: SCACB(60),
    "DRACB": lambda: DRACB(60, 15),
    "DRACBChain of 4": lambda: OnOneMap(DRACBChain(60, 15, 4), 4),
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


class OnOneMap(nn.Module):
    """A chain whose stages all see the same map."""

    def __init__(self, chain: DRACBChain, stages: int) -> None:
        super().__init__()
        self.chain = chain
        self.stages = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.chain([x] * self.stages)


def _channels_last(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    return net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


def _bfloat16(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    return net.bfloat16(), x.bfloat16()


def _folded(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    # MREN's own folding, where there is one, knows more than that of its blocks.
    return (fold_mren(net) if isinstance(net, MREN) else fold(net)), x


def _compiled(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    # fullgraph: a network that falls back to eager would be timed under the wrong name.
    call = torch.compile(net, fullgraph=True, dynamic=False)
    try:
        call(x)
    except Exception as error:
        raise Unavailable(f"torch.compile failed (on a CPU it needs a C++ compiler): {reason(error)}") from error
    return call, x


def _onnx(net: nn.Module, x: Tensor) -> tuple[Call, Tensor]:
    try:
        runtime = import_module("onnxruntime")
        import_module("onnxscript")
    except ImportError as error:
        raise Unavailable("the packages onnxruntime and onnxscript are not installed") from error
    if x.device.type != "cpu":
        raise Unavailable("ONNX Runtime is measured on the CPU only")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(copy.deepcopy(net), (x,), dynamo=True, verbose=False)
    buffer = io.BytesIO(program.model_proto.SerializeToString())
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda given: session.run(None, {name: given.numpy()}), x


STEPS: dict[str, Callable[[nn.Module, Tensor], tuple[Call, Tensor]]] = {
    "eager": lambda net, x: (net, x),
    "channels_last": _channels_last,
    "bf16": _bfloat16,
    "folded": _folded,
    "compiled": _compiled,
    "onnx": _onnx,
}


def prepare(net: nn.Module, x: Tensor, form: str) -> tuple[Call, Tensor]:
    """Bring a network and its input into a form, such as ``"folded, channels_last, compiled"``.

    Raises:
        ValueError: If there is no such step.
        Unavailable: If a step cannot be done here.
    """
    call: Call = net.eval()
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
    """The first line of an error, without the folders of this machine."""
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {re.sub(r'/[^ ]*/', '', first)}"[:200]
