"""How long a study takes on GPUs: an estimate on paper, from counted operations, counted bytes and data sheets.

It has never been compared with a run on a GPU. The model is a roofline (Williams, Waterman and Patterson 2009) with two
ends:

    slow: each operation by itself, as eager PyTorch executes them. A micro-batch takes the time of its arithmetic plus
        that of moving the operands and results of every operation, and no less than starting its kernels one by one.
    fast: everything fused into the matrix products, which no compiler reaches. A micro-batch takes the longer one of
        its arithmetic and of moving the products' operands and results.

Arithmetic of an image: 2 * (3 * student + teacher) operations for the multiply-accumulates of a forward pass (BOPs and
FLOPs of `binaryvit.cost`; the backward pass computes two products of the same size for each of the forward one; a
teacher only goes forward), and the elementwise operations of `binaryvit.cost` with the same factors. Products of +-1
values count as half-precision products: PyTorch has no other ones for training.

To both ends each step adds the optimizer's traffic, the all-reduce of the gradients and the latency of synchronized
batch norm, none of them hidden behind the rest. Evaluation, checkpoints and waiting for data are not counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import pandas as pd
import timm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from binaryvit.build import create_model, input_settings
from binaryvit.config import TrainingConfig
from binaryvit.cost import cost
from binaryvit.errors import BinaryViTError
from binaryvit.sampling import steps_per_epoch
from binaryvit.study import PlannedRun, Study
from binaryvit.teacher import PRETRAINED
from binaryvit.traffic import Traffic, traffic

ENDS = ("slow", "fast")
IMAGENET_TRAIN_IMAGES = 1_281_167
_CLASSES = 1000
_OPTIMIZER_BYTES = 28  # a parameter: AdamW reads it, its gradient and two moments, and writes three of them, in float32
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Accelerator:
    """A GPU as its data sheet describes it, dense rates without sparsity.

    `half` and `single` are operations/s of matrix products in fp16 or bf16 on tensor cores and in float32 beside them;
    `memory`, `link` and `network` bytes/s: of its memory, to the other GPUs of its machine (one direction), and of all
    network adapters of a machine with eight together (one direction).
    """

    name: str
    half: float
    single: float
    memory: float
    link: float
    network: float


# Published figures of V100 (2018), A100 (2021) and H100 (2022), not checked against the data sheets themselves, and
# of DGX machines with eight of them: NVLink halved, as it counts both directions; four 100, eight 200, eight 400 Gb/s.
ACCELERATORS = {
    "V100": Accelerator("NVIDIA V100 SXM2 32 GB", 125e12, 15.7e12, 900e9, 150e9, 50e9),
    "A100": Accelerator("NVIDIA A100 SXM 80 GB", 312e12, 19.5e12, 2039e9, 300e9, 200e9),
    "H100": Accelerator("NVIDIA H100 SXM 80 GB", 989e12, 67e12, 3350e9, 450e9, 400e9),
}


@dataclass(frozen=True)
class Assumptions:
    """What the estimate takes for granted beside data sheets; none of it was measured on a GPU."""

    product_efficiency: float = 0.3  # share of the data sheet's rate that products of these sizes reach
    memory_efficiency: float = 0.7  # share of the data sheet's bandwidth that elementwise kernels reach
    link_efficiency: float = 0.7  # share of the links' bandwidth that an all-reduce reaches
    kernel_seconds: float = 5e-6  # for PyTorch to start one operation
    sync_seconds: float = 30e-6  # one small all-reduce among the GPUs of a machine, as a synchronized norm needs two of
    sync_seconds_network: float = 60e-6  # the same over the network
    gpus_per_machine: int = 8
    micro_batch: int = 64  # the most images that a GPU holds at a time; a larger share of the batch is accumulated
    loader_images_per_second: float = 250.0  # of one CPU core; `binaryvit bench load` measures it


@dataclass(frozen=True)
class Work:
    """What training one run asks of the hardware: per image, per pass over a micro-batch, and per step.

    `products` and `elementwise` are operations per image; `student` and `teacher` the bytes moved; `parameters` those
    trained; `norms` how many layers synchronize their statistics.
    """

    products: float
    elementwise: float
    student: Traffic
    teacher: Traffic | None
    parameters: int
    norms: int

    def bytes(self, images: int) -> float:
        """Bytes that one pass moves when each operation reads and writes its own."""
        return sum(part.bytes(images) for part in (self.student, self.teacher) if part is not None)

    def product_bytes(self, images: int) -> float:
        """Bytes that the products of one pass move."""
        return sum(part.product_bytes(images) for part in (self.student, self.teacher) if part is not None)

    @property
    def operations(self) -> int:
        """Kernels that one pass starts."""
        return sum(part.operations for part in (self.student, self.teacher) if part is not None)


def work_of(config: TrainingConfig, teacher: nn.Module | None) -> Work:
    """Counts the work of training `config`'s model with `teacher`, which may be any model of the same image size."""
    model = create_model(config, _CLASSES)
    size = input_settings(model, config.image_size)[0]
    counted = cost(model)
    products, elementwise = 3 * (counted.bops + counted.flops), 3 * counted.elementwise
    passes = None
    if teacher is not None:
        taught = cost(teacher)
        products, elementwise = products + taught.bops + taught.flops, elementwise + taught.elementwise
        passes = traffic(teacher, input_settings(teacher, config.image_size)[0], config.precision, training=False)
    return Work(
        products=2 * products,
        elementwise=elementwise,
        student=traffic(model, size, config.precision, training=True),
        teacher=passes,
        parameters=counted.parameters,
        norms=sum(isinstance(module, _BatchNorm) for module in model.modules()),
    )


