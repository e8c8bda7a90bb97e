"""The run record: what was run, on what, with what result.

A run's folder holds `run.json` (written last: its presence means the run is finished), `metrics.csv` with a row
per epoch, the inference weights and the executed notebook; `failure.json` instead of `run.json` when it failed.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically

RECORD_FILE = "run.json"
METRICS_FILE = "metrics.csv"
FAILURE_FILE = "failure.json"
RUNS_FOLDER = "runs"
LOCK_FILE = "training.lock"
_MAX_RECORD_BYTES = 4_000_000  # a record has some kilobytes; what is larger is another file

# Part of every run's key. Raise it with any change of the numbers that a run produces, so that stored runs show as
# stale; a test holds the numbers of this version.
TRAINING_VERSION = 2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunKey(_Record):
    """Identity of a run: when one of these changes, the numbers may, and the stored run is stale."""

    config: str  # TrainingConfig.key(), which contains the teacher's identity
    data: str  # fingerprint of the data, sha256 hex
    training_version: int


class GitState(_Record):
    """The source a run was trained with; None where there is no git."""

    commit: str | None
    dirty: bool | None  # tracked files outside results/ differ from the commit
    resumed_at: list[str | None] = []  # other commits at which an interrupted run went on


class DataRecord(_Record):
    """The data of a run. `source` is a hub name, an embedded set's name or the last component of a local folder."""

    name: str
    label: str  # its name in tables and figures
    source: str
    fingerprint: str
    train_split: str
    eval_split: str
    train_images: int
    eval_images: int
    num_classes: int


class Hardware(_Record):
    """The machine of a run: `device` as torch calls its type (cpu, cuda), `gpus` their names, memory in 1e9 bytes.

    `native_steps`, on a CPU: the compiler of the C++ steps of training (`models.ops.native`), with which units of 1 bit
    train in one process, in float32 and bfloat16; None where there was none, and PyTorch's steps took their place,
    whose results differ by rounding.
    """

    device: str
    cpu: str
    cores: int
    memory_gb: float
    gpus: list[str] = []
    native_steps: str | None = None


class RunResult(_Record):
    """Accuracies in percent (0..100) on the whole evaluation split after the last epoch.

    `top5` is None with fewer than five classes. `images_per_second` is the mean of the epochs' rates.
    """

    top1: float
    top5: float | None
    eval_loss: float
    epochs: int
    images_per_second: float


class WeightsRecord(_Record):
    """The stored inference weights; `top1` is that of the stored file, loaded again, in float32 and not compiled."""

    file: str  # relative to the run's folder
    bytes: int
    dtype: str
    top1: float


class BestRecord(_Record):
    """The weights of the epoch that was best on the evaluation split, the first of equals; `top1` is that epoch's.

    Chosen on the images it is measured on, this accuracy is biased upwards: comparisons take the last epoch's.
    """

    file: str  # relative to the run's folder
    epoch: int  # from 1
    top1: float


class PredictionsRecord(_Record):
    """The file with the class that the stored weights predict for each evaluated image (`records.predictions`).

    The share of correct ones is `WeightsRecord.top1`.
    """

    file: str  # relative to the run's folder
    bytes: int
    sha256: str


class RunRecord(_Record):
    """One finished training run, as stored in its run.json. It holds no absolute path."""

    id: str
    study: str
    key: RunKey
    config: dict[str, Any]
    git: GitState
    data: DataRecord
    packages: dict[str, str]
    hardware: Hardware
    threads: int
    processes: int
    seed: int
    started: AwareDatetime  # of the first start, UTC
    duration_seconds: float = Field(ge=0)  # of all epochs' steps and evaluations, over all starts
    result: RunResult
    weights: WeightsRecord
    predictions: PredictionsRecord | None = None  # None in records of earlier versions
    best: BestRecord | None = None  # with `keep_best`
    numerics: dict[str, str | bool] = {}  # the shortcuts PyTorch's libraries might take (`training.numerics`)

    def write(self, run_dir: str | Path) -> None:
        """Writes run.json atomically and removes the note of an earlier failure."""
        write_text_atomically(Path(run_dir) / RECORD_FILE, self.model_dump_json(indent=2) + "\n")
        (Path(run_dir) / FAILURE_FILE).unlink(missing_ok=True)


class Failure(_Record):
    """Why a run failed, in one sentence for the reader."""

    error: str
    time: AwareDatetime

    def write(self, run_dir: str | Path) -> None:
        """Writes failure.json atomically."""
        write_text_atomically(Path(run_dir) / FAILURE_FILE, self.model_dump_json(indent=2) + "\n")


def _read(path: Path, kind: type[_Record], what: str) -> Any:
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise BinaryViTError(f"{path} is not {what}: it is larger than {_MAX_RECORD_BYTES} bytes.")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BinaryViTError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise BinaryViTError(
            f"{path} is not {what} of this version: {where}: {first['msg']}. "
            "It was truncated, edited or written by another version; move it away to train the run again."
        ) from error


def read_record(run_dir: str | Path) -> RunRecord | None:
    """The record of the finished run in `run_dir`; None when there is none.

    Raises BinaryViTError when there is a run.json that is not a run record.
    """
    path = Path(run_dir) / RECORD_FILE
    return _read(path, RunRecord, "a run record") if path.exists() else None


def read_failure(run_dir: str | Path) -> Failure | None:
    """Why the run in `run_dir` failed; None when it did not.

    Raises BinaryViTError when failure.json holds something else.
    """
    path = Path(run_dir) / FAILURE_FILE
    return _read(path, Failure, "the note of a failed run") if path.exists() else None


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """The metrics of a run, one row per epoch, in the order of training.

    Raises BinaryViTError when there are none or they are not a table.
    """
    return read_table(run_dir, METRICS_FILE)


def read_table(run_dir: str | Path, name: str) -> pd.DataFrame:
    """One of a run's CSV files (metrics.csv, weight_flips.csv, latent_weights.csv) as a table.

    Raises BinaryViTError when it is missing or not a table.
    """
    path = Path(run_dir) / name
    try:
        return pd.read_csv(path)
    except FileNotFoundError as error:
        raise BinaryViTError(f"{path} is missing: the run has not reached the end of its first epoch.") from error
    except (OSError, ValueError) as error:
        raise BinaryViTError(f"{path} is not a readable CSV table: {error}") from error
