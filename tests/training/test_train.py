"""Training does what the recipe says, and says what went wrong."""

import dataclasses
import functools
import json
import math
import re
import shutil
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import PartialState
from helpers.places import TESTS
from helpers.small_models import resampled
from helpers.training_setup import PYRAMID, TIMING, VIT, student, teacher, write_teacher
from PIL import Image
from safetensors.numpy import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from binaryvit.cli import main
from binaryvit.data.batches import ToDevice, eval_loader
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import binary_layers
from binaryvit.models.weights_file import load_inference_weights, read_weights_file, save_inference_weights
from binaryvit.records.predictions import read_predictions, write_predictions
from binaryvit.records.run_record import TRAINING_VERSION, read_metrics, read_record, read_table
from binaryvit.training import loop as trainer_module
from binaryvit.training.build import blocks_of, create_model
from binaryvit.training.checkpoint import CHECKPOINT_FILE, load_state, of_prefix
from binaryvit.training.evaluation import evaluate
from binaryvit.training.initialization import initialize
from binaryvit.training.loop import Trainer
from binaryvit.training.numerics import current_numerics
from binaryvit.training.step_log import StepLog
from binaryvit.training.stored import evaluate_stored
from binaryvit.training.tables import METRICS
from binaryvit.training.teacher import Teacher, identity, key_of, load_teacher, run_identity
from binaryvit.training.train import train_in_process as train

VERSIONS = TESTS / "training_version.json"


def make_trainer(config, folder) -> Trainer:
    return Trainer(config, load_data(config), Path(folder), {}, PartialState(cpu=True))


# --- the numbers of a run ---------------------------------------------------------------------------------------------


def in_float64(monkeypatch) -> None:
    """Lets training compute in float64, where rounding moves no sign and CPUs agree."""
    monkeypatch.setattr(trainer_module, "create_model", lambda *args: create_model(*args).double())
    monkeypatch.setattr(trainer_module, "load_teacher", lambda *args: load_teacher(*args).double())


def numbers_of(trainer: Trainer) -> dict[str, list[float]]:
    """What a run produced: its metrics, and the size of all its weights."""
    history = trainer.state["history"]
    measured = [name for name in METRICS if name not in TIMING and history[0][name] is not None]
    numbers = {name: [row[name] for row in history] for name in measured}
    weights = [value.abs().sum().item() for value in trainer.trained_model.state_dict().values()]
    return numbers | {"weights": [sum(weights)]}


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_numbers_change_only_with_the_training_version(kind, tmp_path, monkeypatch):
    """When this fails because the numbers changed on purpose: raise TRAINING_VERSION, and store the new numbers by
    deleting tests/training_version.json and running this test twice."""
    in_float64(monkeypatch)
    if kind == "student":
        weights = str(write_teacher(tmp_path / "teacher.safetensors"))
        config = student(teacher=weights, mixup_alpha=0.5, ema_decay=0.5, accumulation_steps=2, clip_grad_norm=1.0)
    else:
        config = teacher(drop_path=0.0)  # its random numbers differ between processor families
    run = make_trainer(config, tmp_path)
    run.run()
    stored = json.loads(VERSIONS.read_text()) if VERSIONS.exists() else {"version": TRAINING_VERSION}
    assert stored["version"] == TRAINING_VERSION, "TRAINING_VERSION was raised: store the new numbers (see above)"
    if kind not in stored:
        VERSIONS.write_text(json.dumps(stored | {kind: numbers_of(run)}, indent=1) + "\n")
        pytest.fail("the numbers were stored: run the test again")
    numbers = numbers_of(run)
    assert numbers.keys() == stored[kind].keys()
    for name, expected in stored[kind].items():
        assert numbers[name] == pytest.approx(expected, rel=1e-5), name


def test_learns(tmp_path):
    config = student(epochs=6, max_train_images=512, crop_scale=(0.8, 1.0), horizontal_flip=0.0, learning_rate=1e-2)
    result = train(config, tmp_path).result
    metrics = read_metrics(tmp_path)
    assert metrics["train_loss"].iloc[-1] < 0.9 * metrics["train_loss"].iloc[0]
    assert result.top1 > 25  # chance is 10


# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A student distilled from a teacher that is a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    train(teacher(weights_dtype="float16"), folder / "teacher")
    train(student(teacher=str(folder / "teacher")), folder / "student", study="a study", run_id="an id")
    return folder


def test_metrics(finished):
    metrics = read_metrics(finished / "student")
    assert tuple(metrics.columns) == METRICS and list(metrics["epoch"]) == [1, 2]
    assert metrics["train_loss"].equals(metrics["distillation_loss"]) and metrics["label_loss"].isna().all()
    assert metrics["top1"].between(0, 100).all() and (metrics["top5"] >= metrics["top1"]).all()
    assert metrics["train_top1"].between(0, 100).all() and (metrics["images_per_second"] > 0).all()
    low, peak = 1e-5, 4e-3
    assert list(metrics["lr"]) == pytest.approx([peak, low + (peak - low) / 2])
    metrics = read_metrics(finished / "teacher")
    assert metrics["train_loss"].equals(metrics["label_loss"]) and metrics["distillation_loss"].isna().all()
    assert metrics["train_top1"].isna().all() and metrics["flip_rate"].isna().all()


