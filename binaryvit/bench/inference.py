"""Inference on single bits against what a user would run instead: time, memory and first calls, measured side by side.

Each case lives in a process of its own; all take turns, so that what else the machine does falls on all alike.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pandas as pd
import psutil
import timm
import torch
from torch import Tensor

from binaryvit.bench import openvino, products, scaling
from binaryvit.bench.processes import MeasuringProcess, end_all, peak_memory
from binaryvit.errors import BinaryViTError
from binaryvit.models.description import Description
from binaryvit.models.ladder import BINARYVIT, TEACHERS
from binaryvit.packed import load
from binaryvit.packed.file import save_packed
from binaryvit.packed.library import instructions

PACKED = "packed"
CASES = (
    PACKED,
    "simulation, eager fp32",
    "DeiT, eager fp32",
    "DeiT, eager bf16",
    "DeiT, compiled fp32",
    "DeiT, compiled bf16",
    "DeiT, OpenVINO fp32",
    "DeiT, OpenVINO bf16",
    "DeiT, OpenVINO int8",
    "ResNet-18, eager fp32",
)
"""The packed model, the same in floating point, and the family's full-precision DeiT in everything that runs it."""

# What a first call compiles is kept here.
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")
_COMPILING = (PACKED, "DeiT, compiled fp32", "DeiT, compiled bf16")
_TURN_SECONDS = 0.2  # what the timed calls of a turn take at least
_LEAST_TURNS = 5

Call = Callable[[], Tensor]


def available_cases(wanted: Sequence[str] = ()) -> tuple[list[str], str]:
    """The wanted cases (default: all) that run here, and a sentence that says what is left out, "" if nothing.

    The packed model, which all are compared with, is always among them.

    Raises:
        BinaryViTError: there is no such case.
    """
    if unknown := [case for case in wanted if case not in CASES]:
        raise BinaryViTError(f"{unknown[0]!r} can't be measured: choose from {'; '.join(CASES)}.")
    chosen = [case for case in CASES if case in (*wanted, PACKED) or not wanted]
    missing = openvino.missing_packages()
    rivals = [case for case in chosen if "OpenVINO" in case]
    left_out = rivals if "openvino" in missing else [case for case in rivals if missing and "int8" in case]
    if not left_out:
        return chosen, ""
    return [case for case in chosen if case not in left_out], (
        f"Left out, for {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed "
        f"(pip install 'binaryvit[bench]'): {'; '.join(left_out)}."
    )


