"""OpenVINO, a rival in the benchmark of inference, with NNCF for int8. Both are needed for that alone."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_CALIBRATION_BATCHES = 8


def missing_packages() -> list[str]:
    """Which of the two are not installed."""
    return [name for name in ("openvino", "nncf") if find_spec(name) is None]


def call_of(model: nn.Module, images: Tensor, precision: str, threads: int) -> Callable[[], Any]:
    """A function that runs a model, compiled for one batch at a time, on these images.

    Args:
        precision: "fp32", "bf16" (a hint: OpenVINO keeps what it holds to be sensitive in fp32), or "int8" (quantized
            after training, calibrated on random images, which is enough to measure its speed).
    """
    import openvino

    with torch.inference_mode():
        converted = openvino.convert_model(model, example_input=images)
    if precision == "int8":
        import nncf

        batches = [torch.randn_like(images).numpy() for _ in range(_CALIBRATION_BATCHES)]
        converted = nncf.quantize(converted, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER)
    converted.reshape(list(images.shape))
    return _compiled(converted, images.numpy(), _TYPES[precision], threads)


def binary_product(rows: int, inputs: int, outputs: int, threads: int) -> Callable[[], Any]:
    """A product of signs as OpenVINO's BinaryConvolution with a 1 x 1 kernel.

    Raises:
        RuntimeError: it can't run here.
    """
    from openvino import Model, Shape, Type, op, opset1
    from openvino import Tensor as OpenVinoTensor

    x = opset1.parameter([1, inputs, rows, 1], Type.f32)
    limits = (opset1.constant(np.full((1, 1, 1, 1), value, np.float32)) for value in (0, 0, -1, 1))
    quantized = opset1.fake_quantize(x, *limits, 2)
    bits = np.packbits(np.random.default_rng(0).integers(0, 2, outputs * inputs, np.uint8))
    kernel = op.Constant(OpenVinoTensor(bits, Shape([outputs, inputs, 1, 1]), Type.u1))
    product = opset1.binary_convolution(
        quantized, kernel, [1, 1], [0, 0], [0, 0], [1, 1], mode="xnor-popcount", pad_value=0.0
    )
    images = np.random.default_rng(0).standard_normal((1, inputs, rows, 1), dtype=np.float32)
    return _compiled(Model([product], [x], "product"), images, "f32", threads)


def _compiled(model: Any, images: np.ndarray, precision: str, threads: int) -> Callable[[], Any]:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }  # fmt: skip
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer([images], share_inputs=True)
