"""Static int8 quantisation of an exported network by onnxruntime; OpenVINO can run the result, too.

The convolutions on features are quantised: weights per output channel, activations per tensor. The convolutions that
read or write an image, including the bicubic one, and the attention with its statistics stay in float: they are a small
part of the computation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor, nn

from examples.mren.data import imresize, list_images, mod_crop, read_rgb
from examples.mren.engines import Engine, Runtime, engine_module, import_extra, openvino

MAX_IMAGES = 24
MAX_SIDE = 96  # of a low-resolution image; more images help more than larger ones
MIN_PSNR = 38.0  # to the float network, in dB

FLOAT_PART = ".attention."  # part of the names of weights that stay in float


def calibration_images(folder: Path, scale: int) -> list[Tensor]:
    """Low-resolution images between 0 and 1, made from evenly spaced images of a folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no images, or one is unreadable or smaller than ``scale``.
    """
    files = list_images(folder)
    step = -(-len(files) // MAX_IMAGES)
    images: list[Tensor] = []
    for file in files[::step]:
        image = read_rgb(file)
        if min(image.shape[1:]) < scale:
            raise ValueError(f"{file}: smaller than {scale} x {scale} pixels; remove it.")
        low = imresize(mod_crop(image, scale), 1 / scale).float() / 255
        top, left = ((side - min(side, MAX_SIDE)) // 2 for side in low.shape[1:])
        images.append(low[:, top : top + MAX_SIDE, left : left + MAX_SIDE])
    return images


def quantize_file(file: Path, images: Sequence[Tensor]) -> None:
    """Quantise an exported network to int8 in place.

    Args:
        file: An ONNX file whose weights are named as in the state dict.
        images: Low-resolution calibration images between 0 and 1, each (3, H, W).
    """
    model = onnx.load(file)
    metadata = {each.key: each.value for each in model.metadata_props}
    add_pre_process_metadata(model)  # otherwise, onnxruntime logs a warning twice
    in_float = _first_and_last_convs(model.graph)
    quantize_static(
        model,
        file,
        _Images(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=[
            node.name
            for node in model.graph.node
            if node.op_type == "Conv" and node.name not in in_float and FLOAT_PART not in node.input[1]
        ],
        per_channel=True,
        # 7 bits: processors without VNNI add pairs of products in 16 bits, which would overflow with 8-bit weights.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    quantized = onnx.load(file)
    onnx.helper.set_model_props(quantized, metadata)
    onnx.checker.check_model(quantized, full_check=True)
    onnx.save(quantized, file)


def _first_and_last_convs(graph: onnx.GraphProto) -> set[str]:
    """The names of the convolutions that read the image or write the result."""
    reading, writing = {graph.input[0].name}, {graph.output[0].name}
    for node in graph.node:
        if node.op_type != "Conv" and reading.intersection(node.input[:1]):
            reading.update(node.output)
    for node in reversed(graph.node):
        if node.op_type != "Conv" and writing.intersection(node.output):
            writing.update(node.input)
    ends = (node for node in graph.node if reading.intersection(node.input[:1]) or writing.intersection(node.output))
    return {node.name for node in ends if node.op_type == "Conv"}


def write_int8(
    network: nn.Module,
    path: Path,
    runtime: Runtime,
    example: Tensor,
    images: Sequence[Tensor],
    metadata: Mapping[str, str] = {},
) -> None:
    """Convert a network to int8 for ONNX Runtime or OpenVINO.

    Args:
        network: In eval mode, with the convolutions of its attention in modules named ``attention``; not folded, as
            transposed convolutions are not quantised.
        path: The file or folder.
        runtime: ``"onnx"`` or ``"openvino"``.
        example: An input for tracing.
        images: Low-resolution calibration images between 0 and 1, each (3, H, W).
        metadata: Metadata to store in the result.
    """
    if runtime == "openvino":
        import_extra("openvino", "openvino")  # fail before the quantisation, which takes minutes
    with tempfile.TemporaryDirectory() as folder:
        file = path if runtime == "onnx" else Path(folder) / "network.onnx"
        engine_module("onnx").write(network, file, example, metadata)
        quantize_file(file, images)
        if runtime == "openvino":
            openvino.convert(file, path, metadata)


class _Images(CalibrationDataReader):
    """Calibration images in the form that onnxruntime reads."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.images: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        image = next(self.images, None)
        return None if image is None else {"input": image[None].numpy()}


def check(engine: Engine, net: nn.Module, images: Sequence[Tensor]) -> float:
    """PSNR to the float network in dB.

    Raises:
        ValueError: If it is so low that the quantisation must have failed.
    """
    squares: list[Tensor] = []
    for image in images:
        with torch.inference_mode():
            expected = net(image[None]).clamp(0, 1)
        squares.append((engine(image[None]).clamp(0, 1) - expected).square().flatten())
    psnr = float(-10 * torch.cat(squares).mean().clamp_min(1e-12).log10())
    if not psnr >= MIN_PSNR:
        raise ValueError(
            f"not written: the PSNR of int8 to torch is {psnr:.1f} dB on the calibration images, {MIN_PSNR:g} is "
            "needed; calibrate on more images, and of the kind that the network was trained on."
        )
    return psnr