def test_record(finished):
    record = read_record(finished / "student")
    config = student(teacher=str(finished / "teacher"))
    assert (record.id, record.study, record.seed, record.processes, record.threads) == ("an id", "a study", 0, 1, 1)
    assert record.key.config == key_of(config) and record.key.training_version == TRAINING_VERSION
    assert record.config["teacher"] == "teacher" and record.config["epochs"] == 2
    assert record.config["compile"] == torch.cuda.is_available()  # what ran, where the configuration left it open
    assert (record.data.train_images, record.data.eval_images, record.data.num_classes) == (100, 50, 10)
    last = read_metrics(finished / "student").iloc[-1]
    assert (record.result.top1, record.result.eval_loss) == (last["top1"], last["eval_loss"])
    assert str(finished) not in (finished / "student" / "run.json").read_text()


def evaluated(data, config) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The evaluation images and labels as a model of 32 pixels sees them."""
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return list(map(ToDevice(mean, std, torch.device("cpu")), eval_loader(data, config, (3, 32, 32)).epoch()))


def test_stored_weights_give_the_recorded_accuracy(finished):
    for run, dtype in (("student", "float32"), ("teacher", "float16")):
        weights = read_record(finished / run).weights
        path = finished / run / weights.file
        assert weights.dtype == dtype and weights.bytes == path.stat().st_size
        data, config = load_data(student()), student()
        model = load_inference_weights(path).float()
        batches = evaluated(data, config)
        right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches)
        assert weights.top1 == pytest.approx(100 * right / 50)
    assert read_record(finished / "student").weights.top1 == read_record(finished / "student").result.top1


def test_flips_and_histograms_describe_the_latent_weights(tmp_path):
    run = make_trainer(student(), tmp_path)
    layers = {name: module for name, module in run.model.named_modules() if hasattr(module, "centred_weight")}
    before = {name: layer.centred_weight().detach() >= 0 for name, layer in layers.items()}
    run.run()
    after = {name: layer.centred_weight().detach() >= 0 for name, layer in layers.items()}
    first, last = run.state["history"]
    flips = pd.DataFrame(run.state["layers"]["weight_flips.csv"])
    assert set(flips["layer"]) == set(layers) and 0 < first["flip_rate"] < 1
    # The flips of both epochs bound those over the whole run from above, with the same parity.
    total = flips.groupby("layer")["flip_rate"].sum()
    for name in layers:
        size, net = before[name].numel(), int((before[name] != after[name]).sum())
        assert net <= round(total[name] * size) and (net - round(total[name] * size)) % 2 == 0
    sizes = pd.Series({name: layer.weight.numel() for name, layer in layers.items()})
    assert last["flip_rate"] == pytest.approx(
        (flips.set_index("layer")["flip_rate"][-len(sizes) :] * sizes).sum() / sizes.sum()
    )


def test_the_weights_name_their_classes_and_how_images_were_prepared(finished):
    record = read_record(finished / "student")
    description = read_weights_file(finished / "student" / "weights.safetensors").description
    assert description.class_names == tuple("0123456789")
    size = load_inference_weights(finished / "student" / "weights.safetensors").img_size
    assert description.preprocessing.input_size == (3, size, size)
    assert description.preprocessing.crop_pct == record.config["eval_crop"]


def test_levels_and_shifts_are_recorded_each_epoch(finished):
    model = load_inference_weights(finished / "student" / "weights.safetensors")
    modules = dict(model.named_modules())
    levels = {name: module.level.item() for name, module in modules.items() if hasattr(module, "level")}
    shifts = {name: module.shift.abs().mean().item() for name, module in modules.items() if hasattr(module, "shift")}
    for file, column, kept in (
        ("attention_levels.csv", "level", levels),
        ("activation_shifts.csv", "mean_absolute_shift", shifts),
    ):
        table = read_table(finished / "student", file)
        assert list(table["epoch"]) == [1] * len(kept) + [2] * len(kept) and len(kept) >= 2
        assert table[table["epoch"] == 2].set_index("layer")[column].to_dict() == pytest.approx(kept)
        assert not (finished / "teacher" / file).exists()


def test_a_level_that_falls_to_zero_is_said_once(tmp_path, capsys):
    run = make_trainer(student(epochs=2), tmp_path)
    with torch.no_grad():  # further from zero than training moves them
        run.model.stages[0].blocks[0].attn.binarize_attn.level.fill_(1.0)
        run.model.stages[1].blocks[0].attn.binarize_attn.level.fill_(-1.0)
    run.run()
    assert capsys.readouterr().out.count("attention level of stages.1.blocks.0.attn.binarize_attn has fallen") == 1
    assert [row["level"] < 0 for row in run.state["layers"]["attention_levels.csv"]] == [False, True] * 2
    resumed = make_trainer(student(epochs=3), tmp_path)
    assert resumed.state["epoch"] == 2
    resumed.run()
    assert "has fallen" not in capsys.readouterr().out


def test_predictions_are_those_of_the_stored_weights(finished):
    for run in ("student", "teacher"):
        record, table = read_record(finished / run), read_predictions(finished / run)
        assert list(table.columns) == ["predicted", "label"] and len(table) == 50
        assert 100 * (table["predicted"] == table["label"]).mean() == record.weights.top1
    model = load_inference_weights(finished / "teacher" / "weights.safetensors").float()
    images, labels = (torch.cat(parts) for parts in zip(*evaluated(load_data(teacher()), teacher()), strict=True))
    assert (
        table["predicted"].tolist() == model(images).argmax(1).tolist() and table["label"].tolist() == labels.tolist()
    )
    assert (finished / "teacher" / record.predictions.file).stat().st_size < 500


def test_predictions_of_many_classes_are_stored_as_they_are(tmp_path):
    many = np.array([0, 255, 256, 999])
    write_predictions(tmp_path, many, many[::-1])
    stored = load_file(tmp_path / "predictions.safetensors")
    assert stored["predicted"].tolist() == many.tolist() and stored["label"].tolist() == many[::-1].tolist()


def test_predictions_of_another_file_are_refused(finished, tmp_path):
    shutil.copytree(finished / "student", tmp_path / "run")
    file = tmp_path / "run" / "predictions.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for damaged, reason in ((bytes(content), "changed after"), (bytes(10_000), "is not what a run writes")):
        file.write_bytes(damaged)
        with pytest.raises(BinaryViTError, match=rf"predictions\.safetensors cannot be used: it (was )?{reason}"):
            read_predictions(tmp_path / "run")
    with pytest.raises(BinaryViTError, match="no predictions of a finished run"):
        read_predictions(tmp_path)


def test_numerics_are_chosen_recorded_and_given_back(finished, tmp_path, monkeypatch):
    before = current_numerics()
    during: dict = {}
    monkeypatch.setattr(Trainer, "run", lambda run: during.update(current_numerics()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(student(), tmp_path)
    assert current_numerics() == before
    assert during == read_record(finished / "student").numerics
    assert (during["cuda_matmul_tf32"], during["cudnn_tf32"], during["float32_matmul"]) == (False, False, "highest")


def test_latent_weights_start_at_a_fraction_of_pytorchs():
    plain, scaled = (create_model(student(latent_scale=scale), 10) for scale in (1.0, 0.25))
    binary = binary_layers(plain)
    for (name, weight), other in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        factor = 0.25 if name.removesuffix(".weight") in binary else 1.0
        assert torch.equal(factor * weight, other), name
    assert len(binary) > 5


def test_latent_weight_tables(finished):
    histograms, layers = (read_table(finished / "student", f"latent_{name}.csv") for name in ("weights", "layers"))
    counts = histograms.groupby("layer", sort=False)["count"].sum()
    assert list(counts) == list(layers["weights"]) and len(counts) > 5
    positive = histograms[histograms["bin_left"] >= 0].groupby("layer", sort=False)["count"].sum()
    assert list(positive / counts) == pytest.approx(list(layers["share_positive"]))
    assert layers["share_inside_window"].between(0.9, 1).all() and (layers["mean_scale"] > 0).all()


# --- loss, schedule, optimizer ----------------------------------------------------------------------------------------


def test_training_loss_is_the_recipes():
    logits, other = torch.randn(2, 4, 7, dtype=torch.float64)
    labels = torch.tensor([0, 3, 6, 2])
    probabilities = other.exp() / other.exp().sum(1, keepdim=True)
    log_softmax = logits - logits.exp().sum(1, keepdim=True).log()
    soft = -(probabilities * log_softmax).sum(1).mean()
    mixed = torch.rand(4, 7, dtype=torch.float64)
    mixed /= mixed.sum(1, keepdim=True)
    label = -(mixed * log_softmax).sum(1).mean()

    def loss(config, *args):
        return trainer_module.training_loss(config, logits, *args)

    distilled = loss(student(teacher="x"), labels, probabilities)
    assert distilled.total == pytest.approx(soft) and distilled.label is None
    both = loss(student(teacher="x", mixup_alpha=1.0), mixed, probabilities)
    assert both.total == pytest.approx(0.9 * soft + 0.1 * label)
    assert (both.distillation, both.label) == (pytest.approx(soft), pytest.approx(label))
    alone = loss(student(label_smoothing=0.1), labels)
    target = 0.9 * F.one_hot(labels, 7) + 0.1 / 7
    assert alone.total == pytest.approx(-(target * log_softmax).sum(1).mean()) and alone.distillation is None
    assert loss(student(mixup_alpha=1.0), mixed).total == pytest.approx(label)


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_learning_rate_follows_the_formula(every, tmp_path):
    config = teacher(epochs=10, warmup_epochs=3, schedule_every=every, min_learning_rate=1e-4)
    run = make_trainer(config, tmp_path)
    for epoch in range(10):
        for step in range(run.steps):
            t = epoch + step / run.steps if every == "step" else epoch
            cosine = 1e-4 + (4e-3 - 1e-4) * (1 + math.cos(math.pi * t / 10)) / 2
            warm = 1e-6 + t / 3 * (4e-3 - 1e-6)
            assert run.learning_rate.set(epoch, step) == pytest.approx(warm if t < 3 else cosine)
            assert {group["lr"] for group in run.optimizer.param_groups} == {run.learning_rate.set(epoch, step)}


def test_weight_decay_spares_vectors_and_embeddings(tmp_path):
    run = make_trainer(student(weight_decay=0.05), tmp_path)
    decayed = {id(p) for group in run.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1 and "pos_embed" not in name), name


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    """For a model without batch norm; the random order of an epoch does not depend on the split."""
    runs = [
        make_trainer(teacher(mixup_alpha=0.0, cutmix_alpha=0.0, drop_path=0.0, accumulation_steps=n), tmp_path)
        for n in (1, 4)
    ]
    for run in runs:
        run.learning_rate.set(1, 0)
        run._step(0, 0, run.train_loader.epoch())
    [[one], [other]] = (run.log.exchange([False], at_once=True)[0] for run in runs)
    assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.rows == other.rows and len(one.rows) == 32
    moments = [run.optimizer.state_dict()["state"] for run in runs]
    for number, state in moments[0].items():
        torch.testing.assert_close(state["exp_avg"], moments[1][number]["exp_avg"], rtol=1e-3, atol=1e-6)


def test_moving_average_is_what_is_kept(tmp_path):
    run = make_trainer(student(ema_decay=0.75), tmp_path)
    start = run.model.head.weight.detach().clone()
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    torch.testing.assert_close(run.trained_model.head.weight, 0.75 * start + 0.25 * run.model.head.weight)


def test_gradient_is_clipped(tmp_path):
    run = make_trainer(student(clip_grad_norm=1e-3), tmp_path)
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    # After one step AdamW's first moment is 0.1 times the gradient.
    norms = [state["exp_avg"].norm() / 0.1 for state in run.optimizer.state_dict()["state"].values()]
    assert torch.stack(norms).norm() == pytest.approx(1e-3, rel=1e-3)


def test_bf16_rounds_gradients_and_trains(tmp_path):
    gradients = []
    for precision in ("fp32", "bf16"):
        run = make_trainer(student(precision=precision), tmp_path)
        run._backward(*run.to_device(next(run.train_loader.epoch())))
        gradients.append(run.model.stages[0].blocks[0].mlp.fc1.linear.weight.grad.clone())
    assert not torch.equal(*gradients)
    assert math.isfinite(train(student(precision="bf16"), tmp_path).result.eval_loss)


def test_fp16_trains_with_a_scaled_loss(tmp_path):
    assert math.isfinite(train(student(precision="fp16", clip_grad_norm=1.0), tmp_path).result.eval_loss)
    scaler = json.loads(_state_text(tmp_path))["scaler"]
    assert scaler["scale"] > 1 and scaler["_growth_tracker"] == 6  # none of the six steps overflowed


def test_a_step_whose_scaled_gradient_overflows_is_left_out(tmp_path, monkeypatch):
    """The scale is halved until it fits; the run goes on, and no weight becomes infinite."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**40)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    run = make_trainer(student(precision="fp16"), tmp_path)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    assert run.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in run.model.named_parameters())
    run.run()
    assert run.scaler.get_scale() < 2.0**39 and math.isfinite(run.state["history"][-1]["train_loss"])


