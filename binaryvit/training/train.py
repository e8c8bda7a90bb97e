"""Training a model from a configuration to a run record."""

from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from binaryvit.config import TrainingConfig, without_place
from binaryvit.data.batches import told_of_killed_workers
from binaryvit.data.data_set import Data
from binaryvit.data.sampling import scoped_random_state
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.models.ops import native
from binaryvit.models.ops.compiler import require_compiler
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.records.predictions import write_predictions
from binaryvit.records.provenance import describe_hardware, package_versions
from binaryvit.records.run_record import (
    TRAINING_VERSION,
    BestRecord,
    DataRecord,
    GitState,
    RunKey,
    RunRecord,
    RunResult,
    WeightsRecord,
    read_record,
)
from binaryvit.threads import torch_threads
from binaryvit.training.build import store_weights
from binaryvit.training.checkpoint import CHECKPOINT_FILE, PROCESSES, stored_identity
from binaryvit.training.evaluation import Evaluation
from binaryvit.training.latent import latent_histograms, latent_layers
from binaryvit.training.loop import BEST_WEIGHTS_FILE, Trainer
from binaryvit.training.memory import keep_freed_memory
from binaryvit.training.numerics import chosen_numerics, current_numerics
from binaryvit.training.processes import check_launch, load_data_once_per_machine, locked
from binaryvit.training.tables import best_epoch
from binaryvit.training.teacher import key_of

WEIGHTS_FILE = "weights.safetensors"
HISTOGRAM_FILE = "latent_weights.csv"
LATENT_LAYERS_FILE = "latent_layers.csv"


def train_in_process(config: TrainingConfig, run_dir: str | Path, *, study: str = "", run_id: str = "") -> RunRecord:
    """Trains what `config` describes into the folder `run_dir`, or goes on from the checkpoint there.

    A finished run is returned as it is. It trains on a CPU, on one GPU, or on several when started with `accelerate
    launch` or torchrun; several machines share the folder, and only the first process writes to it.
    `run_dir` then holds metrics.csv, weight_flips.csv, attention_levels.csv and activation_shifts.csv (rewritten after
    each epoch; of a model that has such parts), latent_weights.csv and latent_layers.csv, weights.safetensors (for
    inference), predictions.safetensors (of these weights), weights_best.safetensors (with keep_best), run.json (written
    last) and checkpoint.safetensors (ignored by git). The caller's random state is kept.

    Args:
        config: the run.
        run_dir: made if needed. A folder that holds another run is refused and left alone.
        study, run_id: names in the record; by default none, and the folder's name.

    Raises:
        BinaryViTError: the data, teacher or model is not available; the folder holds another run, or a damaged
            checkpoint; another process trains in it; a machine does not see it; the loss is not finite.
    """
    run_dir = Path(run_dir)
    # The others wait while the first process of a machine prepares the data, which may take long.
    process = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=2))
    config = _with_compile(config, run_dir, process)
    check_launch(config, process)
    data = load_data_once_per_machine(config, process)
    key = RunKey(config=key_of(config), data=data.fingerprint, training_version=TRAINING_VERSION)
    if (record := _finished(run_dir, key, process)) is not None:
        return record
    if process.device.type == "cpu":
        if config.compile:
            require_compiler("compile: true on a CPU")
        keep_freed_memory()
    gpus = [process.device] if process.device.type == "cuda" else []
    with (
        told_of_killed_workers(),
        locked(run_dir, process),
        torch_threads(config.threads),
        scoped_random_state(),
        torch.random.fork_rng(gpus),
        chosen_numerics(),
    ):
        identity = {"configuration": key.config, "data": key.data, "training version": key.training_version}
        identity[PROCESSES] = config.processes
        with closing(Trainer(config, data, run_dir, identity, process)) as trainer:
            trainer.run()
            measured = _store_weights(trainer)
        if process.is_main_process:
            _record(trainer, key, measured, study, run_id or run_dir.resolve().name).write(run_dir)
        process.wait_for_everyone()
    return read_record(run_dir)


def _with_compile(config: TrainingConfig, run_dir: Path, process: PartialState) -> TrainingConfig:
    """The configuration with an open `compile` decided: as the run in the folder began, else by this machine."""
    compiled = None
    if config.compile is None and process.is_main_process:
        begun = stored_identity(run_dir / CHECKPOINT_FILE) or {}
        if (record := read_record(run_dir)) is not None:
            compiled = record.config.get("compile")
        elif begun:
            keys = {key_of(config.resolved(choice)): choice for choice in (False, True)}
            compiled = keys.get(begun.get("configuration"))
    [compiled] = broadcast_object_list([compiled])
    return config.resolved(compiled)


