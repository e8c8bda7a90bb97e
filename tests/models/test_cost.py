"""What models cost, against the method's table and against counting by hand."""

import pytest
import timm
import torch

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.cost import cost, summary
from binaryvit.models.ladder import LADDER
from binaryvit.models.vision_transformer import BinaryVisionTransformer

# parameters, binary weights, MB, BOPs G, FLOPs e8, OPs e8
TABLE = {
    "deit_small_patch16_224": (22_050_664, 0, 88.20, 0, 46.0, 46.0),
    "reactdeit_small_patch16_224": (22_294_900, 21_233_664, 6.90, 4.541, 0.582, 1.291),
    "reactdeit_small_patch16_224_avg_pool": (22_294_132, 21_233_664, 6.90, 4.516, 0.582, 1.288),
    "reactdeit_small_patch16_224_avg_pool_multi_branch": (22_330_996, 21_233_664, 7.04, 4.516, 0.582, 1.288),
    "reactdeit_small_patch16_224_avg_pool_multi_branch_ls": (22_349_428, 21_233_664, 7.12, 4.516, 0.582, 1.288),
    "binaryvit_small_patch4_224": (22_491_771, 21_196_800, 7.83, 3.822, 0.102, 0.699),
    "binaryvit_small_patch4_224_some_fp": (22_488_635, 20_508_672, 10.48, 3.745, 0.872, 1.457),
}


@pytest.mark.parametrize("variant", TABLE)
def test_the_methods_table(variant):
    parameters, binary_weights, megabytes, bops, flops, ops = TABLE[variant]
    with torch.device("meta"):
        model = timm.create_model(variant)
    counted = cost(model)
    assert counted.parameters == parameters
    assert counted.binary_weights == binary_weights
    assert counted.bytes / 1e6 == pytest.approx(megabytes, abs=0.005)
    assert counted.bops / 1e9 == pytest.approx(bops, abs=0.0005)
    # The table's last digits are rounded from rounded terms.
    assert counted.flops / 1e8 == pytest.approx(flops, abs=0.0012 if flops < 40 else 0.05)
    assert counted.ops / 1e8 == pytest.approx(ops, abs=0.0012 if ops < 40 else 0.05)


def test_the_table_covers_the_ladder():
    assert tuple(TABLE) == LADDER["small"]


def test_by_hand():
    """One block on a 2 x 2 grid of 4 channels: every operation written out."""
    model = BinaryVisionTransformer(
        img_size=4, patch_size=2, num_classes=3, embed_dims=4, depths=1, num_heads=2, mlp_ratios=2
    )
    counted = cost(model)
    tokens, channels, hidden = 4, 4, 8
    linears = tokens * (4 * channels * channels + 2 * channels * hidden)
    products = 2 * tokens * tokens * channels
    assert counted.bops == linears + products
    assert counted.flops == tokens * channels * (3 * 2 * 2) + channels * 3
    assert counted.ops == counted.bops / 64 + counted.flops
    per_token = {
        "shifts": 4 * channels + 3 * channels + channels + hidden,  # q k v proj; Q K V; fc1; fc2
        "norms": 2 * (4 * channels + channels + hidden + channels + 3 * channels),
        "rprelus": 4 * (4 * channels + channels + hidden + channels),
        "unit shortcuts": 4 * channels + hidden + channels,
        "the average back to the channels": hidden,
        "context shortcuts": 3 * channels,
        "affines": 2 * 2 * channels,
        "residuals": 2 * channels,
        "pooling branches": (16 + 8 + 4) * channels,
        "token mean": channels,
    }
    softmax = 5 * 2 * tokens * tokens
    assert counted.elementwise == tokens * sum(per_token.values()) + softmax


def test_every_parameter_is_counted_once_and_layers_are_named_by_module_path():
    model = timm.create_model("binaryvit_micro_patch2_32")
    layers = cost(model).layers
    assert layers["parameters"].sum() == sum(p.numel() for p in model.parameters())
    modules = dict(model.named_modules())
    assert all(name in modules or name == "(model)" for name in layers.index)
    assert layers.loc["stages.0.blocks.0.attn.q.linear", "binary_weights"] == 64 * 64
    assert layers.loc["stages.1.embed.proj", "bytes"] == 64 * 128 * 4 / 8


@pytest.mark.parametrize(
    ("bits", "binary_products"), [((1, 1), True), ((1, 32), False), ((32, 1), False), ((32, 32), False)]
)
def test_products_are_binary_only_where_both_operands_are(bits, binary_products):
    args = {"weight_bits": bits[0], "activation_bits": bits[1]}
    full, model = (timm.create_model("binaryvit_micro_patch2_32", **kwargs) for kwargs in ({}, args))
    counted, reference = cost(model), cost(full)
    assert counted.bops + counted.flops == reference.bops + reference.flops
    assert (counted.binary_weights > 0) == (bits[0] == 1)
    linear_products = counted.layers.filter(like=".attn.q", axis=0)["bops"].sum()
    assert (linear_products > 0) == binary_products
    attention_products = counted.layers.loc[counted.layers.kind == "BinaryAttention", "bops"].sum()
    assert (attention_products > 0) == (bits[1] == 1)


def test_larger_images_cost_more_and_the_model_is_left_untouched():
    model = timm.create_model("binaryvit_micro_patch2_32", img_size=64).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert cost(model).bops > 4 * cost(timm.create_model("binaryvit_micro_patch2_32")).bops
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_summary_ends_with_totals():
    model = timm.create_model("deit_micro_patch4_32")
    table, counted = summary(model), cost(model)
    assert table.index[-1] == "total"
    assert table.loc["total", "parameters"] == counted.parameters
    assert table.loc["total", "flops"] == counted.flops > 0


@pytest.mark.parametrize(
    ("family", "parameters", "bops", "ops"), [("small", 1.01, 0.85, 0.54), ("micro", 1.08, 0.86, 0.70)]
)
def test_the_pyramid_costs_this_share_of_the_columnar_model(family, parameters, bops, ops):
    """The micro family is a scale model: its ladder compares what the paper's compares."""
    with torch.device("meta"):
        columnar, pyramid = (timm.create_model(name) for name in LADDER[family][4:6])
    costs = cost(columnar), cost(pyramid)
    shares = [getattr(costs[1], name) / getattr(costs[0], name) for name in ("parameters", "bops", "ops")]
    assert shares == pytest.approx([parameters, bops, ops], abs=0.006)
    assert pyramid.stages[0].dim == 64
    blocks = [block for stage in pyramid.stages for block in stage.blocks]
    assert all(block.attn.q.linear.in_features == 64 * block.attn.num_heads for block in blocks)
    assert pyramid.stages[-2].grid_size == columnar.stages[0].grid_size


def test_averages_of_a_pyramid_by_hand():
    model = BinaryVisionTransformer(
        img_size=8, patch_size=2, embed_dims=(4, 8), depths=(1, 1), num_heads=(2, 2), mlp_ratios=2, reductions=(2, 1)
    )
    elementwise = cost(model).layers["elementwise"]
    assert elementwise["stages.1.embed"] == 16 * 4 + 4 * 8, "the average of all tokens, and its addition"
    averages, additions, softmax = 16 * 4, 3 * 16 * 4, 5 * 2 * 16 * 4
    assert elementwise["stages.0.blocks.0.attn"] == averages + additions + softmax
