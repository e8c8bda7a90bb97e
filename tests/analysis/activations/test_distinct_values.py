"""Distinct values: counted as a set would count them, and within what arithmetic allows."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.small_models import VARIANTS, hooks_of, images, model_of
from pandas.testing import assert_frame_equal

from binaryvit.analysis.activations import distinct_values
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import POOLING_WINDOWS
from binaryvit.models.quantizers import sign


def row_of(table, block, step):
    return table.set_index(["block", "step"]).loc[(block, step)]


@pytest.mark.parametrize("sizes", [(40,), (13, 13, 13, 1), (1,) * 40])
def test_counts_are_those_of_sets_however_the_values_arrive(sizes):
    values = torch.randint(-6, 7, (40, 3, 5)).double() / 3
    values[:, :, 1] = -0.0
    values[0, 0, 1] = 0.0
    expected = [len(set(values[..., channel].flatten().tolist())) for channel in range(5)]
    exact, limited, few = (distinct_values.DistinctValues(*arguments) for arguments in ((9, 100), (9, 5), (2, 100)))
    for part in values.split(sizes):
        for count in (exact, limited, few):
            count.update(part)
    assert exact.counts().tolist() == expected and expected[1] == 1
    assert exact.observations == 120
    assert limited.counts().tolist() == [min(5, number) for number in expected]
    assert few.counts().tolist() == [expected[0], expected[4]]


def test_values_are_told_apart_as_float32():
    count = distinct_values.DistinctValues(1, 10)
    count.update(torch.tensor([[0.1], [0.1 + 1e-15], [0.1 + 1e-7]], dtype=torch.float64))
    assert count.counts().tolist() == [2]
    with pytest.raises(BinaryViTError, match="not a number"):
        count.update(torch.tensor([[float("nan")]]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_of_a_model_equal_a_direct_computation(variant, device):
    model, batch = model_of(variant).to(device), images(9)
    table = distinct_values.distinct_values(model, batch.split(4), channels=100)
    assert_frame_equal(table, distinct_values.distinct_values(model, [batch], channels=100))
    path, block = "stages.0.blocks.0", model.stages[0].blocks[0]
    with torch.no_grad():
        tokens = model.stages[0].embed_tokens(batch.to(device), model.cls_token)
        after_norm = block.norm1(tokens)
        signs = sign(after_norm + block.attn.q.binarize.shift)
        integers = (signs @ sign(block.attn.q.linear.centred_weight()).T).round().long().flatten(0, 1)
        unit = block.attn.q(after_norm).float().flatten(0, 1)
        output = block(tokens).float().flatten(0, 1)
    for step, values in [
        ("query: binary product", integers),
        # One-to-one, but where gamma is zero.
        ("query: batch norm", integers * block.attn.q.norm.batch_norm.weight.bool()),
        ("query: RPReLU", unit),
        ("block: output", output),
    ]:
        numbers = [len(set(column)) for column in values.T.tolist()]
        row = row_of(table, path, step)
        assert row[["minimum", "median", "maximum"]].tolist() == [min(numbers), np.median(numbers), max(numbers)]
        assert (row["channels"], row["observations"]) == values.shape[::-1]
    products = table[table["bound"].notna()]
    assert len(products) == 5 * sum(len(stage.blocks) for stage in model.stages)
    assert (products["maximum"] <= products["bound"]).all()
    assert row_of(table, path, "query: binary product")["bound"] == block.attn.q.linear.in_features + 1
    assert row_of(table, path, "context: binary product")["bound"] == 2 * (17 if "reactdeit" in variant else 4) + 1
    assert (table["maximum"] <= table["observations"]).all()
    assert hooks_of(model) == []


def test_one_bit_grows_as_arithmetic_says():
    model, batch = model_of(), images(9)
    table = distinct_values.distinct_values_from_one_bit(model, [batch], channels=100)
    assert_frame_equal(table, distinct_values.distinct_values_from_one_bit(model, batch.split(2), channels=100))
    for step in ("attention: input", "FFN: input"):
        assert (table[table["step"] == step]["maximum"] <= 2).all()
    products = table[table["step"] == "FFN 1: binary product"].set_index("block")
    sums = table[table["step"] == "FFN 1: + shortcut"].set_index("block")
    assert (sums["maximum"] <= 2 * products["bound"]).all()
    assert not table["step"].isin(distinct_values.RESIDUAL_STEPS).any()
    assert hooks_of(model) == []


def test_pooling_branches_of_signs_equal_a_direct_computation():
    model, batch = model_of(), images(9)
    block, kept = model.stages[0].blocks[0], []
    handle = block.norm2.register_forward_hook(lambda _, inputs, output: kept.append(output))
    with torch.no_grad():
        model(batch)
        handle.remove()
        y = (kept[0] >= 0).double() * 2 - 1
        grid = y.transpose(1, 2).reshape(9, 8, 4, 4)
        pooled = 0
        for name, (height, width) in POOLING_WINDOWS.items():
            average = F.avg_pool2d(grid, (height, width), 1, (height // 2, width // 2))
            affine = block.pool.affines[name]
            pooled = pooled + average * affine.alpha[:, None, None] + affine.beta[:, None, None]
        added = pooled.flatten(2).transpose(1, 2) + block.affine2(block.mlp(y))
    table = distinct_values.distinct_values_from_one_bit(model, [batch], channels=100)
    numbers = [len(set(pooled[:, channel].float().flatten().tolist())) for channel in range(8)]
    row = row_of(table, "stages.0.blocks.0", "pooling branches")
    assert row[["minimum", "median", "maximum"]].tolist() == [min(numbers), np.median(numbers), max(numbers)]
    numbers = [len(set(added[..., channel].float().flatten().tolist())) for channel in range(8)]
    assert row_of(table, "stages.0.blocks.0", distinct_values.ADDED)["maximum"] == max(numbers)


def test_without_pooling_branches_and_with_a_class_token():
    table = distinct_values.distinct_values_from_one_bit(
        model_of("reactdeit_micro_patch4_32"), [images()], channels=100
    )
    assert set(table["step"]) == set(distinct_values.STEPS) - {"pooling branches", *distinct_values.RESIDUAL_STEPS}
    assert row_of(table, "stages.0.blocks.0", "FFN: input")["observations"] == 6 * 17


def test_values_read_are_those_of_means_of_signs():
    model, batch = model_of(), images(9)
    with torch.no_grad():
        means = sign(model.double().forward_features(batch.double())).mean(1).float()
    numbers = [len(set(channel)) for channel in means.T.tolist()]
    for batches in ([batch], batch.split(2)):
        (row,) = distinct_values.values_read(model, batches).itertuples()
        assert (row.tokens, row.observations, row.channels) == (4, 9, means.shape[1])
        assert (row.minimum, row.median, row.maximum) == (min(numbers), np.median(numbers), max(numbers))
    (cls,) = distinct_values.values_read(model_of("reactdeit_micro_patch4_32"), [images()]).itertuples()
    assert (cls.tokens, cls.observations) == (1, 6) and cls.maximum <= 2, "a token by itself has one bit"
    with pytest.raises(BinaryViTError, match="no image"):
        distinct_values.values_read(model, [])


def test_models_without_binary_blocks_and_no_images_are_refused():
    with pytest.raises(BinaryViTError, match="no binary blocks"):
        distinct_values.distinct_values(timm.create_model("deit_micro_patch4_32"), [images()])
    for count in (distinct_values.distinct_values, distinct_values.distinct_values_from_one_bit):
        with pytest.raises(BinaryViTError, match="no image"):
            count(model_of(), [])
