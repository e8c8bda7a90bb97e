"""The model that a configuration asks for."""

import pytest
import timm
import torch
from helpers.training_setup import VIT, student

from binaryvit.models.layers import binary_layers
from binaryvit.training.build import blocks_of, create_model


def test_latent_weights_start_at_a_fraction_of_pytorchs():
    plain, scaled = (create_model(student(latent_scale=scale), 10) for scale in (1.0, 0.25))
    binary = binary_layers(plain)
    for (name, weight), other in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        factor = 0.25 if name.removesuffix(".weight") in binary else 1.0
        assert torch.equal(factor * weight, other), name
    assert len(binary) > 5


def test_rates_of_dropout_reach_the_model():
    model = create_model(student(dropout=0.1, attention_dropout=0.2, drop_path=0.3), 10)
    first, last = blocks_of(model)
    assert (model.head_drop.p, first.attn.attn_drop.p) == (0.1, 0.2)
    assert isinstance(first.drop_path1, torch.nn.Identity)
    assert last.drop_path1.drop_prob == last.drop_path2.drop_prob == pytest.approx(0.3)


def test_variants_share_one_vocabulary_of_blocks():
    model = timm.create_model(VIT["variant"], depth=3)
    assert blocks_of(model) == list(model.blocks)