def test_the_scale_of_the_loss_is_kept(tmp_path):
    run = make_trainer(student(precision="fp16"), tmp_path)
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    run.scaler.update(1024.0)
    run._save()
    assert make_trainer(student(precision="fp16"), tmp_path).scaler.get_scale() == 1024


def test_each_process_draws_its_own_random_numbers(tmp_path, monkeypatch):
    run, seeds, derived_seed = make_trainer(student(), tmp_path), [], trainer_module.derived_seed
    monkeypatch.setattr(
        trainer_module, "derived_seed", lambda *numbers: seeds.append(derived_seed(*numbers)) or seeds[-1]
    )
    run.learning_rate.set(0, 0)
    for rank in range(2):
        run.process = SimpleNamespace(process_index=rank)
        run._step(0, 0, run.train_loader.epoch())
    assert len(set(seeds)) == 2


def test_images_per_second_are_those_of_whole_batches(tmp_path):
    run = make_trainer(student(), tmp_path)
    run.state.update(timed_steps=4, timed_seconds=2.0)
    assert run._images_per_second() == 64


def test_rates_of_dropout_reach_the_model():
    model = create_model(student(dropout=0.1, attention_dropout=0.2, drop_path=0.3), 10)
    first, last = blocks_of(model)
    assert (model.head_drop.p, first.attn.attn_drop.p) == (0.1, 0.2)
    assert isinstance(first.drop_path1, torch.nn.Identity)
    assert last.drop_path1.drop_prob == last.drop_path2.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_add_up_in_float32(precision, tmp_path):
    """Each micro-batch's gradient of a weight may come from half precision; their sum is not rounded to it."""
    run = make_trainer(student(precision=precision, accumulation_steps=2), tmp_path)
    parts = [run.to_device(batch) for batch in islice(run.train_loader.epoch(), 2)]
    gradients = []
    for chosen in (parts[:1], parts[1:], parts):
        run.model.zero_grad()
        for part in chosen:
            run._backward(*part)
        gradients.append([parameter.grad.clone() for parameter in run.model.parameters()])
    for one, other, both in zip(*gradients, strict=True):
        assert both.dtype == torch.float32 and torch.equal(both, one + other)


