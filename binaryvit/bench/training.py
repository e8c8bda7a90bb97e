"""Throughput, memory and compile time of training steps, measured side by side.

Each case (a model in one mode) lives in a process of its own, so that its memory is its own. All are set up first; then
they take turns, one step each, so that what else the machine does falls on all of them alike.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import psutil
import timm
import torch
import torch.nn.functional as F
from accelerate import PartialState
from timm.optim import create_optimizer_v2
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from binaryvit.bench.processes import MeasuringProcess, ask_all, end_all, peak_memory, together
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.models.ladder import BINARYVIT, LADDER, LAST_COLUMNAR, TEACHERS
from binaryvit.models.ops.synchronized import synchronize
from binaryvit.records.provenance import available_cores
from binaryvit.training.build import compile_blocks, data_parallel, input_settings
from binaryvit.training.evaluation import autocast
from binaryvit.training.memory import HUGE_PAGES, keep_freed_memory
from binaryvit.training.numerics import chosen_numerics

MODES = {
    "eager fp32": (False, "fp32"),
    "eager bf16": (False, "bf16"),
    "eager fp16": (False, "fp16"),
    "compiled fp32": (True, "fp32"),
    "compiled bf16": (True, "bf16"),
    "compiled fp16": (True, "fp16"),
}
"""Whether the blocks are compiled, and the precision, of each mode."""

_USUAL_MODES = tuple(mode for mode, (_, precision) in MODES.items() if precision != "fp16")

# In a turn. On a GPU they follow each other without waiting, as in training.
_STEPS = {"cpu": 1, "cuda": 10}

# Where Inductor and `native` keep what they compiled.
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")

# What counts as multiplication of matrices in a profile, convolutions among them.
_MATRIX_PRODUCTS = ("mm", "conv", "attention")


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a model by its timm name, and a mode of `MODES`."""

    variant: str
    mode: str


def cases(family: str, variants: Sequence[str] = (), modes: Sequence[str] = ()) -> list[Case]:
    """The full-precision model of a family (of `LADDER`) in eager float32, which all are compared with, then each
    of the variants in each of the modes; by default its BinaryViT and its largest columnar model, in all modes but
    fp16, which is no faster on a CPU.

    Raises BinaryViTError for an unknown family, mode or variant.
    """
    for given, known in ((family, LADDER), *((mode, MODES) for mode in modes)):
        if given not in known:
            raise BinaryViTError(f"{given!r} can't be measured: choose from {', '.join(known)}.")
    for variant in variants:
        if not timm.is_model(variant):
            raise BinaryViTError(f"timm has no model {variant!r}{suggestion(variant, timm.list_models())}")
    chosen = [
        (variant, mode)
        for variant in variants or (BINARYVIT[family], LAST_COLUMNAR[family])
        for mode in modes or _USUAL_MODES
    ]
    return [Case(*case) for case in dict.fromkeys([(TEACHERS[family], "eager fp32"), *chosen])]


