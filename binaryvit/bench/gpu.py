"""What only a CUDA device can show, and a page about it (`make check-gpu`), within eight minutes."""

import argparse
import math
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from binaryvit.bench.cards import peak, training_operations
from binaryvit.bench.report import write_benchmark
from binaryvit.bench.training import MODES, Case, measure_training, summarize_training
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.models.ladder import BINARYVIT, TEACHERS
from binaryvit.records.provenance import available_cores, git_state
from binaryvit.records.run_record import GitState

SECONDS = 480
_GRACE_SECONDS = 20  # for a command to end after it was interrupted
_TESTS = "Tests marked for CUDA"
_SPEED = "Training steps"
_STUDY = "Smoke study, through papermill"


@dataclass(frozen=True)
class Check:
    """A command or measurement, how it ended, and the last line it printed or its error."""

    name: str
    passed: bool
    seconds: float
    last_line: str


def check(
    card: str,
    output: Path,
    batch_size: int,
    family: str = "small",
    modes: Sequence[str] = tuple(MODES),
    repetitions: int = 5,
    *,
    commands: Mapping[str, Sequence[str]],
) -> bool:
    """Runs the tests, measures training, reproduces the smoke study, all in the time that is left, and writes the page.

    What fails or takes too long is reported, and the rest goes on.

    Args:
        card: its name, as the page's title and in the names of the files.
        output: the folder of the page and of the measurements.
        commands: what is run and reported by exit code, by name; the first before the measurement.

    Returns whether all passed.
    """
    until = time.monotonic() + SECONDS
    name = f"gpu-{family}-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}"
    first, *others = commands.items()
    checks, summary = [_run(*first, until)], None
    cases = [Case(models[family], mode) for models in (TEACHERS, BINARYVIT) for mode in modes]
    begun = time.monotonic()
    try:
        measured = measure_training(cases, batch_size, repetitions, compile_time=False, until=until)
        summary = with_share_of_peak(summarize_training(measured), card)
        write_benchmark(output, name, measured, summary, "cuda" if torch.cuda.is_available() else "cpu")
    except BinaryViTError as error:
        checks.append(Check(_SPEED, False, time.monotonic() - begun, str(error)))
    checks += [_run(*other, until) for other in others]
    text = page(card, git_state(), checks, summary, batch_size)
    write_text_atomically(output / f"{name}.md", text)
    print(text)
    return all(check.passed for check in checks)


def with_share_of_peak(summary: pd.DataFrame, card: str) -> pd.DataFrame:
    """The summary of `measure_training` with the column share_of_peak (NaN for a card whose peak is not known)."""
    operations = {variant: training_operations(variant) for variant in summary["variant"].unique()}
    peaks = summary["mode"].map(lambda mode: peak(card, MODES[mode][1])).astype(float)
    return summary.assign(share_of_peak=summary["variant"].map(operations) * summary["images/s"] / peaks)


def page(card: str, git: GitState, checks: Sequence[Check], summary: pd.DataFrame | None, batch_size: int) -> str:
    """The report in Markdown. `summary` None: training was not measured, as a check says."""
    commit = f"{git.commit or 'unknown'}{' with uncommitted changes' if git.dirty else ''}"
    lines = [f"# {card}", "", f"`make check-gpu` at commit {commit}, PyTorch {torch.__version__}.", ""]
    for check in checks:
        outcome = "passed" if check.passed else "**failed**"
        lines.append(f"- {check.name}: {outcome} in {check.seconds:.0f} s ({check.last_line})")
    if summary is None:
        return "\n".join([*lines, ""])
    lines += ["", f"Training steps at batch {batch_size}: medians over repetitions in turns, lowest and highest.", ""]
    lines += ["| model | mode | images/s | peak memory (GB) | share of peak |", "| --- | --- | ---: | ---: | ---: |"]
    for row in summary.to_dict("records"):
        rate = f"{row['images/s']:.0f} ({row['lowest']:.0f} to {row['highest']:.0f})"
        share = "unknown card" if pd.isna(row["share_of_peak"]) else f"{row['share_of_peak']:.1%}"
        lines.append(f"| `{row['variant']}` | {row['mode']} | {rate} | {row['peak_memory_gb']:.2f} | {share} |")
    return "\n".join([*lines, "", *_ratios(summary), ""])


def _ratios(summary: pd.DataFrame) -> list[str]:
    """A sentence that sets compiled bfloat16 training of the binary model beside its two measures."""
    rates = summary.set_index(["variant", "mode"])["images/s"]
    reference, binary = summary["variant"].unique()
    if not {"compiled bf16", "eager bf16"} <= set(summary["mode"]):
        return []
    compiled = rates[binary, "compiled bf16"]
    return [
        f"Compiled in bf16, `{binary}` trains {compiled / rates[reference, 'compiled bf16']:.2f} times as fast as "
        f"`{reference}`, and {compiled / rates[binary, 'eager bf16']:.1f} times as fast as eager. The peak is that of "
        "dense products in the mode's precision; a binary product counts as one in floating point. In float32 "
        "that flatters the binary model, whose forward pass multiplies signs in float16."
    ]


def _commands(scratch: str) -> dict[str, Sequence[str]]:
    study = ["reproduce", "results/smoke", "--output", scratch]
    return {
        _TESTS: [sys.executable, "-m", "pytest", "-q", "-m", "cuda"],
        _STUDY: [sys.executable, "-m", "binaryvit.cli", *study, "--jobs", str(min(8, max(1, available_cores() // 2)))],
    }


def _run(name: str, command: Sequence[str], until: float) -> Check:
    """Runs a command, which is interrupted as by Ctrl-C when the time is over."""
    begun, last = time.monotonic(), "it printed nothing"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    left = max(0.0, until - begun)
    timers = [
        threading.Timer(left, process.send_signal, [signal.SIGINT]),
        threading.Timer(left + _GRACE_SECONDS, process.kill),  # whoever waits inside CUDA hears no signal
    ]
    try:
        for timer in timers:
            timer.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    finally:
        for timer in timers:
            timer.cancel()
    return Check(name, process.wait() == 0, time.monotonic() - begun, last)


def _batch_size() -> int:
    """A power of two for which all models in all modes find room in the GPU at the same time."""
    gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
    return 2 ** int(math.log2(max(1.0, gigabytes / 2)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make check-gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), metavar="DIR")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step (default: by the GPU's memory)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("check-gpu: This machine has no CUDA device, so there is nothing to check.", file=sys.stderr)
        return 2
    card, batch_size = torch.cuda.get_device_name(), options.batch_size or _batch_size()
    try:
        with tempfile.TemporaryDirectory(prefix="check-gpu-") as scratch:
            return 0 if check(card, options.output, batch_size, commands=_commands(scratch)) else 1
    except BinaryViTError as error:
        print(f"check-gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
