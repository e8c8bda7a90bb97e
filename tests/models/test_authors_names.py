"""The authors' checkpoints: their names become ours, and load."""

import pytest
import timm
import torch
from helpers.places import TESTS
from safetensors.torch import load_file

from binaryvit.errors import BinaryViTError
from binaryvit.models.authors_names import our_name
from binaryvit.models.external_checkpoint import load_checkpoint
from binaryvit.models.layers import binary_layers

GOLDEN = TESTS / "golden"
PYRAMID = {
    "img_size": 224, "num_classes": 10, "embed_dims": (8, 16, 32, 64), "mlp_ratios": (8, 8, 4, 4),
    "depths": (1, 2, 1, 1),
}  # fmt: skip


def pyramid(**kwargs):
    return timm.create_model("binaryvit_small_patch4_224", **PYRAMID, **kwargs)


def test_the_authors_names_load_through_timms_checkpoint_path_and_the_function():
    path = GOLDEN / "pyramid.weights.safetensors"
    by_timm = pyramid(checkpoint_path=str(path))
    by_function = pyramid()
    load_checkpoint(by_function, path)
    theirs = load_file(path)
    ours = by_timm.state_dict()
    assert len(theirs) == len(ours)
    for name, tensor in theirs.items():
        mapped = our_name(name, [1, 2, 1, 1])
        assert torch.equal(ours[mapped].flatten(), tensor.flatten().to(ours[mapped].dtype)), name
        assert torch.equal(by_function.state_dict()[mapped], ours[mapped])


def test_the_authors_latent_weights_replace_binary_ones():
    model = pyramid()
    for layer in binary_layers(model).values():
        layer.fix_weight(layer.effective_weight().detach())
    load_checkpoint(model, GOLDEN / "pyramid.weights.safetensors")
    assert not any(layer.is_fixed for layer in binary_layers(model).values())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_horizontal_and_vertical_poolings_are_not_mixed_up():
    block = "vit.encoder.layer.0.layerscale_"
    assert our_name(f"{block}h3.alpha", [1]).endswith("pool3x1.alpha")  # vertical: 3 high, 1 wide
    assert our_name(f"{block}w5.move", [1]).endswith("pool1x5.beta")


def test_blocks_are_counted_through_the_stages():
    assert our_name("vit.encoder.layer.2.layernorm_before.weight", [1, 2, 1]).startswith("stages.1.blocks.1.norm1")
    with pytest.raises(BinaryViTError, match=r"block 4.*4 blocks only"):
        our_name("vit.encoder.layer.4.layernorm_before.weight", [1, 2, 1])


@pytest.mark.parametrize("name", ["vit.encoder.layer.0.nonsense.weight", "vit.pooler.weight", "bert.x"])
def test_unknown_names_are_refused(name):
    with pytest.raises(BinaryViTError, match=r"not a name of the authors"):
        our_name(name, [1])