def measure_training(
    chosen: Sequence[Case],
    batch_size: int = 8,
    repetitions: int = 9,
    threads: int | None = None,
    processes: int = 1,
    compile_time: bool = True,
    until: float = math.inf,
) -> pd.DataFrame:
    """Measures training steps: forward, cross-entropy, backward, AdamW, on random images, from new weights.

    On the GPU if there is one, else on the CPU with `threads` in each process (None: the cores divided by `processes`).

    Args:
        batch_size: images that each process takes in a step.
        processes: how many train together, as `TrainingConfig.processes` says.
        compile_time: whether compiled cases are set up twice from an empty cache, one after the other: the second time
            is what a later start of the same training takes. Without it all cases are set up at the same time.
        until: the moment of `time.monotonic()` at which it is given up.

    Returns:
        One row per case and repetition: variant, mode, batch_size, threads, processes, repetition, seconds (of the
        slowest process), images_per_second (of all); and, the same in all rows of a case, peak_memory_gb (1e9 bytes
        above the idle process; on a GPU those PyTorch allocated; the most that a process had, and with several one more
        column for each), first_step_seconds, first_step_again_seconds (both with compilation; NaN where there is none)
        and matmul_share (of one step's time).

    Raises:
        BinaryViTError: there are fewer GPUs than processes, memory ran out, or time did.
    """
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise BinaryViTError(f"{processes} processes need as many GPUs; there are {torch.cuda.device_count()}.")
    if not torch.cuda.is_available():
        threads = threads or max(1, available_cores() // processes)
    rows, facts, running = [], {}, {}
    with tempfile.TemporaryDirectory(prefix="binaryvit-") as folder:
        caches = {case: os.path.join(folder, str(number)) for number, case in enumerate(chosen)}
        arguments = (batch_size, threads, processes)
        try:
            for case in chosen:
                running[case] = _started(case, caches[case], *arguments)
                if compile_time and MODES[case.mode][0]:
                    facts[case] = [max(ask_all(running[case], "setup", until))]
                    end_all(running[case])
                    running[case] = _started(case, caches[case], *arguments)
                    facts[case] += [max(ask_all(running[case], "setup", until))]
            waiting = [process for case in chosen if case not in facts for process in running[case]]
            ask_all(waiting, "setup", until)
            for case in chosen:
                ask_all(running[case], "step", until)  # while others compiled, the system may have taken its memory
            for repetition in range(repetitions):
                for case in chosen:
                    seconds = max(ask_all(running[case], "step", until))
                    rate = processes * batch_size / seconds
                    rows.append((case.variant, case.mode, *arguments, repetition, seconds, rate))
            for case in chosen:
                memory = ask_all(running[case], "memory", until)
                of_each = memory if processes > 1 else []
                share = ask_all(running[case], "share", until)[0]
                facts[case] = [max(memory), *of_each, *facts.get(case, [None, None]), share]
        finally:
            end_all(process for group in running.values() for process in group)
    columns = ["variant", "mode", "batch_size", "threads", "processes", "repetition", "seconds", "images_per_second"]
    of_each = [f"peak_memory_gb_{rank}" for rank in range(processes)] if processes > 1 else []
    columns_of_case = ["peak_memory_gb", *of_each, "first_step_seconds", "first_step_again_seconds", "matmul_share"]
    of_case = [facts[Case(variant, mode)] for variant, mode, *_ in rows]
    return pd.DataFrame(rows, columns=columns).join(pd.DataFrame(of_case, columns=columns_of_case, dtype=float))


def summarize_training(measured: pd.DataFrame) -> pd.DataFrame:
    """One row per case: median, lowest and highest images/s, the ratio of its median to the first case's, and the rest.

    The ratio's spread is that of the ratios within each repetition.
    """
    cases_in_order = measured.groupby(["variant", "mode"], sort=False)
    rates = cases_in_order["images_per_second"]
    base = measured[measured["variant"] == measured["variant"].iloc[0]]
    base = base[base["mode"] == measured["mode"].iloc[0]].set_index("repetition")["images_per_second"]
    ratios = measured.assign(ratio=measured["images_per_second"] / measured["repetition"].map(base))
    ratios = ratios.groupby(["variant", "mode"], sort=False)["ratio"]
    of_case = measured.columns[measured.columns.get_loc("images_per_second") + 1 :]
    table = pd.DataFrame({
        "images/s": rates.median(), "lowest": rates.min(), "highest": rates.max(),
        "ratio": ratios.median(), "lowest ratio": ratios.min(), "highest ratio": ratios.max(),
    })  # fmt: skip
    return table.join(cases_in_order[list(of_case)].first()).reset_index()


def _started(case: Case, cache: str, batch_size: int, threads: int | None, processes: int) -> list[MeasuringProcess]:
    """The processes of a case, not yet set up."""
    environment = HUGE_PAGES | dict.fromkeys(_CACHES, cache)
    return [MeasuringProcess(_answers, (case, batch_size, threads), environment | own) for own in together(processes)]


def _answers(case: Case, batch_size: int, threads: int | None) -> Callable[[str], float]:
    """What a process of a case says to "setup" (seconds of the first step), "step" (seconds), "memory" and "share"."""
    process = PartialState(cpu=not torch.cuda.is_available())
    device = process.device
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(threads)
    idle = psutil.Process().memory_info().rss
    step = None

    def timed(steps: int = 1) -> float:
        begun = time.perf_counter()
        with chosen_numerics():
            for _ in range(steps):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
        return (time.perf_counter() - begun) / steps

    def answer(question: str) -> float:
        nonlocal step
        if question == "setup":
            step = _training_step(case, batch_size, process)
            seconds = timed()
            timed()  # the second step warms up what the first did not
        elif question == "step":
            if device.type == "cuda":
                timed()  # takes the memory that others had
            seconds = timed(_STEPS[device.type])
        elif question == "share":
            return _matmul_share(timed)
        else:
            return (_peak_memory(device) - (idle if device.type == "cpu" else 0)) / 1e9
        torch.cuda.empty_cache()  # without effect on a CPU
        return seconds

    def explained(question: str) -> float:
        try:
            return answer(question)
        except torch.OutOfMemoryError as error:
            raise BinaryViTError(
                f"{case.variant}, {case.mode}, ran out of GPU memory with {batch_size} images a step: choose a smaller "
                "--batch-size."
            ) from error

    return explained


def _training_step(case: Case, batch_size: int, process: PartialState) -> Callable[[], None]:
    """A function that does one step of training, as `training.loop` does it."""
    compiled, precision = MODES[case.mode]
    device = process.device
    torch.manual_seed(0)
    model = timm.create_model(case.variant).to(device)
    (channels, height, width), *_ = input_settings(model)
    images = torch.randn(batch_size, channels, height, width, device=device)
    labels = torch.randint(0, model.num_classes, (batch_size,), device=device)
    if process.num_processes > 1:
        synchronize(model)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    if compiled:
        compile_blocks(model)
    network = data_parallel(model, device) if process.num_processes > 1 else model

    def step() -> None:
        with autocast(device, precision):
            logits = network(images)
        scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_memory()


def _is_kernel(event: FunctionEventAvg) -> bool:
    return event.device_type != DeviceType.CPU and not event.is_user_annotation


def _matmul_share(step) -> float:
    """The share of a step's computing time that multiplies matrices."""
    with torch.profiler.profile() as profile:
        step()
    events, on_gpu = profile.key_averages(), torch.cuda.is_available()
    # On a GPU a kernel stands twice among the events: as itself, and in the time of the operation that started it.
    whole = [event for event in events if not on_gpu or _is_kernel(event)]
    # PyTorch's own operations only: the names of compiled graphs are hashes, in which anything may stand.
    products = [
        event
        for event in events
        if event.key.startswith("aten::") and any(part in event.key for part in _MATRIX_PRODUCTS)
    ]
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    counted, total = (sum(getattr(event, time) for event in part) for part in (products, whole))
    return counted / max(total, 1e-9)