# --- starting weights, best weights, evaluation alone -----------------------------------------------------------------


def test_a_run_starts_from_what_fits_of_other_weights(finished, tmp_path):
    checkpoint = finished / "student" / CHECKPOINT_FILE
    latent = of_prefix("model", load_state(checkpoint, {})[0])
    weights = finished / "student" / "weights.safetensors"
    stored = load_inference_weights(weights).state_dict()
    run_folder = str(finished / "student")
    for place, expected in ((str(checkpoint), latent), (str(weights), stored), (run_folder, stored)):
        run = make_trainer(student(init_from=place), tmp_path / "nowhere")
        assert "tensors loaded." in run.started_from
        assert all(torch.equal(value, expected[name]) for name, value in run.model.state_dict().items())
        assert all(parameter.requires_grad for parameter in run.model.parameters())
    other = PYRAMID["model_args"] | {"depths": [1, 2], "mlp_ratios": [2, 1]}
    part = make_trainer(student(init_from=str(checkpoint), model_args=other), tmp_path / "nowhere")
    fresh = create_model(student(model_args=other), 10).state_dict()
    loaded = {name for name, value in fresh.items() if name in latent and latent[name].shape == value.shape}
    assert f"{len(loaded)} of {len(fresh)} tensors loaded; as initialized: stages.1" in part.started_from
    assert "; not used: stages.1.blocks.0.mlp" in part.started_from
    for name, value in part.model.state_dict().items():
        assert torch.equal(value, latent[name] if name in loaded else fresh[name]), name
    torch.save({"head.bias": torch.zeros(11), "other": torch.zeros(10)}, tmp_path / "strange.pt")
    with pytest.raises(BinaryViTError, match="holds no tensor with a name and shape"):
        make_trainer(teacher(init_from=str(tmp_path / "strange.pt")), tmp_path)


