"""Binary weights against their initial values: with and without latent weights, by separate formulas."""

import numpy as np
import pytest
import timm
import torch
from pandas.testing import assert_frame_equal

from binaryvit.analysis.activations.weight_changes import changed_weights
from binaryvit.errors import BinaryViTError
from binaryvit.models import weights_file
from binaryvit.models.layers import binary_layers

NAME = "binaryvit_micro_patch2_32"
SMALL = {"embed_dims": [8, 16, 32]}


def model_of(seed, **arguments):
    torch.manual_seed(seed)
    return timm.create_model(NAME, **SMALL, **arguments)


def test_nothing_has_changed_before_training():
    assert set(changed_weights(model_of(0), model_of(0))["flipped"]) == {0}


def test_changes_are_those_of_signs():
    trained, initial = model_of(1), model_of(0)
    table = changed_weights(trained, initial).set_index("layer")
    assert list(table.index) == list(binary_layers(initial))
    layer = "stages.0.blocks.0.mlp.fc2.linear"
    now, before = (model.get_submodule(layer).weight.numpy(force=True).astype(float) for model in (trained, initial))
    signs = [weight - weight.mean(1, keepdims=True) >= 0 for weight in (now, before)]
    assert table.loc[layer, "weights"] == now.size
    assert table.loc[layer, "flipped"] == pytest.approx((signs[0] != signs[1]).mean())
    assert np.ptp(table["flipped"]) > 0


def test_stored_weights_need_no_latent_ones(tmp_path):
    trained, initial = model_of(1), model_of(0)
    weights_file.save_inference_weights(trained, tmp_path / "w.safetensors", NAME, SMALL)
    stored = weights_file.load_inference_weights(tmp_path / "w.safetensors")
    assert_frame_equal(changed_weights(stored, initial), changed_weights(trained, initial))


def test_a_model_without_binary_weights_is_refused():
    with pytest.raises(BinaryViTError, match="no binary weights"):
        changed_weights(model_of(0, weight_bits=32), model_of(0))
