"""The packed file: the table's bytes, the model's logits bit for bit, and sentences for whatever else it holds."""

import json

import pytest
import timm
import torch
from helpers.small_models import VARIANTS, images, model_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from binaryvit.errors import BinaryViTError
from binaryvit.models.cost import cost
from binaryvit.models.description import Description
from binaryvit.models.ladder import LADDER
from binaryvit.models.layers import binary_layers
from binaryvit.models.weights_file import FORMAT, load_inference_weights, save_inference_weights
from binaryvit.packed.file import read_packed, save_packed

CASES = {
    "columnar": dict(variant="reactdeit_micro_patch4_32"),
    "class token": dict(variant="reactdeit_micro_patch4_32", global_pool="token", pooling_branches=False),
    "pyramid": dict(),
    "full-precision merge": dict(merge="full_precision"),
    "odd widths": dict(embed_dims=(7, 21), num_heads=(1, 3)),
}


def with_a_row_of_zeros(**arguments):
    model = model_of(dtype=torch.float32, **arguments)
    next(iter(binary_layers(model).values())).weight.data[1] = 0.0
    return model


def described(variant="binaryvit_micro_patch2_32", **arguments):
    shape = json.loads(json.dumps(VARIANTS[variant] | arguments))
    return Description(variant=variant, model_args=shape)


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_the_logits_are_the_models_bit_for_bit(arguments, tmp_path):
    model, path = with_a_row_of_zeros(**arguments), tmp_path / "m.bvit"
    save_packed(model, path, described(**arguments))
    x = images(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(read_packed(path).model()(x), model(x))
    save_packed(read_packed(path).model(), tmp_path / "again.bvit", described(**arguments))
    assert (tmp_path / "again.bvit").read_bytes() == path.read_bytes()


def test_what_a_run_stored_is_packed_as_it_is_read(tmp_path):
    model, path = with_a_row_of_zeros(), tmp_path / "w.safetensors"
    arguments = described().model_args
    save_inference_weights(model, path, "binaryvit_micro_patch2_32", arguments)
    x = images(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(read_packed(path).model()(x), model(x))


@pytest.mark.parametrize("variant", ["binaryvit_small_patch4_224", *LADDER["micro"][1:]])
def test_a_file_has_the_bytes_of_the_cost_table_and_of_the_scales(variant, tmp_path):
    model, path = timm.create_model(variant), tmp_path / "m.bvit"
    save_packed(model, path, Description(variant=variant, model_args={}))
    size, counted = path.stat().st_size, cost(model).bytes
    scales = 3 * sum(len(layer.weight) for layer in binary_layers(model).values())
    assert counted + scales < size < counted + scales + 400, "the rest is the header"
    if variant == "binaryvit_small_patch4_224":
        assert size <= min(8.0e6, 1.02 * counted)


def test_a_model_of_32_bits_is_refused(tmp_path):
    for bits in ({"weight_bits": 32}, {"activation_bits": 32}):
        with pytest.raises(BinaryViTError, match="32-bit"):
            save_packed(model_of(**bits), tmp_path / "m.bvit", described(**bits))


@pytest.mark.parametrize("name", ["stages.0.blocks.0.attn.q.linear.weight", "head.bias"])
def test_numbers_that_are_not_finite_are_not_stored(name, tmp_path):
    model = model_of()
    model.get_parameter(name).data.view(-1)[1] = torch.nan
    with pytest.raises(BinaryViTError, match="not finite, so it is not stored"):
        save_packed(model, tmp_path / "m.bvit", described())
    assert not (tmp_path / "m.bvit").exists()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "m.bvit"
    arguments = CASES["odd widths"]
    save_packed(with_a_row_of_zeros(**arguments), path, described(**arguments))
    with safe_open(path, "pt") as file:
        return path, load_file(path), json.loads(file.metadata()[FORMAT])


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("bits", lambda bits: bits[:-1].clone(), "has the shape"),
        ("bits", lambda bits: bits.float(), "is of type torch.float32"),
        ("bits", lambda bits: bits.fill_(255), "past the end of a row"),
        ("numbers", lambda numbers: numbers.fill_(torch.inf), "not finite"),
        ("numbers", lambda numbers: numbers.half(), "is of type torch.float16"),
        ("numbers", lambda numbers: None, "numbers is missing"),
        ("more", lambda _: torch.zeros(1), "has no more"),
    ],
)
def test_tensors_of_another_model_are_refused(saved, name, change, match):
    path, tensors, description = saved
    changed = tensors | {name: change(tensors.get(name))}
    save_file({n: t for n, t in changed.items() if t is not None}, path, {FORMAT: json.dumps(description)})
    with pytest.raises(BinaryViTError, match=match):
        read_packed(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 4}, "version"),
        ({"version": 2}, "older layout"),
        ({"variant": "deit_micro_patch4_32", "model_args": {}}, "Only a vision transformer with binary layers"),
        ({"packed": False}, "is missing"),
        ({"class_names": ["cat"]}, "names 1 classes and distinguishes 4"),
    ],
)
def test_descriptions_of_another_model_are_refused(saved, change, match):
    path, tensors, description = saved
    save_file(tensors, path, {FORMAT: json.dumps({**description, **change})})
    with pytest.raises(BinaryViTError, match=match):
        read_packed(path)


def test_it_is_not_mistaken_for_the_weights_of_a_run(saved):
    with pytest.raises(BinaryViTError, match=r"binaryvit\.packed"):
        load_inference_weights(saved[0])