@pytest.mark.parametrize(("first", "second"), [("_avg_pool", ""), ("", "_avg_pool")])
def test_the_ladders_first_step_starts_from_its_neighbour(first, second, tmp_path):
    """One of the two has a CLS token, and so a position embedding of one token more."""
    shape = {"embed_dims": 16, "depths": 1, "num_heads": 2, "mlp_ratios": 2}
    other, model = (timm.create_model(f"reactdeit_micro_patch4_32{name}", **shape) for name in (first, second))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    own = model.stages[0].pos_embed.detach().clone()
    said = initialize(model, str(tmp_path / "other.pt"))
    theirs, now = other.stages[0].pos_embed, model.stages[0].pos_embed
    assert torch.equal(now[:, -64:], theirs[:, -64:]) and now.shape == own.shape
    assert torch.equal(now[:, :-64], own[:, :-64])
    assert ("as initialized: cls_token" in said) == (second == "") and ("not used: cls_token" in said) == (first == "")


def test_starting_weights_of_another_image_size_are_resampled(tmp_path):
    small, large = (
        timm.create_model("vit_tiny_patch16_224", img_size=size, depth=1, num_classes=2) for size in (32, 64)
    )
    torch.save(small.state_dict(), tmp_path / "small.pt")
    assert "tensors loaded." in initialize(large, str(tmp_path / "small.pt"))
    assert torch.equal(large.pos_embed[:, :1], small.pos_embed[:, :1])
    torch.testing.assert_close(large.pos_embed[:, 1:], resampled(small.pos_embed[:, 1:], 4))


def test_starting_weights_are_part_of_the_key_by_their_content(finished, tmp_path):
    weights = finished / "student" / "weights.safetensors"
    copy = tmp_path / "copy.safetensors"
    shutil.copy(weights, copy)
    record = train(student(init_from=str(weights), epochs=1), tmp_path / "run")
    assert record.config["init_from"] == "weights.safetensors"
    assert record.key.config == key_of(student(init_from=str(copy), epochs=1)) != key_of(student(epochs=1))
    with pytest.raises(BinaryViTError, match="init_from 'nowhere' cannot be read"):
        train(student(init_from="nowhere"), tmp_path / "other")


def test_the_best_epochs_weights_are_kept_with_the_last(tmp_path, monkeypatch):
    accuracies = iter([30.0, 50.0, 50.0, 10.0])
    evaluation = Trainer.evaluate

    def pretended(self, model, precision):
        result = evaluation(self, model, precision)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return dataclasses.replace(result, top1=next(accuracies, result.top1))

    weights: list[dict] = []
    monkeypatch.setattr(Trainer, "evaluate", pretended)
    record = train(student(epochs=4, keep_best=True), tmp_path)
    assert (record.best.file, record.best.epoch, record.best.top1) == ("weights_best.safetensors", 2, 50.0)
    kept = load_inference_weights(tmp_path / record.best.file).state_dict()
    biases = [name for name in kept if name.endswith(("shift", "level", "running_mean"))]
    assert biases and all(torch.equal(kept[name], weights[1][name]) for name in biases)
    assert not all(torch.equal(kept[name], weights[3][name]) for name in biases)
    assert record.result.top1 == 10.0 and record.key.config == key_of(student(epochs=4))


