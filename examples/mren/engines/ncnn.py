"""ncnn, Tencent's runtime for phones and small computers, on CPUs and Vulkan; converted by pnnx."""

from __future__ import annotations

import json
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.mren.engines import Engine, import_extra
from examples.mren.messages import one_line

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"


def write(
    network: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str] = {}, *, any_size: bool = True
) -> None:
    """Convert a network to a folder with ``model.ncnn.param`` and ``model.ncnn.bin``.

    Weights are float32. ncnn files cannot hold metadata, which goes into ``metadata.json``.

    Args:
        network: The network.
        path: The folder.
        example: An input for the network.
        metadata: Metadata of the result.
        any_size: Whether the result takes images of any size; otherwise, only of the size of ``example``. Not every
            network supports the former: ncnn pools only to a constant size, not to one that depends on the image.

    Raises:
        ValueError: If pnnx cannot convert the network, or ncnn lacks a layer for it.
    """
    pnnx = import_extra("pnnx", "ncnn")
    height, width = example.shape[2:]
    path.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about shape checks
        traced = Path(folder) / "network.pt"
        torch.jit.trace(network, example[:1], check_trace=False).save(str(traced))
        # pnnx.export would also execute the Python file that pnnx writes.
        command = [pnnx.EXEC_PATH, traced, "device=cpu", "fp16=0"]
        command += [f"inputshape=[1,3,{height},{width}]"]
        command += [f"inputshape2=[1,3,{height + 8},{width + 16}]"] * any_size
        command += [f"ncnnparam={path / PARAM}", f"ncnnbin={path / BIN}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode != 0 or not (path / BIN).is_file():
        raise ValueError(f"pnnx cannot convert the network ({one_line(done.stderr)[-300:]}).")
    # Operators that ncnn lacks keep their torch names, such as F.adaptive_max_pool2d.
    kinds = {line.split()[0] for line in (path / PARAM).read_text(encoding="utf-8").splitlines()[2:]}
    if unknown := sorted(kind for kind in kinds if "." in kind or ":" in kind):
        raise ValueError(f"ncnn has no layer for {', '.join(unknown)}, which the network needs for images of any size.")
    if metadata:
        (path / "metadata.json").write_text(json.dumps(dict(metadata), indent=2) + "\n", encoding="utf-8")


def load(path: Path, *, threads: int = 0) -> Engine:
    """Open such a folder on the CPU in float32.

    Raises:
        ValueError: If ncnn cannot load it.
    """
    ncnn = import_extra("ncnn", "ncnn")
    net = ncnn.Net()
    if threads:
        net.opt.num_threads = threads
    # ncnn enables these by default on processors that have them.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(path / PARAM)) != 0 or net.load_model(str(path / BIN)) != 0:
        raise ValueError(f"{path}: ncnn cannot load it.")

    def enlarge(image: np.ndarray) -> np.ndarray:
        extractor: Any = net.create_extractor()
        # Copied so that channels are aligned as ncnn expects; in numpy's memory, it would read beyond the image.
        extractor.input("in0", ncnn.Mat(image).clone())
        code, result = extractor.extract("out0")
        if code != 0:
            raise MemoryError if code == -100 else ValueError(f"ncnn fails at an image of {image.shape} (code {code}).")
        return np.array(result)

    return lambda x: torch.from_numpy(np.stack([enlarge(image) for image in x.contiguous().numpy()]))
