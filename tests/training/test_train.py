"""What a training run computes, leaves in its folder, and says of it."""

import dataclasses
import json
from functools import partial

import pandas as pd
import pytest
import timm
import torch
from accelerate import PartialState
from helpers.places import TESTS
from helpers.training_setup import (
    TIMING,
    in_float64,
    make_trainer,
    student,
    teacher,
    write_teacher,
)

from binaryvit.data.batches import ToDevice, eval_loader
from binaryvit.data.data_set import load_data
from binaryvit.models.weights_file import load_inference_weights, read_weights_file
from binaryvit.records.predictions import read_predictions
from binaryvit.records.run_record import TRAINING_VERSION, read_metrics, read_record, read_table
from binaryvit.training.checkpoint import CHECKPOINT_FILE, save_state
from binaryvit.training.loop import Trainer
from binaryvit.training.numerics import chosen_numerics, current_numerics
from binaryvit.training.tables import METRICS
from binaryvit.training.teacher import key_of
from binaryvit.training.train import _with_compile
from binaryvit.training.train import train_in_process as train

VERSIONS = TESTS / "training_version.json"


def numbers_of(trainer: Trainer) -> dict[str, list[float]]:
    """What a run produced: its metrics, and the size of all its weights."""
    history = trainer.state["history"]
    measured = [name for name in METRICS if name not in TIMING and history[0][name] is not None]
    numbers = {name: [row[name] for row in history] for name in measured}
    weights = [value.abs().sum().item() for value in trainer.trained_model.state_dict().values()]
    return numbers | {"weights": [sum(weights)]}


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_numbers_change_only_with_the_training_version(kind, tmp_path):
    """When this fails because the numbers changed on purpose: raise TRAINING_VERSION, and store the new numbers by
    deleting tests/training_version.json and running this test twice."""
    if kind == "student":
        weights = str(write_teacher(tmp_path / "teacher.safetensors"))
        config = student(teacher=weights, mixup_alpha=0.5, ema_decay=0.5, accumulation_steps=2, clip_grad_norm=1.0)
    else:
        config = teacher(drop_path=0.0)  # its random numbers differ between processor families
    with in_float64():
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


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_leaves_compile_open_goes_on_as_it_began(begun, finished, tmp_path, monkeypatch):
    """As where it began on a GPU and goes on, or is looked at, where there is none; and the other way round."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not begun)
    decided = partial(_with_compile, process=PartialState(cpu=True))
    left_open = student(compile=None, teacher=str(finished / "teacher"))
    assert decided(left_open, tmp_path).compile is not begun, "nothing has begun there"
    identity = {"configuration": key_of(left_open.resolved(begun))}
    save_state(tmp_path / CHECKPOINT_FILE, {"a": torch.zeros(1)}, {"identity": identity})
    assert decided(left_open, tmp_path).compile is begun
    assert decided(left_open.resolved(not begun), tmp_path).compile is not begun, "it is said"
    assert decided(student(compile=None), finished / "student").compile is False, "as its record says"


def test_numerics_are_chosen_recorded_and_given_back(finished, tmp_path, monkeypatch):
    before = current_numerics()
    during: dict = {}
    monkeypatch.setattr(Trainer, "run", lambda run: during.update(current_numerics()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(student(), tmp_path)
    assert current_numerics() == before
    assert during == read_record(finished / "student").numerics
    assert (during["cuda_matmul_tf32"], during["cudnn_tf32"], during["float32_matmul"]) == (False, False, "highest")


def set_tf32_everywhere():
    torch.backends.fp32_precision = "tf32"


def set_tf32_of_products():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "choose",
    [
        partial(torch.set_float32_matmul_precision, "high"),
        partial(torch.set_float32_matmul_precision, "medium"),
        set_tf32_everywhere,
        set_tf32_of_products,
    ],
)
def test_numerics_are_given_back_whichever_interface_set_them(choose):
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    owners = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)

    def precisions():
        return [owner.fp32_precision for owner in owners]

    whole, matmul, before = torch.backends.fp32_precision, torch.get_float32_matmul_precision(), precisions()
    try:
        choose()
        chosen = precisions()
        assert chosen != before
        for _ in range(2):  # what a first one left is where a second one begins
            with chosen_numerics():
                assert set(precisions()) == {"ieee"} and current_numerics()["float32_matmul"] == "highest"
                assert not current_numerics()["cudnn_tf32"]
            assert precisions() == chosen
    finally:
        torch.backends.fp32_precision = whole
        torch.set_float32_matmul_precision(matmul)
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = precision
    assert precisions() == before


def test_latent_weight_tables(finished):
    histograms, layers = (read_table(finished / "student", f"latent_{name}.csv") for name in ("weights", "layers"))
    counts = histograms.groupby("layer", sort=False)["count"].sum()
    assert list(counts) == list(layers["weights"]) and len(counts) > 5
    positive = histograms[histograms["bin_left"] >= 0].groupby("layer", sort=False)["count"].sum()
    assert list(positive / counts) == pytest.approx(list(layers["share_positive"]))
    assert layers["share_inside_window"].between(0.9, 1).all() and (layers["mean_scale"] > 0).all()


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
    not_binary = [name for name in kept if name.endswith(("shift", "level", "running_mean"))]
    assert not_binary and all(torch.equal(kept[name], weights[1][name]) for name in not_binary)
    assert not all(torch.equal(kept[name], weights[3][name]) for name in not_binary)
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