def test_weights_of_an_epoch_at_which_they_were_not_kept_are_not_called_the_best(tmp_path, monkeypatch):
    accuracies = iter([30.0, 50.0])
    evaluation = Trainer.evaluate
    monkeypatch.setattr(
        Trainer,
        "evaluate",
        lambda *given: dataclasses.replace(evaluation(*given), top1=next(accuracies, 10.0)),
    )
    finish = Trainer._finish_epoch

    def stop_keeping(self):  # as between two starts of one run
        kept = finish(self)
        self.config = self.config.model_copy(update={"keep_best": False})
        return kept

    monkeypatch.setattr(Trainer, "_finish_epoch", stop_keeping)
    train(student(epochs=2, keep_best=True), tmp_path / "first")
    assert (tmp_path / "first" / "weights_best.safetensors").exists()
    assert read_record(tmp_path / "first").best is None, "the second epoch was better"


def test_data_of_one_split_are_evaluated_on(finished, tmp_path):
    for name in map(str, range(10)):
        (tmp_path / "squares" / "val" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 10 * int(name)).save(tmp_path / "squares" / "val" / name / "0.png")
    squares = str(tmp_path / "squares")
    for place in (finished / "student", finished / "student" / "weights.safetensors"):
        assert evaluate_stored(place, data=squares)[1].startswith("10 images of split 'val' of squares")
    assert evaluate_stored(finished / "student", eval_split="train")[1].startswith("50 images of split 'train'")
    with pytest.raises(BinaryViTError, match="has no split 'train'"):
        train(student(data=squares), tmp_path / "run")


def test_stored_weights_are_evaluated_again(finished, capsys):
    record = read_record(finished / "student")
    result, images = evaluate_stored(finished / "student")
    assert result.top1 == record.weights.top1 and images == "50 images of split 'test' of digits, the run's own data"
    assert result.predicted.tolist() == read_predictions(finished / "student")["predicted"].tolist()
    assert main(["evaluate", str(finished / "student")]) == 0
    assert f"top-1 {result.top1:.2f}%, top-5 {result.top5:.2f}%" in capsys.readouterr().out
    whole, images = evaluate_stored(finished / "student" / "weights.safetensors", data="digits", batch_size=7)
    assert whole.images == 360 and images == "360 images of split 'test' of digits"
    _, images = evaluate_stored(finished / "student", max_eval_images=20)
    assert images.endswith("not the run's own data")
    with pytest.raises(BinaryViTError, match="does not say what to evaluate it on"):
        evaluate_stored(finished / "student" / "weights.safetensors")
    with pytest.raises(BinaryViTError, match="not the folder of a finished run"):
        evaluate_stored(finished)


def test_other_data_are_not_called_by_the_name_of_the_runs_own(finished, tmp_path):
    for split, name in product(("train", "val"), map(str, range(10))):
        (tmp_path / "squares" / split / name).mkdir(parents=True)
        grey = 100 * (split == "val") + 10 * int(name)
        Image.new("L", (8, 8), grey).save(tmp_path / "squares" / split / name / "0.png")
    shutil.copytree(finished / "student", tmp_path / "run")
    record = read_record(tmp_path / "run")
    called = record.config | {"data": "numbers", "data_label": "Numbers (of its own)", "max_eval_images": 3}
    record.model_copy(update={"config": called}).write(tmp_path / "run")
    squares = str(tmp_path / "squares")
    assert evaluate_stored(tmp_path / "run", data=squares)[1] == (
        "10 images of split 'val' of squares, not the run's own data"
    )
    assert evaluate_stored(tmp_path / "run", data_dir=squares)[1] == (
        "3 images of split 'val' of numbers, not the run's own data"
    )
    called["data"] = "squares"
    record.model_copy(update={"config": called}).write(tmp_path / "run")
    assert evaluate_stored(tmp_path / "run", data=squares)[1].startswith("3 images"), "records hold no place"


def test_of_a_run_with_held_out_images_another_split_can_be_evaluated(finished, tmp_path):
    shutil.copytree(finished / "student", tmp_path / "run")
    record = read_record(tmp_path / "run")
    held_out = record.config | {"holdout_images": 20, "max_eval_images": None}
    record.model_copy(update={"config": held_out}).write(tmp_path / "run")
    assert evaluate_stored(tmp_path / "run")[0].images == 20
    assert evaluate_stored(tmp_path / "run", eval_split="test")[0].images == 360


