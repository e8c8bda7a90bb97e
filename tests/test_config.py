"""The configuration refuses what is wrong before anything starts, and its key is the content of a run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binaryvit.config import NOT_IN_KEY, RECIPES, TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.yaml_file import read_yaml

VIT = {"variant": "vit_tiny_patch16_224"}


def test_defaults_are_the_papers_student_recipe():
    config = TrainingConfig.for_student(**VIT)
    assert (config.batch_size, config.epochs, config.weight_decay) == (512, 300, 0)
    assert (config.peak_learning_rate, config.min_learning_rate, config.warmup_epochs) == (5e-4, 1e-5, 0)
    assert (config.schedule_every, config.optimizer, config.distillation_weight) == ("epoch", "adamw", 0.9)
    assert (config.crop_scale, config.horizontal_flip, config.eval_crop) == ((0.08, 1), 0.5, 224 / 256)
    augmentation = (config.color_jitter, config.auto_augment, config.random_erasing, config.repeated_augmentation)
    assert augmentation == (None, None, 0, 1) and not config.mixing
    assert (config.label_smoothing, config.dropout, config.attention_dropout, config.drop_path) == (0, 0, 0, 0)


def test_teacher_recipe():
    config = TrainingConfig.for_teacher(**VIT)
    assert (config.batch_size, config.epochs, config.weight_decay) == (512, 300, 0.05)
    assert (config.peak_learning_rate, config.warmup_epochs, config.warmup_learning_rate) == (5e-4, 5, 1e-6)
    assert (config.label_smoothing, config.mixup_alpha, config.cutmix_alpha) == (0.1, 0.8, 1.0)
    assert (config.auto_augment, config.color_jitter, config.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.4, 0.25)
    assert config.repeated_augmentation > 1 and config.drop_path == 0.1 and config.dropout == 0


def test_learning_rate_scales_with_the_effective_batch():
    assert TrainingConfig(**VIT, batch_size=1024).peak_learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learning_rat": 0.1}, "'learning_rat' is not a setting of a training run: did you mean 'learning_rate'?"),
        ({"zzzzzz": 0.1}, "'zzzzzz' is not a setting of a training run."),
        ({"epochs": "3"}, "epochs='3'"),
        ({"epochs": 3.0}, "epochs=3.0"),
        ({"epochs": True}, "epochs=True"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"precision": "bf61"}, "did you mean 'bf16'?"),
        ({"variant": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'?"),
        ({"teacher": "x", "teacher_variant": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'?"),
        ({"batch_size": 10, "accumulation_steps": 2, "processes": 2}, "multiple of 4"),
        ({"batch_size": 6, "accumulation_steps": 2, "mixup_alpha": 1.0, "min_learning_rate": 0.0}, "multiple of 4"),
        ({"warmup_epochs": 3, "epochs": 3}, "warmup_epochs=3"),
        ({"min_learning_rate": 1e-3}, "min_learning_rate=0.001"),
        ({"warmup_epochs": 1, "warmup_learning_rate": 1e-2}, "warmup_learning_rate=0.01"),
        ({"crop_scale": [0.5, 0.4]}, "crop_scale=(0.5, 0.4)"),
        ({"crop_scale": [0.5]}, "crop_scale"),
        ({"crop_scale": [0.5, "1"]}, "crop_scale.1='1'"),
        ({"repeated_augmentation": 0}, "repeated_augmentation=0"),
        ({"auto_augment": "rnd-m9"}, "rand-m9-mstd0.5-inc1"),
        ({"teacher_variant": "vit_tiny_patch16_224"}, "without a teacher"),
        ({"teacher": "timm:vit_tiny_patch16_224", "teacher_variant": "vit_tiny_patch16_224"}, "names its model"),
        ({"teacher": "x", "label_smoothing": 0.1}, "label_smoothing=0.1 would do nothing"),
        ({"train_split": "a", "eval_split": "a"}, "never trained on"),
        ({"model_args": {"depth": object()}}, "model_args.depth"),
        ({"model_args": {"embed_dim": [[192]]}}, "model_args.embed_dim is [[192]]"),
        ({"model_args": {"in_chans": 1}}, "images are RGB"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_refused(fields, words):
    with pytest.raises(BinaryViTError) as error:
        TrainingConfig(**{**VIT, **fields})
    assert words in str(error.value)
    assert all(line.endswith((".", "?")) for line in str(error.value).splitlines())


def test_every_problem_is_named_at_once():
    with pytest.raises(BinaryViTError) as error:
        TrainingConfig(epochs=-1, batch_size="many", learning_rat=1.0)
    assert [line for line in str(error.value).splitlines() if "variant" in line] == [
        "The setting 'variant' is missing."
    ]
    assert len(str(error.value).splitlines()) == 4


def test_key_ignores_where_and_how_fast_and_sees_all_else():
    base = TrainingConfig(**VIT)
    elsewhere = {"data_dir": "d", "data_label": "l", "workers": 3, "threads": 2, "checkpoint_minutes": 1.0}
    elsewhere |= {"keep_best": True}
    assert set(elsewhere) == NOT_IN_KEY - {"teacher", "init_from"}
    assert TrainingConfig(**VIT, **elsewhere).key() == base.key()
    changed = {
        "variant": "vit_small_patch16_224", "model_args": {"depth": 1}, "image_size": 32, "data": "x",
        "data_config": "c", "image_column": "i", "label_column": "l", "train_split": "t", "eval_split": "e",
        "max_train_images": 5, "max_eval_images": 5, "distillation_weight": 0.5, "seed": 1,
        "epochs": 2, "batch_size": 64, "accumulation_steps": 2, "learning_rate": 1e-3, "learning_rate_batch": 256,
        "min_learning_rate": 0.0, "warmup_epochs": 1, "warmup_learning_rate": 0.0, "schedule_every": "step",
        "weight_decay": 0.1, "clip_grad_norm": 1.0, "ema_decay": 0.9, "label_smoothing": 0.1, "mixup_alpha": 0.1,
        "cutmix_alpha": 0.1, "crop_scale": (0.5, 1.0), "horizontal_flip": 0.0, "color_jitter": 0.1,
        "auto_augment": "rand-m5", "random_erasing": 0.1, "repeated_augmentation": 2, "eval_crop": 1.0,
        "dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.1, "precision": "bf16", "compile": True,
        "holdout_images": 5, "latent_scale": 0.5, "processes": 2, "weights_dtype": "float16",
    }  # fmt: skip
    keys = {name: TrainingConfig(**{**VIT, name: value}).key() for name, value in changed.items()}
    assert len({base.key(), *keys.values()}) == len(keys) + 1
    # Only settings with a single legal value, or with no meaning without a teacher, are left out.
    assert set(TrainingConfig.model_fields) - set(changed) - NOT_IN_KEY == {"optimizer", "teacher_variant"}


def test_a_setting_that_came_later_leaves_the_keys_of_earlier_runs_alone():
    """Settings at their default are left out, so the key of this configuration stays as it was with fewer settings."""
    config = TrainingConfig(**VIT, compile=False)
    assert config.key() == "d0dfda9674738f41c73a5564d12fc6e08b637d2bbd67738daca0e07ef93a5339"


def test_key_holds_the_teachers_content_not_its_place():
    here, there = (TrainingConfig(**VIT, teacher=place) for place in ("a/run", "b/run"))
    assert here.key("same") == there.key("same") != here.key("other")
    here, there = (TrainingConfig(**VIT, init_from=place) for place in ("a/run", "b/run"))
    assert here.key(None, "same") == there.key(None, "same") != here.key(None, "other")
    with pytest.raises(ValueError, match="needs the identity"):
        here.key()


def test_an_open_compile_counts_as_what_it_is_here(monkeypatch):
    config = TrainingConfig(**VIT)
    for here in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda here=here: here)
        assert config.resolved().compile is here and config.key() == TrainingConfig(**VIT, compile=here).key()
        assert config.resolved(not here).compile is not here
        assert TrainingConfig(**VIT, compile=not here).resolved(here).compile is not here


def test_held_out_images_are_instead_of_an_evaluation_split():
    with pytest.raises(BinaryViTError, match="leave eval_split and max_eval_images out"):
        TrainingConfig(**VIT, holdout_images=10, max_eval_images=5)


@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-4, 1.0),
    low=st.floats(0.01, 1.0),
    args=st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.lists(st.booleans())),
)
def test_survives_json_with_the_same_key(seed, rate, low, args):
    config = TrainingConfig(**VIT, seed=seed, learning_rate=rate, crop_scale=(low, 1.0), model_args=args)
    again = TrainingConfig(**json.loads(config.model_dump_json()))
    assert again == config and again.key() == config.key()


def test_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("variant: vit_tiny_patch16_224\nrecipe: teacher\nlearning_rate: 1e-3\nmodel_args: {drop: 5E-1}\n")
    config = TrainingConfig.from_yaml(path)
    assert config == TrainingConfig.for_teacher(**VIT, learning_rate=1e-3, model_args={"drop": 0.5})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("variant: a\nvariant: b\n", "given twice"),
        ("[1, 2]", "name: value"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("variant: vit_tiny_patch16_224\nrecipe: treacher\n", "'treacher' does not exist"),
        ("variant: vit_tiny_patch16_224\nepochs: -1\n", "run.yaml: epochs=-1"),
    ],
)
def test_bad_yaml(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(BinaryViTError, match=words):
        TrainingConfig.from_yaml(path)


def test_missing_yaml(tmp_path):
    with pytest.raises(BinaryViTError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_recipes_hold_only_fields():
    for recipe in RECIPES.values():
        assert set(recipe) <= set(TrainingConfig.model_fields)


def test_a_key_does_not_hold_where_data_lie():
    here, there, other = (TrainingConfig(**VIT, data=f"/{place}").key() for place in ("a/photos", "b/photos", "b/x"))
    assert here == there != other