def _finished(run_dir: Path, key: RunKey, process: PartialState) -> RunRecord | None:
    """The record of a finished run as the first process sees it, so that either all processes go on or none."""
    [record] = broadcast_object_list([read_record(run_dir) if process.is_main_process else None])
    if record is None or record.key == key:
        return record
    changed = [name for name in RunKey.model_fields if getattr(record.key, name) != getattr(key, name)]
    raise BinaryViTError(
        f"{run_dir} holds a finished run that differs in its {' and '.join(changed)}; it is left as it is. Choose "
        "another folder, or move that one away."
    )


def _store_weights(trainer: Trainer) -> Evaluation:
    """Stores the trained model for inference, and measures what a reader of the file gets: in float32, not compiled."""
    if trainer.process.is_main_process:
        model = trainer.trained_model
        write_text_atomically(trainer.run_dir / HISTOGRAM_FILE, latent_histograms(model).to_csv(index=False))
        write_text_atomically(trainer.run_dir / LATENT_LAYERS_FILE, latent_layers(model).to_csv(index=False))
        store_weights(model, trainer.config, trainer.data.class_names, trainer.run_dir / WEIGHTS_FILE)
    trainer.process.wait_for_everyone()
    stored = load_inference_weights(trainer.run_dir / WEIGHTS_FILE).float().to(trainer.device)
    return trainer.evaluate(stored, "fp32")


def _record(trainer: Trainer, key: RunKey, measured: Evaluation, study: str, run_id: str) -> RunRecord:
    """The record of a finished run; `measured` is what its stored weights reach."""
    config, state, last = trainer.config, trainer.state, trainer.state["history"][-1]
    weights = trainer.run_dir / WEIGHTS_FILE
    places = {"data": without_place(config.data), "data_dir": None}
    places |= {name: (place := getattr(config, name)) and without_place(place) for name in ("teacher", "init_from")}
    return RunRecord(
        id=run_id,
        study=study,
        key=key,
        config=config.model_dump(mode="json") | places,
        git=_sources(state["sources"]),
        data=_data_record(trainer.data),
        packages=package_versions(),
        hardware=describe_hardware(trainer.device, native.compiled_by() if trainer.device.type == "cpu" else None),
        threads=torch.get_num_threads(),
        processes=config.processes,
        seed=config.seed,
        started=datetime.fromisoformat(state["started"]),
        duration_seconds=state["seconds"],
        result=RunResult(
            top1=last["top1"],
            top5=last["top5"],
            eval_loss=last["eval_loss"],
            epochs=config.epochs,
            images_per_second=sum(row["images_per_second"] for row in state["history"]) / len(state["history"]),
        ),
        weights=WeightsRecord(
            file=weights.name, bytes=weights.stat().st_size, dtype=config.weights_dtype, top1=measured.top1
        ),
        predictions=write_predictions(trainer.run_dir, measured.predicted.numpy(), trainer.data.eval.labels),
        best=_best_record(trainer) if config.keep_best else None,
        numerics=current_numerics(),
    )


def _best_record(trainer: Trainer) -> BestRecord | None:
    """None if `keep_best` was not set at the best epoch, so its weights were not kept."""
    best = best_epoch(trainer.state["history"])
    if trainer.state.get("kept_epoch") != best["epoch"]:
        return None
    return BestRecord(file=BEST_WEIGHTS_FILE, epoch=best["epoch"], top1=best["top1"])


def _sources(states: list[dict]) -> GitState:
    """The code a run was trained with: what each start found, not what is there now."""
    first, *others = states
    dirty = [state["dirty"] for state in states]
    resumed_at = [state["commit"] for state in others if state["commit"] != first["commit"]]
    return GitState(commit=first["commit"], dirty=None if None in dirty else any(dirty), resumed_at=resumed_at)


def _data_record(data: Data) -> DataRecord:
    (train_split, train_images), (eval_split, eval_images) = data.splits["train"], data.splits["eval"]
    return DataRecord(
        name=data.name,
        label=data.label,
        source=data.source,
        fingerprint=data.fingerprint,
        train_split=train_split,
        eval_split=eval_split,
        train_images=train_images,
        eval_images=eval_images,
        num_classes=data.num_classes,
    )
