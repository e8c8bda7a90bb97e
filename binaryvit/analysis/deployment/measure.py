"""What a packed model takes in bytes and in time, and whether it computes what the model does."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from torch import Tensor, nn

from binaryvit.files import LIBRARY_PARENT, find_upwards
from binaryvit.models.cost import cost
from binaryvit.models.layers import binary_layers
from binaryvit.models.vision_transformer import BinaryVisionTransformer
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.packed.engine import PackedModel
from binaryvit.packed.export import export_packed
from binaryvit.packed.file import PackedFile, read_packed
from binaryvit.records.run_record import read_record
from binaryvit.threads import torch_threads


@dataclass(frozen=True)
class Deployment:
    """A run's model, and the packed file it was exported to.

    Attributes:
        path: the packed file.
        file: its content.
        model: the run's model, in floating point and in evaluation mode.
        packed: the same model from the packed file, on single bits.
        threads: that compute.
    """

    path: Path
    file: PackedFile
    model: BinaryVisionTransformer
    packed: PackedModel
    threads: int

    def random_images(self, count: int) -> Tensor:
        """Normally distributed pixels (count, channels, height, width), the same ones always."""
        return torch.randn(count, *self.packed.input_size, generator=torch.Generator().manual_seed(0))


def deploy(run: str | Path, target: str | Path, threads: int = 1) -> Deployment:
    """Exports a run to a packed file, and opens both.

    Args:
        run: folder of a finished run with a model of 1-bit weights and activations. A relative path may start in the
            current folder, in any above it, or in the repository that this library is in.
        target: the packed file to write.
        threads: that compute.

    Raises:
        BinaryViTError: there is no such run, it has other weights or activations, or the file exists.
    """
    run = Path(find_upwards(run, Path.cwd()) or find_upwards(run, LIBRARY_PARENT) or run)
    path = export_packed(run, target)
    file = read_packed(path)
    model = load_inference_weights(run / read_record(run).weights.file)
    return Deployment(path, file, model, PackedModel(file.skeleton, file.tensors, threads), threads)


def file_bytes(deployment: Deployment) -> pd.DataFrame:
    """The parts of a packed file, and what the cost table counts for them.

    Returns:
        Columns part, counted (bytes in the cost table), stored (bytes in the file); the last row is the sum.
    """
    counted = cost(deployment.model)
    layers = binary_layers(deployment.model).values()
    with safe_open(deployment.path, framework="pt") as opened:
        sizes = {name: opened.get_tensor(name).nbytes for name in opened.keys()}  # noqa: SIM118 - not a dict
    scales = 3 * sum(len(layer.weight) for layer in layers)
    bits = sum(size for name, size in sizes.items() if name.endswith("bits")) - scales
    rows = [
        ("binary weights", counted.binary_weights // 8, bits),
        ("other parameters", 4 * (counted.parameters - counted.binary_weights), sum(sizes.values()) - bits - scales),
        ("mantissas of the scales", 0, scales),
        ("header: names, shapes, description", 0, deployment.path.stat().st_size - sum(sizes.values())),
    ]
    table = pd.DataFrame(rows, columns=["part", "counted", "stored"])
    table.loc[len(table)] = ["the whole file", table["counted"].sum(), table["stored"].sum()]
    return table


@torch.inference_mode()
def identical_logits(deployment: Deployment, images: Tensor, batch_size: int = 16) -> int:
    """How many of the images (images, channels, height, width) get the model's own logits from the packed model."""
    same = [(deployment.packed(batch) == deployment.model(batch)).all(dim=1) for batch in images.split(batch_size)]
    return int(torch.cat(same).sum())


def latency(deployment: Deployment, repetitions: int = 30) -> pd.DataFrame:
    """How long one image takes, part by part: packed, and by the modules in floating point, which simulate the bits.

    The packed model computes all blocks in one call, so it is timed up to each part, and a part is the difference of
    two times. Each time is the shortest of all repetitions, since other load on the machine only adds; parts of a small
    model can still come out as zero. The stem's time includes the overhead of a call.

    Returns:
        Columns part, packed, simulated (milliseconds); the parts are in the order in which they compute.
    """
    image = deployment.random_images(1)
    until_part = {
        part: PackedModel(structure, deployment.file.tensors, deployment.threads).forward_features
        for part, structure in _up_to_each_part(deployment.file.skeleton).items()
    }
    until_part["norm and classifier"] = deployment.packed
    packed, simulated = [], []
    with torch_threads(deployment.threads):
        for _ in range(repetitions + 1):
            deployment.packed(image)  # untimed: the modules have filled the caches with other things
            packed.append([])
            for forward in until_part.values():
                start = time.perf_counter()
                forward(image)
                packed[-1].append(time.perf_counter() - start)
            simulated.append(_ends_of_parts(deployment.model, image))
    return pd.DataFrame(
        {"part": list(until_part), "packed": _milliseconds(packed), "simulated": _milliseconds(simulated)}
    )


def _milliseconds(rounds: list[list[float]]) -> np.ndarray:
    """The time of each part from rounds of times until each part; the first round warms up."""
    shortest = np.maximum.accumulate(np.min(rounds[1:], axis=0))
    return 1000 * np.diff(shortest, prepend=0.0)


def _up_to_each_part(skeleton: BinaryVisionTransformer) -> dict[str, BinaryVisionTransformer]:
    """The model cut after each of its parts but the last, by the part's name."""
    structures = {}
    for number, stage in enumerate(skeleton.stages):
        embedding = f"merge into stage {number}" if number else "stem"
        for blocks in range(len(stage.blocks) + 1):
            structure = copy.deepcopy(skeleton)
            structure.stages = structure.stages[: number + 1]
            structure.stages[number].blocks = structure.stages[number].blocks[:blocks]
            structure.norm = nn.Identity()
            structures[f"stage {number}, block {blocks - 1}" if blocks else embedding] = structure
    return structures


@torch.inference_mode()
def _ends_of_parts(model: BinaryVisionTransformer, image: Tensor) -> list[float]:
    """When each part of the model has computed, in seconds from the start."""
    ends: list[float] = []
    parts = [part for stage in model.stages for part in (stage.embed, *stage.blocks)]
    hooks = [part.register_forward_hook(lambda *_: ends.append(time.perf_counter())) for part in parts]
    start = time.perf_counter()
    model(image)
    ends.append(time.perf_counter())
    for hook in hooks:
        hook.remove()
    return [end - start for end in ends]