def step_seconds(
    work: Work, images: int, gpus: int, precision: str, gpu: Accelerator, assumed: Assumptions
) -> tuple[float, float, float]:
    """Seconds of one optimizer step with `images` on each of `gpus` GPUs: slow, fast, and communication in both."""
    passes = -(-images // assumed.micro_batch)
    micro_batch = images / passes
    peak = (gpu.single if precision == "fp32" else gpu.half) * assumed.product_efficiency
    memory = gpu.memory * assumed.memory_efficiency
    arithmetic = micro_batch * (work.products / peak + work.elementwise / gpu.single)
    slow = max(arithmetic + work.bytes(micro_batch) / memory, work.operations * assumed.kernel_seconds)
    fast = max(arithmetic, work.product_bytes(micro_batch) / memory)
    optimizer = _OPTIMIZER_BYTES * work.parameters / memory
    communication = 0.0
    if gpus > 1:
        spread = gpus > assumed.gpus_per_machine
        bandwidth = assumed.link_efficiency * (min(gpu.link, gpu.network) if spread else gpu.link)
        latency = assumed.sync_seconds_network if spread else assumed.sync_seconds
        # A ring: each GPU sends, and receives, its float32 gradients nearly twice.
        communication = 2 * (gpus - 1) / gpus * 4 * work.parameters / bandwidth
        communication += passes * 2 * work.norms * latency
    return passes * slow + optimizer + communication, passes * fast + optimizer + communication, communication


def count_work(study: Study) -> dict[str, Work]:
    """The work of each run of a study, by id; runs that differ in nothing that counts are counted once.

    Raises BinaryViTError when the model of a teacher from outside is not known.
    """
    works: dict[str, Work] = {}
    counted: dict[tuple, Work] = {}
    for run in study.runs:
        teacher = _teacher_model(study, run)
        config = run.config
        key = (config.variant, str(config.model_args), config.image_size, config.precision, run.teacher_id)
        if key not in counted:
            counted[key] = work_of(config, teacher)
        works[run.id] = counted[key]
    return works


def plan_training(
    study: Study,
    works: dict[str, Work],
    gpu: Accelerator = ACCELERATORS["A100"],
    gpus: Sequence[int] = (1, 8, 64),
    train_images: int = IMAGENET_TRAIN_IMAGES,
    assumed: Assumptions = Assumptions(),
) -> pd.DataFrame:
    """One row per run and number of GPUs, the effective batch being the study's.

    Columns: run, gpus, images_per_gpu (in a step), and for both ends, called <column>_slow and <column>_fast,
    images_per_second, days, gpu_days, communication (share of the step) and loader_cores (per GPU).

    Raises BinaryViTError when a run's batch cannot be split over so many GPUs.
    """
    rows = []
    for run in study.runs:
        batch = run.config.batch_size
        steps = run.config.epochs * steps_per_epoch(train_images, batch)
        for number in gpus:
            if number < 1 or batch % number:
                raise BinaryViTError(
                    f"The batch of {batch} images of {run.id} cannot be split over {number} GPUs: choose a divisor."
                )
            share = batch // number
            *ends, waiting = step_seconds(works[run.id], share, number, run.config.precision, gpu, assumed)
            row = {"run": run.id, "gpus": number, "images_per_gpu": share}
            for end, seconds in zip(ENDS, ends, strict=True):
                days = steps * seconds / _SECONDS_PER_DAY
                row[f"images_per_second_{end}"] = batch / seconds
                row[f"days_{end}"] = days
                row[f"gpu_days_{end}"] = number * days
                row[f"communication_{end}"] = waiting / seconds
                row[f"loader_cores_{end}"] = math.ceil(share / seconds / assumed.loader_images_per_second)
            rows.append(row)
    return pd.DataFrame(rows)


def needed_throughput(
    study: Study, works: dict[str, Work], days: float, train_images: int = IMAGENET_TRAIN_IMAGES
) -> pd.DataFrame:
    """One row per run: what an image costs, how many a run trains, and images/s needed to end in `days`."""
    rows = []
    for run in study.runs:
        work, batch = works[run.id], run.config.batch_size
        images = run.config.epochs * steps_per_epoch(train_images, batch) * batch
        pass_of = run.config.batch_size // run.config.processes // run.config.accumulation_steps
        rows.append(
            {
                "run": run.id,
                "gflop_per_image": work.products / 1e9,
                "megabytes_per_image_slow": work.bytes(pass_of) / pass_of / 1e6,
                "megabytes_per_image_fast": work.product_bytes(pass_of) / pass_of / 1e6,
                "kernels_per_pass": work.operations,
                "million_images": images / 1e6,
                "images_per_second_needed": images / (days * _SECONDS_PER_DAY),
            }
        )
    return pd.DataFrame(rows)


def readable(planned: pd.DataFrame) -> pd.DataFrame:
    """The table of `plan_training` for people: each quantity as `slow - fast`, with three digits."""
    table = planned[["run", "gpus", "images_per_gpu"]].copy()
    for name, title in {
        "images_per_second": "images/s",
        "days": "days",
        "gpu_days": "GPU-days",
        "communication": "communication",
        "loader_cores": "loader cores per GPU",
    }.items():
        ends = zip(*(planned[f"{name}_{end}"] for end in ENDS), strict=True)
        table[title] = [" - ".join(f"{float(f'{value:.3g}'):g}" for value in pair) for pair in ends]
    return table


def describe(gpu: Accelerator, assumed: Assumptions, train_images: int) -> str:
    """What the estimate rests on, one assumption a line."""
    lines = [
        "An estimate on paper, never compared with a run on a GPU. slow: every operation by itself; fast: all fused.",
        f"{gpu.name}: {gpu.half / 1e12:g} TFLOP/s half precision, {gpu.single / 1e12:g} float32, memory "
        f"{gpu.memory / 1e9:g} GB/s, link {gpu.link / 1e9:g} GB/s, network {gpu.network / 1e9:g} GB/s a machine",
        f"train_images: {train_images}",
    ]
    return "\n".join(lines + [f"{field.name}: {getattr(assumed, field.name):g}" for field in fields(assumed)])


def _teacher_model(study: Study, run: PlannedRun) -> nn.Module | None:
    own = next((other for other in study.runs if other.id == run.teacher_id), None)
    if own is not None:
        return create_model(own.config, _CLASSES)
    if run.config.teacher is None:
        return None
    name = run.config.teacher_variant or run.config.teacher.removeprefix(PRETRAINED)
    if not timm.is_model(name):
        raise BinaryViTError(f"The model of the teacher {run.config.teacher!r} is not known: set teacher_variant.")
    return timm.create_model(name)