def test_a_weights_file_knows_how_its_images_are_cut(finished, tmp_path):
    path = finished / "student" / "weights.safetensors"
    said = read_weights_file(path).description
    zoomed = said.preprocessing.model_copy(update={"crop_pct": 0.5})
    other = tmp_path / "weights.safetensors"
    save_inference_weights(
        load_inference_weights(path),
        other,
        said.variant,
        said.model_args,
        class_names=said.class_names,
        preprocessing=zoomed,
    )
    losses = [
        evaluate_stored(other, data="digits", **crop)[0].loss for crop in ({}, {"eval_crop": 0.5}, {"eval_crop": 1.0})
    ]
    assert losses[0] == losses[1] != losses[2]
    brighter = said.preprocessing.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    save_inference_weights(load_inference_weights(path), other, said.variant, said.model_args, preprocessing=brighter)
    own = evaluate_stored(path, data="digits")[0].loss
    assert evaluate_stored(other, data="digits")[0].loss != own, "its own mean normalizes its images"


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_every", [1, 2, 10])
def test_loss_that_is_not_finite_stops_with_its_images(read_every, tmp_path, monkeypatch):
    """Also when later steps were done before it was read; a checkpoint only ever holds what was read."""
    backward, step = Trainer._backward, Trainer._step
    rows: list[list[int]] = []

    def with_nan(self, images, labels):
        if len(rows) == 2:
            images[3] = float("nan")
        return backward(self, images, labels)

    def noting(self, epoch, number, batches):
        batch = next(batches)
        rows.append(batch.rows.tolist())
        return step(self, epoch, number, iter([batch]))

    monkeypatch.setattr(Trainer, "_backward", with_nan)
    monkeypatch.setattr(Trainer, "_step", noting)
    monkeypatch.setattr(trainer_module, "StepLog", functools.partial(StepLog, read_every=read_every))
    minutes = 0.0 if read_every == 1 else 60.0
    config = student(checkpoint_minutes=minutes, epochs=2, max_train_images=32 * 7)
    with pytest.raises(BinaryViTError) as error:
        train(config, tmp_path)
    assert "loss became nan at step 2 of 7 in epoch 1" in str(error.value) and "clip_grad_norm" in str(error.value)
    assert json.loads(re.search(r"\[.*\]", str(error.value)).group()) == rows[1] and len(rows[1]) == 32
    assert len(rows) == {1: 2, 2: 3, 10: 7}[read_every]
    assert not (tmp_path / "run.json").exists() and (tmp_path / CHECKPOINT_FILE).exists() == (read_every == 1)
    if read_every == 1:
        kept = make_trainer(config, tmp_path / "fresh")
        kept.run_dir, kept.identity = tmp_path, json.loads(_state_text(tmp_path))["identity"]
        kept._restore()
        assert kept.state["step"] == 1 and all(value.isfinite().all() for value in kept.model.state_dict().values())