def measure_part(
    part: str,
    family: str,
    cases: Sequence[str],
    batch_sizes: Sequence[int],
    threads: int,
    repetitions: int,
    seconds: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every repetition and the summary of one part of the benchmark: "models" (`measure_inference`, for each batch
    size), "products" (`products`) or "scaling" (`scaling`); the last two without a limit in `seconds`.

    Raises:
        BinaryViTError: the engine's C++ can't be compiled here.
    """
    common = dict(family=family, repetitions=repetitions, threads=threads)
    if instructions() == "PyTorch":
        raise BinaryViTError(
            "Packed inference is measured with its C++ only: it needs Linux and a compiler, such as g++."
        )
    if part == "products":
        measured = products.measure_products(**common)
        return measured, products.summarize_products(measured)
    if part == "scaling":
        measured = scaling.measure_scaling(**common)
        return measured, scaling.summarize_scaling(measured)
    tables = [measure_inference(cases, batch_size=size, seconds=seconds, **common) for size in batch_sizes]
    measured = pd.concat(tables, ignore_index=True)
    return measured, summarize_inference(measured)


def measure_inference(
    cases: Sequence[str],
    family: str = "small",
    batch_size: int = 1,
    repetitions: int = 15,
    threads: int = 1,
    seconds: float = 60,
) -> pd.DataFrame:
    """Measures whole models on random images, without their preprocessing.

    Args:
        cases: of `CASES`.
        family: of `LADDER`: whose BinaryViT, and whose full-precision DeiT.
        repetitions: turns; in each a case runs its model once untimed, and then for a fifth of a second, at least once.
        seconds: after which no other turn begins, but for the first five.

    Returns:
        One row per case and turn: case, batch_size, threads, repetition, seconds (median of the turn's calls);
        and, the same in all rows of a case, peak_memory_gb (1e9 bytes above the idle process), first_call_seconds
        (building the model and its first call; from nothing compiled, where something is) and
        first_call_again_seconds (in a later process; NaN where nothing is compiled).
    """
    rows, facts, running = [], {}, {}
    with tempfile.TemporaryDirectory(prefix="binaryvit-") as folder:
        path = Path(folder) / "model.bvit"
        variant = BINARYVIT[family]
        save_packed(timm.create_model(variant), path, Description(variant=variant, model_args={}))
        try:
            for number, case in enumerate(cases):
                arguments = (case, family, str(path), batch_size, threads)
                environment = dict.fromkeys(_CACHES, str(Path(folder) / str(number)))
                running[case], again = MeasuringProcess(_answers, arguments, environment), None
                first = running[case].ask("first call")
                if case in _COMPILING:
                    end_all([running[case]])
                    running[case] = MeasuringProcess(_answers, arguments, environment)
                    again = running[case].ask("first call")
                facts[case] = (first, again)
            begun = time.perf_counter()
            for repetition in range(repetitions):
                if repetition >= _LEAST_TURNS and time.perf_counter() - begun > seconds:
                    break
                for case, process in running.items():
                    rows.append((case, batch_size, threads, repetition, process.ask("turn")))
            facts = {case: (running[case].ask("memory"), *of_case) for case, of_case in facts.items()}
        finally:
            end_all(running.values())
    table = pd.DataFrame(rows, columns=["case", "batch_size", "threads", "repetition", "seconds"])
    columns = ["peak_memory_gb", "first_call_seconds", "first_call_again_seconds"]
    return table.join(pd.DataFrame([facts[case] for case in table["case"]], columns=columns, dtype=float))


def summarize_inference(measured: pd.DataFrame) -> pd.DataFrame:
    """One row per case, batch size and threads: turns (how many), ms per image (median, lowest, highest), and how many
    times faster the packed model is, its spread that of the ratios within each turn.
    """
    keys = ["threads", "batch_size", "case"]
    measured = measured.assign(ms=1000 * measured["seconds"] / measured["batch_size"])
    turn = ["threads", "batch_size", "repetition"]
    packed = measured[measured["case"] == PACKED].set_index(turn)["ms"]
    ratios = measured["ms"] / packed.reindex(pd.MultiIndex.from_frame(measured[turn])).to_numpy()
    of_case = measured.assign(ratio=ratios).groupby(keys, sort=False)
    times, ratio = of_case["ms"], of_case["ratio"]
    table = pd.DataFrame({
        "turns": times.size(), "ms/image": times.median(), "lowest": times.min(), "highest": times.max(),
        "packed is faster by": ratio.median(), "at least": ratio.min(), "at most": ratio.max(),
    })  # fmt: skip
    facts = of_case[["peak_memory_gb", "first_call_seconds", "first_call_again_seconds"]].first()
    return table.join(facts).reset_index()


def _answers(case: str, family: str, packed: str, batch_size: int, threads: int) -> Callable[[str], float]:
    """What a measuring process of a case says to "first call", "turn" and "memory"."""
    torch.set_num_threads(threads)
    idle = psutil.Process().memory_info().rss
    built: list[Call] = []

    def timed() -> float:
        begun = time.perf_counter()
        built[0]()
        return time.perf_counter() - begun

    def answer(question: str) -> float:
        if question == "memory":
            return (peak_memory() - idle) / 1e9
        if question == "first call":
            begun = time.perf_counter()
            built.append(_call_of(case, family, packed, batch_size, threads))
            built[0]()
            return time.perf_counter() - begun
        built[0]()
        calls = [timed()]
        while sum(calls) < _TURN_SECONDS:
            calls.append(timed())
        return median(calls)

    return answer


def _call_of(case: str, family: str, packed: str, batch_size: int, threads: int) -> Call:
    """A function that runs the model of a case on a batch of random images."""
    torch.manual_seed(0)
    if case == PACKED:
        model = load(packed, threads)
        images = torch.randn(batch_size, *model.input_size)
        return lambda: model(images)
    name, _, mode = case.partition(", ")
    variants = {"simulation": BINARYVIT[family], "DeiT": TEACHERS[family], "ResNet-18": "resnet18"}
    model = timm.create_model(variants[name]).eval()
    size = timm.create_model(BINARYVIT[family]).img_size
    images = torch.randn(batch_size, 3, size, size)
    kind, precision = mode.split()
    if kind == "OpenVINO":
        return openvino.call_of(model, images, precision, threads)
    if precision == "bf16":
        model, images = model.bfloat16(), images.bfloat16()
    if kind == "compiled":
        model = torch.compile(model)

    @torch.inference_mode()
    def call() -> Tensor:
        return model(images)

    return call
