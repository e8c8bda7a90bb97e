"""A study file resolves to exactly the configurations it says, and the state of each run has its reason."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from helpers.places import ROOT
from helpers.records import FINGERPRINT, record_of

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold
from binaryvit.models.ladder import LADDER
from binaryvit.records.run_record import LOCK_FILE, TRAINING_VERSION, Failure, RunKey
from binaryvit.studies.states import plan
from binaryvit.studies.study import State, load_study
from binaryvit.training.build import create_model
from binaryvit.training.checkpoint import CHECKPOINT_FILE, save_state
from binaryvit.training.teacher import identity, run_identity

RESULTS = ROOT / "results"

TINY = """
name: tiny
title: A tiny study
recipe: {epochs: 2, learning_rate: 1e-3}
teacher: {variant: deit_micro_patch4_32, seed: 7, recipe: {epochs: 6, mixup_alpha: 0.0}}
variants:
  - reactdeit_micro_patch4_32
  - {variant: binaryvit_micro_patch2_32, label: BinaryViT, recipe: {epochs: 3}}
controls:
  - {variant: binaryvit_micro_patch2_32, id: w1a32, recipe: {model_args: {activation_bits: 32}}}
seeds: [0, 1]
"""


@pytest.fixture
def write(tmp_path):
    def write(text=TINY):
        (tmp_path / "study.yaml").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def study(write):
    return load_study(write())


def finish(study, *runs, **changes):
    for run in runs or study.runs:
        record_of(study, run, **changes).write(run.folder)


def test_controls_are_no_steps_of_the_ladder(study):
    assert [run.id for run in study.ladder] == [run.id for run in study.runs if "w1a32" not in run.id]
    assert {run.bits for run in study.ladder} == {(1, 1)} and study.runs[-1].bits == (1, 32)


def states(study, fingerprint=None):
    return [run.state for run in plan(study, fingerprint)]


def test_rows_resolve_teacher_first_then_seed_by_seed(study):
    assert [run.id for run in study.runs] == [
        "deit_micro_patch4_32-seed7",
        *(f"{name}-seed{s}" for s in (0, 1) for name in ("reactdeit_micro_patch4_32", "binaryvit_micro_patch2_32")),
        *(f"w1a32-seed{s}" for s in (0, 1)),
    ]
    rows = (*study.runs[:3], study.runs[5])
    teacher, first, pyramid, precise = (run.config for run in rows)
    assert teacher == TrainingConfig.for_teacher(
        variant="deit_micro_patch4_32", epochs=6, learning_rate=1e-3, seed=7, mixup_alpha=0.0
    )
    shared = {"learning_rate": 1e-3, "teacher": "runs/deit_micro_patch4_32-seed7"}
    assert first == TrainingConfig.for_student(variant="reactdeit_micro_patch4_32", epochs=2, **shared)
    assert pyramid == TrainingConfig.for_student(variant="binaryvit_micro_patch2_32", epochs=3, **shared)
    assert (precise.model_args, precise.epochs, precise.teacher) == ({"activation_bits": 32}, 2, shared["teacher"])
    assert [run.label for run in rows] == [
        "deit_micro_patch4_32",
        "reactdeit_micro_patch4_32",
        "BinaryViT",
        "w1a32",
    ]


def test_a_row_has_its_own_seeds_and_may_learn_from_labels(write):
    text = TINY.replace("id: w1a32,", "id: w1a32, seeds: [0, 2], teacher: none,")
    study = load_study(write(text.replace("label: BinaryViT,", "seeds: [0, 1, 4],") + "notebooks: first_seed\n"))
    baseline, pyramid = "reactdeit_micro_patch4_32", "binaryvit_micro_patch2_32"
    assert [run.id.split("-seed") for run in study.runs[1:]] == [
        *([baseline, "0"], [pyramid, "0"], [baseline, "1"], [pyramid, "1"], [pyramid, "4"]),
        *(["w1a32", "0"], ["w1a32", "2"]),
    ]
    assert [(run.teacher_id, run.config.teacher) for run in study.runs if run.is_control] == [(None, None)] * 2
    assert {run.config.seed for run in study.runs if run.has_notebook} == {7, 0}


def test_without_a_teacher_students_learn_from_labels_or_from_one_outside(write, tmp_path):
    text = "name: n\ntitle: t\nvariants: [binaryvit_micro_patch2_32]\n"
    assert load_study(write(text)).runs[0].config.teacher is None
    outside = load_study(write(text + "recipe: {teacher: ../best.safetensors}"), output=tmp_path / "out" / "deep")
    assert outside.runs[0].config.teacher == "../../../best.safetensors"
    assert (
        load_study(write(text + "recipe: {teacher: 'timm:deit_tiny_patch16_224'}")).runs[0].config.teacher[:5]
        == "timm:"
    )


def test_a_row_that_learns_from_labels_leaves_out_the_teachers_variant(write):
    outside = "recipe: {epochs: 2, teacher: old.pth, teacher_variant: deit_small_patch16_224}"
    text = re.sub("teacher: .*\n", "", TINY).replace("recipe: {epochs: 2, learning_rate: 1e-3}", outside)
    study = load_study(write(text.replace("id: w1a32,", "id: w1a32, teacher: none,")))
    taught, alone = study.runs[0].config, study.runs[-1].config
    assert (taught.teacher, taught.teacher_variant) == ("old.pth", "deit_small_patch16_224")
    assert (alone.teacher, alone.teacher_variant) == (None, None)


def test_the_command_line_changes_places_and_speed_but_no_numbers(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = load_study(write())
    study = load_study(write(), output="out", data_dir="photos", data_label="mine", workers=3, threads=2)
    config = study.runs[1].config
    assert (config.data_dir, config.data_label, config.workers, config.threads) == ("../photos", "mine", 3, 2)
    assert study.data_config.data_dir == "photos" and study.runs[1].folder.parent == Path("out/runs")
    assert load_study(write(), data_dir="~/photos").data_dir == Path.home() / "photos"
    assert [run.config.key("t") for run in study.runs] == [run.config.key("t") for run in plain.runs]
    with pytest.raises(BinaryViTError, match="epochs would change"):
        load_study(write(), epochs=1)


def test_places_are_seen_from_an_output_that_lies_behind_a_link(write, tmp_path, monkeypatch):
    """Runs work in the output folder, where `..` is the parent of what the link leads to."""
    far = tmp_path / "another" / "disk"
    far.mkdir(parents=True)
    (tmp_path / "runs").symlink_to(far)
    (tmp_path / "photos").mkdir()
    (tmp_path / "start.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    text = TINY.replace("{epochs: 2,", "{init_from: start.safetensors, epochs: 2,", 1)
    study = load_study(write(text), output="runs/tiny", data_dir="photos")
    study.output.mkdir()
    monkeypatch.chdir(study.output)
    assert Path(study.runs[1].config.data_dir).is_dir() and Path(study.runs[1].config.init_from).is_file()


def test_runs_are_given_the_folder_that_their_data_are_here(write, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    text = TINY.replace("name: tiny", "name: tiny\ndata: photos")
    here = load_study(write(text), output=tmp_path / "out").runs[0].config
    assert (here.data, here.data_dir) == ("photos", "../photos")
    monkeypatch.chdir(tmp_path.parent)
    assert load_study(write(text)).runs[0].config.data_dir is None, "where there is none, it is a name on the hub"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("title:", "titel:"), ["titel is no entry", "'title'", "title is missing"]),
        (("seeds: [0, 1]", "seeds: [zero]"), ["seeds.0='zero'"]),
        (("seeds: [0, 1]", "seeds: [1, 1]"), ["seed appears twice"]),
        (("id: w1a32, ", ""), ["id appears twice"]),
        (("id: w1a32, ", "id: w1a32, seeds: [3, 3], "), ["seed appears twice among [3, 3]"]),
        (("id: w1a32, ", "id: w1a32, teacher: nobody, "), ["controls.0.teacher='nobody'", "'none'"]),
        (("label: BinaryViT", "lable: BinaryViT"), ["lable is no entry", "'label'"]),
        (("name: tiny", "name: ../tiny"), ["name='../tiny'"]),
        (("epochs: 2", "epoch: 2"), ["'epoch'", "did you mean 'epochs'"]),
        (("epochs: 3", "epochs: -3"), ["binaryvit_micro_patch2_32: epochs=-3"]),
        (("epochs: 3", "data: x"), ["data in the recipe of binaryvit_micro_patch2_32", "once for the whole study"]),
        (("epochs: 2", "seed: 2"), ["seed in the recipe is misplaced", "in seeds"]),
        (("epochs: 2", "data_dir: x"), ["--data-dir"]),
        (("name: tiny", "name: tiny\ndata: ./images"), ["data: ./images is a place on one machine", "--data-dir"]),
        (("epochs: 2", "teacher: x"), ["teacher in the recipe is misplaced"]),
        (("reactdeit_micro", "reactdeti_micro"), ["did you mean 'reactdeit_micro_patch4_32'"]),
        (("epochs: 2", "epochs: 2, epochs: 4"), ["twice"]),
        (("title: A tiny study", "title: !!python/object/apply:os.system [exit]"), ["not valid YAML"]),
    ],
)
def test_mistakes_in_the_file_are_sentences(write, change, words):
    with pytest.raises(BinaryViTError) as error:
        load_study(write(TINY.replace(*change, 1)))
    for word in ["study.yaml", *words]:
        assert word in str(error.value)


def test_what_is_not_there_is_missing_and_an_unfinished_folder_goes_on(study):
    assert set(states(study)) == {State.MISSING}
    study.runs[0].folder.mkdir(parents=True)
    assert "goes on from its last checkpoint" in plan(study)[0].reason


@pytest.mark.parametrize("compiled", [False, True])
def test_a_study_that_leaves_compile_open_takes_runs_of_either_kind(compiled, write, study):
    """As when it was trained on a GPU, and is looked at without one."""
    chosen = load_study(write(TINY.replace("{epochs: 2,", f"{{compile: {compiled}, epochs: 2,", 1)))
    finish(chosen)
    assert states(study) == states(load_study(write(TINY))) == [State.DONE] * len(study.runs)
    other = load_study(write(TINY.replace("{epochs: 2,", f"{{compile: {not compiled}, epochs: 2,", 1)))
    assert f"compile was {compiled} and is {not compiled}" in plan(other)[1].reason


def test_a_rows_own_teacher_is_seen_from_the_study_file(write, tmp_path):
    text = re.sub("teacher: .*\n", "", TINY).replace("{epochs: 3}", "{epochs: 3, teacher: old/teacher}")
    study = load_study(write(text), output=tmp_path / "out")
    assert [run.config.teacher for run in study.runs[:2]] == [None, "../old/teacher"]


def test_starting_weights_are_seen_from_the_study_file_and_known_by_their_content(write, tmp_path):
    (tmp_path / "start.safetensors").write_bytes(b"weights")
    text = TINY.replace("{epochs: 2,", "{init_from: start.safetensors, epochs: 2,", 1)
    study = load_study(write(text), output=tmp_path / "out")
    assert study.runs[1].config.init_from == "../start.safetensors"
    content = identity(str(tmp_path / "start.safetensors"))
    teacher = RunKey(
        config=study.runs[0].config.key(None, content), data=FINGERPRINT, training_version=TRAINING_VERSION
    )
    plain = load_study(write(TINY), output=tmp_path / "out")
    record = record_of(plain, plain.runs[1])
    key = teacher.model_copy(update={"config": study.runs[1].config.key(run_identity(teacher), content)})
    config = study.runs[1].config.resolved().model_dump(mode="json")
    record.model_copy(update={"key": key, "config": config}).write(study.runs[1].folder)
    assert plan(study)[1].state is State.DONE
    (tmp_path / "start.safetensors").write_bytes(b"other weights")
    assert "its teacher or init_from was another one" in plan(study)[1].reason


def test_finished_runs_are_done_without_the_data_at_hand(study):
    finish(study)
    planned = plan(study)
    assert {run.state for run in planned} == {State.DONE}
    assert "55.50%" in planned[0].reason and "data not checked" in planned[0].reason
    assert "not checked" not in plan(study, FINGERPRINT)[0].reason


def test_a_changed_configuration_is_stale_and_says_what_changed(study, write):
    finish(study)
    changed = plan(load_study(write(TINY.replace("epochs: 3", "epochs: 4"))))
    assert [run.id for run in changed if run.state is not State.DONE] == [
        "binaryvit_micro_patch2_32-seed0",
        "binaryvit_micro_patch2_32-seed1",
    ]
    assert changed[2].state is State.STALE and "epochs was 3 and is 4" in changed[2].reason


def test_a_changed_teacher_makes_its_students_stale(study, write):
    finish(study)
    changed = plan(load_study(write(TINY.replace("epochs: 6", "epochs: 7"))))
    assert {run.state for run in changed} == {State.STALE}
    assert "its teacher deit_micro_patch4_32-seed7 is stale" in changed[1].reason


def test_students_of_another_teacher_are_stale_after_the_teacher_was_trained_anew(study, write):
    finish(study)
    other = load_study(write(TINY.replace("epochs: 6", "epochs: 7")))
    finish(other, other.runs[0])
    changed = plan(other)
    assert changed[0].state is State.DONE
    assert changed[1].state is State.STALE and "its teacher was another one" in changed[1].reason


def test_other_data_are_stale_with_and_without_the_data_at_hand(study):
    finish(study)
    assert {(run.state, "not those at hand" in run.reason) for run in plan(study, "e" * 64)} == {(State.STALE, True)}
    finish(study, study.runs[2], fingerprint="e" * 64)
    changed = plan(study)
    assert [run.state is State.STALE for run in changed] == [False, False, True, *[False] * 4]
    assert "not those of the study's other runs" in changed[2].reason


def test_other_training_code_is_stale(study):
    finish(study)
    finish(study, study.runs[1], training_version=TRAINING_VERSION - 1)
    changed = plan(study)[1]
    assert changed.state is State.STALE
    assert f"was version {TRAINING_VERSION - 1} and is {TRAINING_VERSION}" in changed.reason


def test_a_record_whose_key_was_edited_is_stale(study):
    finish(study)
    record = record_of(study, study.runs[0])
    record.model_copy(update={"key": record.key.model_copy(update={"config": "0" * 64})}).write(study.runs[0].folder)
    assert "changed by hand" in plan(study)[0].reason


def test_a_damaged_record_does_not_hide_the_other_runs(study):
    finish(study)
    (study.runs[1].folder / "run.json").write_text("{")
    planned = plan(study)
    assert planned[1].state is State.STALE and "run.json is not a run record" in planned[1].reason
    assert {run.state for run in (planned[0], *planned[2:])} == {State.DONE}


def test_an_unfinished_run_of_another_configuration_is_stale(study, write):
    run = study.runs[1]
    key = record_of(study, run).key
    identity = {"configuration": key.config, "data": key.data, "training version": key.training_version}
    save_state(run.folder / CHECKPOINT_FILE, {"weight": torch.zeros(2)}, {"identity": identity})
    assert plan(study)[1].state is State.MISSING and plan(study, FINGERPRINT)[1].state is State.MISSING
    assert "data are others" in plan(study, "e" * 64)[1].reason
    changed = plan(load_study(write(TINY.replace("epochs: 2", "epochs: 4"))))[1]
    assert (changed.state, changed.reason) == (
        State.STALE,
        "it was interrupted, and its configuration or its teacher's has changed",
    )
    (run.folder / CHECKPOINT_FILE).write_bytes(b"no checkpoint")  # which training refuses by name
    assert plan(study)[1].state is State.MISSING


def test_failed_and_running_runs_say_so(study):
    Failure(error="The loss is not finite.", time=datetime.now(UTC)).write(study.runs[0].folder)
    assert (plan(study)[0].state, plan(study)[0].reason) == (State.FAILED, "The loss is not finite.")
    with hold(study.runs[0].lock) as descriptor:
        assert descriptor is not None and plan(study)[0].state is State.RUNNING
        with hold(study.runs[0].lock) as second:
            assert second is None
    assert plan(study)[0].state is State.FAILED and not study.runs[0].lock.exists()
    with hold(study.runs[0].folder / LOCK_FILE):  # training's own lock, whoever started it
        assert plan(study)[0].state is State.RUNNING


@pytest.mark.parametrize("name", ["smoke", "cifar10", "tiny-imagenet", "paper"])
def test_the_committed_studies_resolve_to_the_whole_ladder(name):
    study = load_study(RESULTS / name)
    teacher, *students = LADDER["small" if name == "paper" else "micro"]
    seeds = {"smoke": 1, "paper": 1}.get(name, 3)
    assert study.name == name
    assert [run.config.variant for run in study.ladder] == [teacher, *(seeds * students)]
    assert study.runs[: len(study.ladder)] == study.ladder
    controls = study.runs[len(study.ladder) :]
    assert {run.bits for run in controls} >= ({(1, 32), (32, 1), (32, 32)} if name == "cifar10" else set())
    assert {run.teacher_id for run in study.runs[1:] if run.teacher_id} == {study.runs[0].id}
    text = (RESULTS / name / "study.yaml").read_text()
    assert text.startswith("#") and f"binaryvit reproduce results/{name}/study.yaml" in text


def test_the_recipe_is_chosen_on_images_held_out_of_training():
    trials = load_study(RESULTS / "recipe").runs
    assert {(run.config.holdout_images, run.config.train_split, run.config.eval_split) for run in trials} == {
        (5000, "train", None)
    }
    assert len({run.config.key() for run in trials}) == len(trials) == 9


def test_models_of_64_pixels_keep_the_grids_of_their_variants():
    def grids(config):
        return [stage.grid_size for stage in create_model(config, 200).stages]

    _, *students = (run.config for run in load_study(RESULTS / "tiny-imagenet").runs if run.config.seed == 0)
    for config in students:
        assert config.image_size == 64 and grids(config) == grids(TrainingConfig(variant=config.variant))


# Section 5 of the method, written out again: what the training recipe of the paper study must come to.
BOTH = {
    "data": "ILSVRC/imagenet-1k",
    "train_split": "train",
    "eval_split": "validation",
    "max_train_images": None,
    "max_eval_images": None,
    "image_size": 224,
    "epochs": 300,
    "batch_size": 512,
    "processes": 8,
    "accumulation_steps": 1,
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "learning_rate_batch": 512,
    "min_learning_rate": 1e-5,
    "schedule_every": "epoch",
    "clip_grad_norm": None,
    "ema_decay": None,
    "crop_scale": (0.08, 1.0),
    "horizontal_flip": 0.5,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "precision": "fp16",
    "model_args": {},
    "distillation_weight": 0.9,
    "holdout_images": None,
    "init_from": None,
    "latent_scale": 1.0,
    "eval_crop": 224 / 256,
    "seed": 0,
}
STUDENT = BOTH | {
    "teacher": "runs/deit_small_patch16_224-seed0",
    "weight_decay": 0.0,
    "warmup_epochs": 0,
    "label_smoothing": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "color_jitter": None,
    "auto_augment": None,
    "random_erasing": 0.0,
    "repeated_augmentation": 1,
    "drop_path": 0.0,
}
TEACHER = BOTH | {
    "teacher": None,
    "weight_decay": 0.05,
    "warmup_epochs": 5,
    "warmup_learning_rate": 1e-6,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "color_jitter": 0.4,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "repeated_augmentation": 3,
    "drop_path": 0.1,
}


def test_the_paper_study_resolves_to_every_number_of_the_paper():
    runs = load_study(RESULTS / "paper").runs
    for run, expected in zip(runs, [TEACHER] + [STUDENT] * 6, strict=True):
        assert {name: getattr(run.config, name) for name in expected} == expected, run.id
        assert run.config.batch_size // run.config.processes == 64
        assert run.config.peak_learning_rate == 5e-4
    # A new field of the configuration must be judged here too.
    judged = STUDENT.keys() | TEACHER.keys() | {"variant", "data_dir", "data_label", "teacher_variant", "data_config"}
    judged |= {"image_column", "label_column", "warmup_learning_rate", "compile", "workers", "threads"}
    assert set(TrainingConfig.model_fields) == judged | {"checkpoint_minutes", "keep_best", "weights_dtype"}
