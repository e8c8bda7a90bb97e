"""Inference weights: one bit per binary weight, the same logits, and nothing foreign is loaded."""

import json

import pytest
import timm
import torch
from helpers.places import ROOT
from helpers.scattered import scattered
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.models import external_checkpoint, weights_file
from binaryvit.models.description import LOADING_ARGS, Preprocessing
from binaryvit.models.external_checkpoint import load_checkpoint, read_state_dict
from binaryvit.models.ladder import LADDER
from binaryvit.models.layers import binary_layers
from binaryvit.models.weights_file import FORMAT, load_inference_weights, read_weights_file, save_inference_weights

BINARY = LADDER["micro"][1:]
PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), crop_pct=0.875, interpolation="bicubic"
)


@pytest.mark.parametrize("variant", LADDER["micro"])
def test_the_same_logits_bit_for_bit(variant, tmp_path):
    model = scattered(variant, num_classes=7)
    save_inference_weights(model, tmp_path / "w.safetensors", variant, {"num_classes": 7})
    loaded = load_inference_weights(tmp_path / "w.safetensors")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), loaded(images))
    # Saved again from the loaded model, without latent weights, the file says the same.
    save_inference_weights(loaded, tmp_path / "again.safetensors", variant, {"num_classes": 7})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


@pytest.mark.parametrize("variant", BINARY)
def test_small_enough_for_git_and_one_bit_each(variant, tmp_path):
    model = timm.create_model(variant, num_classes=10)
    path = tmp_path / "w.safetensors"
    save_inference_weights(model, path, variant, {"num_classes": 10})
    # The some-fp variant keeps 0.17 M merge weights in full precision and may be larger.
    assert path.stat().st_size <= (1.4e6 if variant.endswith("some_fp") else 1e6)
    stored = load_file(path)
    for name, layer in binary_layers(model).items():
        rows, columns = layer.weight.shape[0], layer.weight[0].numel()
        assert stored[f"{name}.weight.bits"].numel() == rows * -(-columns // 8)
        assert f"{name}.weight" not in stored


def test_full_precision_weights_of_other_bit_widths(tmp_path):
    args = {"weight_bits": 32, "activation_bits": 1, "num_classes": 10}
    model = scattered("binaryvit_micro_patch2_32", **args)
    save_inference_weights(model, tmp_path / "w.safetensors", "binaryvit_micro_patch2_32", args)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert not any(name.endswith(".bits") for name in file.keys())  # noqa: SIM118
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_inference_weights(tmp_path / "w.safetensors")(images), model(images))


def test_half_precision_halves_a_full_precision_model(tmp_path):
    model = scattered("deit_micro_patch4_32")
    for dtype in (torch.float32, torch.float16):
        save_inference_weights(model, tmp_path / f"{dtype}", "deit_micro_patch4_32", {}, dtype)
    assert (tmp_path / "torch.float16").stat().st_size < 0.51 * (tmp_path / "torch.float32").stat().st_size
    images = torch.randn(2, 3, 32, 32)
    loaded = load_inference_weights(tmp_path / "torch.float16")
    assert next(loaded.parameters()).dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-2, atol=1e-2)


def test_what_half_precision_cannot_hold_stays_whole(tmp_path):
    model = timm.create_model("deit_micro_patch4_32")
    model.head.bias.data[0] = 1e5
    save_inference_weights(model, tmp_path / "w.safetensors", "deit_micro_patch4_32", {}, torch.float16)
    assert torch.equal(load_inference_weights(tmp_path / "w.safetensors").head.bias, model.head.bias)


@pytest.mark.parametrize(
    ("variant", "model_args"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}),
        ("levit_128s", {}),
    ],
)
def test_a_timm_model_that_computes_what_it_does_not_store_gives_its_logits(variant, model_args, tmp_path):
    model = timm.create_model(variant, **model_args).eval()
    save_inference_weights(model, tmp_path / "w.safetensors", variant, model_args)
    images = torch.randn(2, 3, *[model_args.get("img_size", 224)] * 2)
    with torch.no_grad():
        assert torch.equal(load_inference_weights(tmp_path / "w.safetensors")(images), model(images))


def test_class_names_and_preprocessing_are_kept(tmp_path):
    variant, names = "binaryvit_micro_patch2_32", tuple("abcdefghij")
    model = timm.create_model(variant)
    path = tmp_path / "w.safetensors"
    save_inference_weights(model, path, variant, {}, class_names=names, preprocessing=PREPROCESSING)
    description = read_weights_file(path).description
    assert (description.class_names, description.preprocessing) == (names, PREPROCESSING)


