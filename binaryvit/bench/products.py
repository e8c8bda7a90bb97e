"""A model's binary products, layer by layer: on packed bits, and in float32, bfloat16 and int8 of the same shape."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pandas as pd
import timm
import torch
import torch.nn.functional as F

from binaryvit.bench import openvino
from binaryvit.models.ladder import BINARYVIT
from binaryvit.models.layers import BinaryConv2d, BinaryLinear, binary_layers
from binaryvit.packed.products import SignProduct

KINDS = ("packed", "float32", "bfloat16", "int8", "OpenVINO BinaryConvolution")
_PEAK = (256, 4096, 256)  # rows, inputs and outputs of a product that stays in the first caches


def layer_shapes(variant: str) -> pd.DataFrame:
    """The distinct shapes of a model's binary linears and merges on one image: rows (tokens), inputs, outputs, layers
    (how many there are), and the share of these layers' operations.
    """
    model = timm.create_model(variant).eval()
    shapes: Counter[tuple[int, int, int]] = Counter()

    def count(layer: BinaryLinear | BinaryConv2d, _: Any, output: torch.Tensor) -> None:
        outputs = len(layer.weight)
        shapes[(output.numel() // outputs, layer.weight[0].numel(), outputs)] += 1

    for layer in binary_layers(model).values():
        layer.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, model.in_chans, model.img_size, model.img_size))
    table = pd.DataFrame([(*shape, layers) for shape, layers in shapes.items()], columns=[*_SHAPE, "layers"])
    operations = table[_SHAPE].prod(axis=1) * table["layers"]
    return table.assign(share=operations / operations.sum())


_SHAPE = ["rows", "inputs", "outputs"]


def measure_products(family: str = "small", repetitions: int = 15, threads: int = 1) -> pd.DataFrame:
    """Measures every shape of the family's BinaryViT in each of `KINDS`, in turns; packing of signs included.

    The last row is a larger product that stays in the first caches. OpenVINO's is left out where it is not
    installed or can't run.

    Returns:
        One row per shape, kind and turn: rows, inputs, outputs, layers, share, kind, threads, repetition, seconds, and
        gop_per_second (1e9 multiplications and additions).
    """
    torch.set_num_threads(threads)
    shapes = layer_shapes(BINARYVIT[family])
    shapes.loc[len(shapes)] = [*_PEAK, 0, 0.0]
    rows = []
    for shape in shapes.itertuples(index=False):
        calls = _calls(int(shape.rows), int(shape.inputs), int(shape.outputs), threads)
        for repetition in range(repetitions):
            for kind, call in calls.items():
                rows.append((*shape, kind, threads, repetition, _seconds(call)))
    table = pd.DataFrame(rows, columns=[*shapes.columns, "kind", "threads", "repetition", "seconds"])
    table[[*_SHAPE, "layers"]] = table[[*_SHAPE, "layers"]].astype(int)
    return table.assign(gop_per_second=2e-9 * table[_SHAPE].prod(axis=1) / table["seconds"], batch_size=1)


def summarize_products(measured: pd.DataFrame) -> pd.DataFrame:
    """One row per shape: the median Gop/s of each kind. The last row, without a shape, is all the model's layers, one
    after the other.
    """
    keys = ["threads", *_SHAPE, "layers", "share"]
    table = measured.pivot_table(index=keys, columns="kind", values="gop_per_second", aggfunc="median", sort=False)
    table = table[[kind for kind in KINDS if kind in table]]
    kinds, table = table.columns, table.reset_index()
    layers = table[table["layers"] > 0]
    total = 1 / (1 / layers[kinds]).mul(layers["share"], axis=0).sum(skipna=False)
    whole = pd.DataFrame([total]).assign(threads=layers["threads"].max(), layers=layers["layers"].sum(), share=1.0)
    table = pd.concat([table, whole], ignore_index=True)
    return table.astype(dict.fromkeys(["threads", *_SHAPE, "layers"], "Int64"))


def _calls(rows: int, inputs: int, outputs: int, threads: int) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    packed, x8, weight8 = SignProduct(weight.sign()), x.sign().to(torch.int8), weight.sign().to(torch.int8)
    x16, weight16 = x.bfloat16(), weight.bfloat16()
    calls: dict[str, Callable[[], Any]] = {
        "packed": lambda: packed(x, threads=threads),
        "float32": lambda: F.linear(x, weight),
        "bfloat16": lambda: F.linear(x16, weight16),
        "int8": lambda: torch._int_mm(x8, weight8.t()),
    }
    if "openvino" not in openvino.missing_packages():
        with suppress(RuntimeError):  # not on this processor, or not in this version
            calls["OpenVINO BinaryConvolution"] = openvino.binary_product(rows, inputs, outputs, threads)
    return calls


@torch.inference_mode()
def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, among as many as take two milliseconds, behind one that is not timed."""
    begun = time.perf_counter()
    call()
    calls = max(1, int(0.002 / max(time.perf_counter() - begun, 1e-7)))
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begun) / calls
