"""Throughput, memory and compile time of training steps, measured side by side.

Each case (a model in one mode) lives in a process of its own, so that its memory is its own. All are set up first; then
they take turns, one step each, so that what else the machine does falls on all of them alike.
"""

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
from timm.optim import create_optimizer_v2

from binaryvit.bench.processes import MeasuringProcess, peak_memory
from binaryvit.config import suggestion
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER
from binaryvit.training.build import compile_blocks, input_settings
from binaryvit.training.evaluation import autocast
from binaryvit.training.memory import HUGE_PAGES, keep_freed_memory

MODES = {
    "eager fp32": (False, "fp32"),
    "eager bf16": (False, "bf16"),
    "compiled fp32": (True, "fp32"),
    "compiled bf16": (True, "bf16"),
}
"""Whether the blocks are compiled, and the precision, of each mode."""

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
    """The full-precision model of a family (of `model.LADDER`) in eager float32, which all are compared with, then each
    of the variants in each of the modes; by default its BinaryViT and its largest columnar model, in all modes.

    Raises BinaryViTError for an unknown family, mode or variant.
    """
    for given, known in ((family, LADDER), *((mode, MODES) for mode in modes)):
        if given not in known:
            raise BinaryViTError(f"{given!r} can't be measured: choose from {', '.join(known)}.")
    for variant in variants:
        if not timm.is_model(variant):
            raise BinaryViTError(f"timm has no model {variant!r}{suggestion(variant, timm.list_models())}")
    ladder = LADDER[family]
    chosen = [(variant, mode) for variant in variants or (ladder[5], ladder[4]) for mode in modes or MODES]
    return [Case(*case) for case in dict.fromkeys([(ladder[0], "eager fp32"), *chosen])]


def measure_training(
    chosen: Sequence[Case], batch_size: int = 8, repetitions: int = 9, threads: int | None = None
) -> pd.DataFrame:
    """Measures training steps: forward, cross-entropy, backward, AdamW, on random images, from new weights.

    On the GPU if there is one, else on the CPU with `threads` (None: PyTorch's choice). Compiled cases are set up
    twice from an empty cache: the second time is what a later start of the same training takes.

    Returns:
        One row per case and repetition: variant, mode, batch_size, threads, repetition, seconds, images_per_second;
        and, the same in all rows of a case, peak_memory_gb (1e9 bytes above the idle process; on a GPU those PyTorch
        allocated), first_step_seconds, first_step_again_seconds (both with compilation; NaN where there is none) and
        matmul_share (of one step's time).
    """
    rows, running = [], []
    with tempfile.TemporaryDirectory(prefix="binaryvit-") as cache:
        try:
            for number, case in enumerate(chosen):
                compiled = MODES[case.mode][0]
                own_cache = os.path.join(cache, str(number))
                process, first = _started(case, batch_size, threads, own_cache)
                again = None
                if compiled:
                    process.end()
                    process, again = _started(case, batch_size, threads, own_cache)
                running.append((case, process, first, again))
            for _, process, *_ in running:
                process.ask("step")  # while others compiled, the system may have taken its memory
            for repetition in range(repetitions):
                for case, process, *_ in running:
                    seconds = process.ask("step")
                    rows.append((case.variant, case.mode, batch_size, threads, repetition, seconds))
            facts = {
                (case.variant, case.mode): (
                    process.ask("memory"), first if MODES[case.mode][0] else None, again, process.ask("share")
                )
                for case, process, first, again in running
            }  # fmt: skip
        finally:
            for _, process, *_ in running:
                process.end()
    table = pd.DataFrame(rows, columns=["variant", "mode", "batch_size", "threads", "repetition", "seconds"])
    table["images_per_second"] = batch_size / table["seconds"]
    columns = ["peak_memory_gb", "first_step_seconds", "first_step_again_seconds", "matmul_share"]
    of_case = [facts[row] for row in zip(table["variant"], table["mode"], strict=True)]
    return table.join(pd.DataFrame(of_case, columns=columns, dtype=float))


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
    facts = cases_in_order[["peak_memory_gb", "first_step_seconds", "first_step_again_seconds", "matmul_share"]].first()
    table = pd.DataFrame({
        "images/s": rates.median(), "lowest": rates.min(), "highest": rates.max(),
        "ratio": ratios.median(), "lowest ratio": ratios.min(), "highest ratio": ratios.max(),
    })  # fmt: skip
    return table.join(facts).reset_index()


def _started(case: Case, batch_size: int, threads: int | None, cache: str) -> tuple[MeasuringProcess, float]:
    """A process that has done the first steps of a case, and the seconds of the very first."""
    environment = HUGE_PAGES | dict.fromkeys(_CACHES, cache)
    process = MeasuringProcess(_answers, (case, batch_size, threads), environment)
    return process, process.ask("setup")


def _answers(case: Case, batch_size: int, threads: int | None) -> Callable[[str], float]:
    """What the process of a case says to "setup", "step", "memory" and "share"."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(threads or torch.get_num_threads())
    idle = psutil.Process().memory_info().rss
    step = None

    def timed() -> float:
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def answer(question: str) -> float:
        nonlocal step
        if question == "setup":
            step = _training_step(case, batch_size, device)
            seconds = timed()
            timed()  # the second step warms up what the first did not
            return seconds
        if question == "step":
            return timed()
        if question == "memory":
            return (_peak_memory(device) - (idle if device.type == "cpu" else 0)) / 1e9
        return _matmul_share(timed)

    return answer


def _training_step(case: Case, batch_size: int, device: torch.device):
    """A function that does one step of training."""
    compiled, precision = MODES[case.mode]
    torch.manual_seed(0)
    model = timm.create_model(case.variant).to(device)
    (channels, height, width), *_ = input_settings(model)
    images = torch.randn(batch_size, channels, height, width, device=device)
    labels = torch.randint(0, model.num_classes, (batch_size,), device=device)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, fused=True)
    if compiled:
        compile_blocks(model)

    def step() -> None:
        with autocast(device, precision):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_memory()


def _matmul_share(step) -> float:
    """The share of a step's computing time that multiplies matrices."""
    with torch.profiler.profile() as profile:
        step()
    on_gpu = torch.cuda.is_available()
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    # PyTorch's own operations only: the names of compiled graphs are hashes, in which anything may stand.
    products = sum(
        value
        for name, value in times.items()
        if name.startswith("aten::") and any(part in name for part in _MATRIX_PRODUCTS)
    )
    return products / max(sum(times.values()), 1e-9)
