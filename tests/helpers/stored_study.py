"""A small study with finished runs, made without training: models of random weights, and their hand-made records."""

from pathlib import Path

import timm
from helpers.records import record_of

from binaryvit.analysis.stored import StoredRun
from binaryvit.data.data_set import load_data
from binaryvit.models.weights_file import save_inference_weights
from binaryvit.studies.study import Study, load_study
from binaryvit.training.build import model_arguments

STUDY = """
name: small
title: A small study
recipe: {image_size: 16, eval_crop: 1.0, epochs: 6}
teacher: {variant: deit_micro_patch4_32, recipe: {model_args: {embed_dim: 24, depth: 2}}}
variants:
  - {variant: reactdeit_micro_patch4_32, recipe: {model_args: {embed_dims: 24, depths: 2}}}
  - {variant: binaryvit_micro_patch2_32, recipe: {model_args: {embed_dims: [8, 16, 32]}}}
"""


def stored_study(folder: Path, file: str = STUDY) -> Study:
    """A study on the digits in `folder` whose runs are all finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(file)
    study = load_study(folder)
    fingerprint = load_data(study.data_config).fingerprint
    for run in study.runs:
        store(study, run, fingerprint)
    return study


def switch_off(run: StoredRun, stage: int, block: int, level: float = -1.0) -> None:
    """Stores the run's weights as if training had driven the attention level of a block below zero."""
    model = run.model()
    model.stages[stage].blocks[block].attn.binarize_attn.level.data.fill_(level)
    save_inference_weights(model, run.weights, run.variant, model_arguments(run.config, 10))


def store(study: Study, run, fingerprint: str) -> None:
    """Weights and record of one run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    arguments = model_arguments(run.config, 10)
    model = timm.create_model(run.config.variant, **arguments)
    save_inference_weights(model, run.folder / "weights.safetensors", run.config.variant, arguments)
    record_of(study, run, fingerprint).write(run.folder)
