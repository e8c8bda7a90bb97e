"""The files of a benchmark: its table, every repetition, and what was measured on what machine."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from binaryvit.files import write_text_atomically
from binaryvit.models.ops import native
from binaryvit.records.provenance import describe_hardware, git_state, package_versions


def write_benchmark(folder: str | Path, name: str, measured: pd.DataFrame, summary: pd.DataFrame, device: str) -> None:
    """Writes <name>.csv (the summary), <name>.repetitions.csv and <name>.json (machine, packages, commit, time).

    `device`: "cpu" or "cuda", on which it was measured.
    """
    folder = Path(folder)
    turns = measured.groupby("batch_size")["repetition"].nunique().tolist()
    identity = {
        "hardware": describe_hardware(device, native.compiled_by() if device == "cpu" else None).model_dump(),
        "packages": package_versions("openvino", "nncf"),
        "git": git_state().model_dump(),
        **{name: _one_or_all(measured[name]) for name in ("threads", "batch_size", "processes") if name in measured},
        "repetitions": turns if len(set(turns)) > 1 else turns[0],  # by batch size
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text_atomically(folder / f"{name}.csv", summary.to_csv(index=False, float_format="%.4g"))
    write_text_atomically(folder / f"{name}.repetitions.csv", measured.to_csv(index=False, float_format="%.5g"))
    write_text_atomically(folder / f"{name}.json", json.dumps(identity, indent=2) + "\n")


def _one_or_all(column: pd.Series) -> int | list[int] | None:
    """The number that a column holds, all where they differ; None where it holds none."""
    numbers = [int(number) for number in column.dropna().unique()]
    return numbers if len(numbers) > 1 else numbers[0] if numbers else None