def test_a_state_dict_with_packed_weights_loads_as_it_is(tmp_path):
    variant = "binaryvit_micro_patch2_32"
    model = scattered(variant)
    path = tmp_path / "w.safetensors"
    save_inference_weights(model, path, variant, {})
    other = timm.create_model(variant).eval()
    load_checkpoint(other, path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(images), model(images))


@pytest.mark.parametrize("variant", ["binaryvit_micro_patch2_32", "reactresnet_micro_patch2_32"])
def test_latent_weights_loaded_into_a_model_without_them_are_binarized_and_trained(variant, tmp_path):
    latent, model = (scattered(variant, seed) for seed in range(2))
    save_inference_weights(model, tmp_path / "w.safetensors", variant, {})
    stored, images = load_inference_weights(tmp_path / "w.safetensors"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        stored.load_state_dict(stored.state_dict())
        assert torch.equal(stored(images), model(images)), "its own weights stay as they are"
        stored.load_state_dict(latent.state_dict())
        assert torch.equal(stored(images), latent(images))
    assert all(parameter.requires_grad for parameter in stored.parameters())


def test_committed_runs_load():
    paths = [path for path in ROOT.glob("results/*/runs/*/weights.safetensors") if (path.parent / "run.json").exists()]
    assert paths
    for path in paths:
        record = json.loads((path.parent / "run.json").read_text())
        assert path.stat().st_size == record["weights"]["bytes"], path
        assert load_inference_weights(path).num_classes == record["data"]["num_classes"], path


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "w.safetensors"
    variant = "binaryvit_micro_patch2_32"
    save_inference_weights(timm.create_model(variant), path, variant, {})
    with safe_open(path, "pt") as file:
        return path, load_file(path), json.loads(file.metadata()[FORMAT])


def test_missing_truncated_and_foreign_files_are_refused(saved, tmp_path):
    path, tensors, _ = saved
    with pytest.raises(BinaryViTError, match="no file"):
        load_inference_weights(tmp_path / "nothing.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BinaryViTError, match="truncated"):
        load_inference_weights(path)
    save_file(tensors, path, {})
    with pytest.raises(BinaryViTError, match="no inference weights of this library"):
        load_inference_weights(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": "99"}, "version"),
        ({"variant": "no_such_model"}, "no_such_model"),
        ({"model_args": {"embed_dims": [4096, 8192, 16384]}}, "does not fit"),
        ({"model_args": {"embed_dims": [[[10**9]]]}}, "no number, text or list"),
        ({"model_args": {"depths": [10**9, 1, 1, 1]}}, "more than the file holds"),
        ({"model_args": {"num_classes": 10**12}}, "more than the file holds"),
        ({"model_args": [1]}, "description in .* is damaged"),
        ({"model_args": {"embed_dims": "wide"}}, "can't be built"),
        ({"packed": True}, "packed for deployment"),
        ({"colour": "red"}, "description in .* is damaged"),
        ({"class_names": ["cat"]}, "names 1 classes and distinguishes 10"),
        ({"preprocessing": {**PREPROCESSING.model_dump(), "input_size": (3, 64, 64)}}, "instead of \\(3, 32, 32\\)"),
        ({"preprocessing": {**PREPROCESSING.model_dump(), "std": (0, 1, 1)}}, "std a positive one"),
        ({"preprocessing": {**PREPROCESSING.model_dump(), "crop_pct": 1e-9}}, "divided by crop_pct"),
        ({"variant": "hf-hub:someone/model"}, "no model of this library"),
        ({"variant": "local-dir:."}, "no model of this library"),
        ({"model_args": {"checkpoint_path": "other.pth"}}, "checkpoint_path would load other files"),
        ({"model_args": {"pretrained": True}}, "pretrained would load other files"),
        ({"model_args": {"num_classes": 11}}, "does not fit"),
    ],
)
def test_forged_descriptions_are_refused(saved, change, match):
    path, tensors, description = saved
    save_file(tensors, path, {FORMAT: json.dumps({**description, **change})})
    with pytest.raises(BinaryViTError, match=match):
        load_inference_weights(path)


@pytest.mark.parametrize(
    ("variant", "model_args"),
    [
        ("binaryvit_micro_patch2_32", {"depths": [1000, 1, 1]}),
        ("binaryvit_micro_patch2_32", {"depths": 100, "embed_dims": [1] * 24, "img_size": 2**23}),
        ("hiera_tiny_224", {"stages": [15_000, 1, 1, 1]}),
        ("tiny_vit_5m_224", {"window_sizes": [150] * 4}),
        ("levit_128s", {"img_size": 4096}),
    ],
)
def test_a_forged_description_takes_no_time_to_refuse(variant, model_args, saved, monkeypatch):
    path, tensors, description = saved
    save_file(tensors, path, {FORMAT: json.dumps({**description, "variant": variant, "model_args": model_args})})
    monkeypatch.setattr(timm, "create_model", None)  # would take from seconds to hours
    with pytest.raises(BinaryViTError, match="more than the file holds"):
        load_inference_weights(path)


def test_attention_that_would_take_hours_is_refused(tmp_path):
    """The number of tokens, unlike that of weights, is bounded by no byte of the file."""
    variant, path = "reactdeit_micro_patch4_32_avg_pool", tmp_path / "w.safetensors"
    shape = {"embed_dims": 1, "num_heads": 1, "patch_size": 1, "img_size": 190, "depths": 1}
    model = timm.create_model(variant, **shape)
    save_inference_weights(model, path, variant, shape)
    with pytest.raises(BinaryViTError, match="1,303,210,000 pairs of query and key"):
        load_inference_weights(path)


def test_negative_variances_are_refused(saved):
    path, tensors, description = saved
    tensors["norm.batch_norm.running_var"][3] = -1.0
    save_file(tensors, path, {FORMAT: json.dumps(description)})
    with pytest.raises(BinaryViTError, match=r"norm.batch_norm.running_var holds negative variances"):
        load_inference_weights(path)


def test_images_too_large_to_prepare_get_a_sentence():
    model = timm.create_model("binaryvit_micro_patch2_32")
    with pytest.raises(BinaryViTError, match="The model's images can't be prepared"):
        Preprocessing.of(model, crop_pct=1e-9)


def test_the_preprocessing_of_grey_images_has_to_be_given():
    with pytest.raises(BinaryViTError, match="takes images of 1 channels, and timm knows how to prepare those of 3"):
        Preprocessing.of(timm.create_model("binaryvit_micro_patch2_32", in_chans=1))


@pytest.mark.parametrize("read", [read_weights_file, read_state_dict])
def test_what_may_not_be_read_is_not_called_damaged(read, saved, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(weights_file, "safe_open", refuse)
    monkeypatch.setattr(external_checkpoint, "load_file", refuse)
    with pytest.raises(BinaryViTError, match="may not be read; check its permissions"):
        read(saved[0])
    with pytest.raises(BinaryViTError, match="There is no"):
        read("x" * 300)


def test_what_loads_other_files_is_no_argument_of_a_run_either(tmp_path):
    for name in LOADING_ARGS:
        with pytest.raises(BinaryViTError, match=f"model_args holds '{name}'"):
            TrainingConfig(variant="binaryvit_micro_patch2_32", model_args={name: "x"})


def test_the_images_of_a_timm_model_are_checked(tmp_path):
    path, variant, other = tmp_path / "w.safetensors", "deit_micro_patch4_32", (3, 64, 64)
    preprocessing = PREPROCESSING.model_copy(update={"input_size": other})
    save_inference_weights(timm.create_model(variant), path, variant, {}, preprocessing=preprocessing)
    with pytest.raises(BinaryViTError, match=r"\(3, 64, 64\) instead of \(3, 32, 32\)"):
        load_inference_weights(path)


def test_a_missing_or_misshapen_weight_is_refused(saved):
    path, tensors, description = saved
    bits = next(name for name in tensors if name.endswith(".bits"))
    for changed in (tensors[bits][:-1].clone(), None):
        others = {name: tensor for name, tensor in tensors.items() if name != bits}
        save_file(others | ({bits: changed} if changed is not None else {}), path, {FORMAT: json.dumps(description)})
        with pytest.raises(BinaryViTError, match="does not fit"):
            load_inference_weights(path)


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        (torch.uint8, lambda bits: bits.repeat(2, 1), "has the shape"),
        (torch.uint8, lambda bits: bits.float(), "is of type torch.float32"),
        (torch.float32, lambda numbers: numbers.fill_(torch.nan), "not finite"),
        (torch.float32, lambda numbers: numbers.double(), "is of type torch.float64"),
    ],
)
def test_a_tensor_of_another_shape_type_or_without_numbers_is_refused(saved, kind, change, match):
    path, tensors, description = saved
    name = next(name for name, tensor in tensors.items() if tensor.dtype == kind)
    save_file({**tensors, name: change(tensors[name])}, path, {FORMAT: json.dumps(description)})
    with pytest.raises(BinaryViTError, match=match):
        load_inference_weights(path)