def test_when_losses_are_read_changes_no_number(tmp_path, monkeypatch):
    config = student(max_train_images=32 * 5)
    train(config, tmp_path / "each step")
    monkeypatch.setattr(trainer_module, "StepLog", functools.partial(StepLog, read_every=3))
    train(config, tmp_path / "every third")
    one, other = (read_metrics(tmp_path / run).drop(columns=TIMING) for run in ("each step", "every third"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    one, other = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("each step", "every third"))
    assert one == other


def test_what_steps_measured_arrives_one_call_late_and_all_of_it_at_the_end():
    log = StepLog(PartialState(cpu=True), batch_size=4, read_every=2)
    arrived = []
    for step in range(5):
        log.append(0, step, [torch.tensor([step])], torch.full((4,), 4.0 * step))
        results, agreed = log.exchange([step == 1, False], at_once=step == 4)
        arrived.append([result.step for result in results])
        assert all(result.loss == result.step and result.rows == [result.step] for result in results)
        assert agreed == [step == 2, False]
    assert arrived == [[], [], [0, 1], [], [2, 3, 4]]


class HostWork(TorchDispatchMode):
    """Notes what makes a tensor on the host or waits for the device's numbers."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if any(word in name for word in ("_local_scalar_dense", "lift_fresh", "nonzero", "is_all_true", "equal")):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_makes_no_tensor_on_the_host_and_reads_none(precision, tmp_path):
    weights = str(write_teacher(tmp_path / "teacher.safetensors"))
    config = student(teacher=weights, mixup_alpha=0.5, ema_decay=0.5, clip_grad_norm=1.0, precision=precision)
    run = make_trainer(config, tmp_path)
    run.learning_rate.set(0, 0)
    batches = run.train_loader.epoch()
    run._step(0, 0, batches)  # the first one makes the optimizer's state
    prepared = iter([next(batches)])
    with HostWork() as work:
        run._step(0, 1, prepared)
        assert work.seen == []
        run.log.exchange([False], at_once=True)
        torch.zeros(()).item()
        torch.tensor([1.0])
    assert work.seen == ["aten::_local_scalar_dense", "aten::lift_fresh"]


def _state_text(folder: Path) -> str:
    from safetensors import safe_open

    with safe_open(folder / CHECKPOINT_FILE, "pt") as file:
        return file.metadata()["binaryvit_training_state"]


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    config = student(learning_rate=3e38, checkpoint_minutes=0.0)
    with pytest.raises(BinaryViTError, match=r"at step [12] of 3 in epoch 1.*learning_rate"):
        train(config, tmp_path)
    assert not (tmp_path / CHECKPOINT_FILE).exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"processes": 2}, "accelerate launch --num_processes 2"),
        ({"batch_size": 128}, "100 images"),
        ({"model_args": {"reductions": 3}}, "reductions"),
        ({"model_args": {"bogus": 3}}, "bogus=3"),
        ({"variant": "vit_tiny_patch16_224", "model_args": {"act_layer": "nosuch"}}, "KeyError: 'nosuch'"),
        ({"teacher": "nowhere"}, "'nowhere' cannot be read"),
        ({"teacher": "timm:vit_tinny"}, "vit_tinny has no pretrained weights"),
    ],
)
def test_refused_before_anything_is_written(fields, words, tmp_path):
    with pytest.raises(BinaryViTError, match=words):
        train(student(**fields), tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    from binaryvit.locks import hold

    with hold(tmp_path / "training.lock"), pytest.raises(BinaryViTError, match="Another process"):
        train(student(), tmp_path)


def test_random_state_and_threads_of_the_caller_stay(tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    threads = torch.get_num_threads()
    assert train(student(epochs=1, threads=2), tmp_path).threads == 2
    assert (torch.rand(1), np.random.rand()) == expected and torch.get_num_threads() == threads


# --- teachers ---------------------------------------------------------------------------------------------------------


def test_teacher_identity_is_its_content(finished, tmp_path):
    run = finished / "teacher"
    assert identity(str(run)) == run_identity(read_record(run).key)
    file = run / "weights.safetensors"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert identity(str(copy)) == identity(str(file)) != identity(str(run))
    assert identity("timm:vit_tiny_patch16_224") == "timm:vit_tiny_patch16_224"


def test_unfinished_teacher_is_refused(tmp_path):
    with pytest.raises(BinaryViTError, match="not a finished run: train it first"):
        identity(str(tmp_path))


def test_teacher_of_other_classes_is_refused(tmp_path):
    path = write_teacher(tmp_path / "teacher.safetensors")
    with pytest.raises(BinaryViTError, match="distinguishes 10 classes and the data have 7"):
        load_teacher(str(path), None, list("abcdefg"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("1023456789", "classes of the data in another order; it calls class 0 '1' and the data call it '0'"),
        ("a123456789", None),
        ("0123456789", None),
    ],
)
def test_classes_are_compared_by_name(names, said, finished, tmp_path):
    path = tmp_path / "weights.safetensors"
    description = read_weights_file(finished / "student" / "weights.safetensors").description
    model = load_inference_weights(finished / "student" / "weights.safetensors")
    save_inference_weights(model, path, description.variant, description.model_args, class_names=tuple(names))
    for use in (
        lambda: load_teacher(str(path), None, list("0123456789")),
        lambda: evaluate_stored(path, data="digits"),
    ):
        if said:
            with pytest.raises(BinaryViTError, match=said):
                use()
        elif names.startswith("a"):
            with pytest.warns(UserWarning, match="calls class 0 'a' and the data call it '0': are they the same"):
                use()
        else:
            use()


def test_teacher_from_a_local_checkpoint(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_teacher(str(tmp_path / "weights.pt"), "vit_tiny_patch16_224", list("abcde"))
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(loaded(images), model.eval()(images))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(BinaryViTError, match="needs teacher_variant"):
        load_teacher(str(tmp_path / "weights.pt"), None, list("abcde"))
    with pytest.raises(BinaryViTError, match="is a folder: leave teacher_variant out"):
        load_teacher(str(tmp_path), "vit_tiny_patch16_224", list("abcde"))


def test_teacher_sees_images_in_its_own_size_and_normalization():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=1).eval()  # mean and std 0.5
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    pixels = torch.rand(2, 3, 64, 64)
    tensors = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    probabilities = Teacher(model, mean, std)((pixels - tensors[0]) / tensors[1])
    torch.testing.assert_close(probabilities, model((pixels - 0.5) / 0.5).softmax(1).detach())
    assert Teacher(model, mean, std)(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert not probabilities.is_inference()


# --- evaluation, compilation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [4, 9])
def test_evaluation_counts_every_image_once(classes):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, classes)).train()
    images, labels = torch.randn(11, 3, 2, 2), torch.randint(classes, (11,))
    batches = [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 11, 4)]
    result = evaluate(model, batches, torch.device("cpu"))
    assert model.training
    shapes = []
    with model.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0]))):
        evaluate(model, batches, torch.device("cpu"))
    assert shapes == [4, 4, 4], "compiled blocks keep their one shape"
    logits = model.eval()(images)
    assert result.images == 11 and result.loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert result.top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert torch.equal(result.predicted, logits.argmax(1))
    if classes == 4:
        assert result.top5 is None
    else:
        order = logits.argsort(1, descending=True)[:, :5]
        assert result.top5 == pytest.approx(100 * (order == labels[:, None]).any(1).float().mean().item())


def test_compiled_training_on_a_cpu_says_that_it_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(BinaryViTError, match=r"compile: true on a CPU needs a C\+\+ compiler: .*no-such-compiler"):
        train(student(compile=True), tmp_path / "run")


def test_variants_share_one_vocabulary_of_blocks():
    model = timm.create_model(VIT["variant"], depth=3)
    assert blocks_of(model) == list(model.blocks)
