"""Attention capture and its statistics, against computations written separately on the model's own activations."""

import math

import numpy as np
import pytest
import timm
import torch
from helpers.attention_models import COLUMNAR, PYRAMID, TEACHER, create, images_of
from timm.utils import AttentionExtract

import binaryvit  # noqa: F401 - registers the models
from binaryvit.analysis.attention.capture import (
    AttentionCapture,
    AttentionMaps,
    attention_statistics,
    evenness_of_chance,
    select,
    statistics_of,
)
from binaryvit.errors import BinaryViTError


@pytest.mark.parametrize("variant", [COLUMNAR, PYRAMID])
def test_binary_maps_are_those_of_the_products(variant, device):
    model, images = create(variant).to(device), images_of(3).to(device)
    seen = {}
    for name, module in model.named_modules():
        if name.endswith(("binarize_q", "binarize_k", "binarize_v", ".attn.norm")):
            module.register_forward_hook(lambda _, inputs, output, n=name: seen.update({n: (inputs[0], output)}))
    with torch.no_grad():
        model(images)
    maps = AttentionCapture(model)(images)
    attentions = {name: module for name, module in model.named_modules() if name.endswith(".attn")}
    assert [each.layer for each in maps] == list(attentions)
    for each in maps:
        attention = attentions[each.layer]
        q, k, v = (seen[f"{each.layer}.binarize_{letter}"][1].sign() for letter in "qkv")
        width = q.shape[-1] // attention.num_heads
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("bqc,bkc->bqk", q[..., part], k[..., part]) / math.sqrt(width)
            expected = scores.exp() / scores.exp().sum(-1, keepdim=True)
            torch.testing.assert_close(each.probabilities[:, head], expected)
            level = attention.binarize_attn.level.item()
            used = np.where(expected.cpu().numpy() > level / 2, np.float32(level), 0)
            assert np.array_equal(each.used[:, head].cpu().numpy(), used)
            context = torch.einsum("bqk,bkc->bqc", each.used[:, head], v[..., part])
            torch.testing.assert_close(seen[f"{each.layer}.norm"][0][..., part], context)
        assert each.level == pytest.approx(level)


def test_reduced_keys_have_their_own_grid():
    maps = AttentionCapture(create(PYRAMID))(images_of(2))
    assert [(each.grid_size, each.key_grid_size) for each in maps] == [(8, 4), (4, 4), (4, 4)]
    assert [each.used.shape[1] for each in maps] == [1, 2, 2]


def test_a_teachers_fused_attention_becomes_visible_and_equal():
    model, images = create(TEACHER), images_of(2)
    assert model.blocks[0].attn.fused_attn
    maps = AttentionCapture(model)(images)
    qkv = []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda _, inputs, output: qkv.append(output))
    with torch.no_grad():
        model(images)
    assert [each.layer for each in maps] == ["blocks.0.attn", "blocks.1.attn"]
    for each, output in zip(maps, qkv, strict=True):
        q, k, _ = output.unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(each.used, torch.softmax(q @ k.mT / math.sqrt(8), dim=-1))
        assert each.used is each.probabilities and each.level is None
        assert (each.prefix_tokens, each.grid_size) == (1, 4)


def test_full_precision_activations_show_their_probabilities():
    model = create((PYRAMID[0], PYRAMID[1] | {"activation_bits": 32}))
    maps = AttentionCapture(model)(images_of(1))
    assert all(each.level is None and torch.equal(each.used, each.probabilities) for each in maps)
    assert attention_statistics(model, [images_of(1)])[["density", "level", "kept"]].isna().all(axis=None)


def test_agrees_with_timms_extraction():
    model, images = create(COLUMNAR), images_of(2)
    maps = {f"{each.layer}.attn_drop": each.used for each in AttentionCapture(model)(images)}
    with torch.no_grad():
        theirs = AttentionExtract(model, method="hook")(images)
    assert maps.keys() == theirs.keys()
    assert all(torch.equal(maps[name], theirs[name]) for name in maps)


@pytest.mark.parametrize("variant", [COLUMNAR, PYRAMID, TEACHER])
def test_the_model_is_left_as_it_was(variant):
    model, images = create(variant).train(), images_of(2)

    def trace():
        hooks = [(m._forward_hooks, m._forward_pre_hooks, m.training) for m in model.modules()]
        return str(hooks), [getattr(m, "fused_attn", None) for m in model.modules()], list(vars(model))

    before, weights = trace(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention_statistics(model, [images])
    assert trace() == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def direct_statistics(each):
    """One layer's statistics row by row in plain Python; lists over heads."""
    probabilities, used = each.probabilities.double().cpu().numpy(), each.used.cpu().numpy()
    result = {"entropy": [], "density": [], "kept": []}
    for head in range(used.shape[1]):
        flat = (values[:, head].reshape(-1, used.shape[-1]) for values in (probabilities, used))
        rows = list(zip(*flat, strict=True))
        result["entropy"].append(sum(-sum(p * math.log(p) for p in row if p > 0) for row, _ in rows) / len(rows))
        result["density"].append(sum(sum(u != 0 for u in row) for _, row in rows) / (len(rows) * used.shape[-1]))
        result["kept"].append(sum(sum(p for p, u in zip(*row, strict=True) if u != 0) for row in rows) / len(rows))
    return result


@pytest.mark.parametrize("variant", [COLUMNAR, PYRAMID])
def test_statistics_equal_a_direct_computation(variant, device):
    model, images = create(variant).to(device), images_of(5).to(device)
    frame = attention_statistics(model, images.split(2))
    maps = AttentionCapture(model)(images)
    assert len(frame) == sum(each.used.shape[1] for each in maps)
    for block, each in enumerate(maps):
        rows = frame[frame["layer"] == each.layer]
        for name, values in direct_statistics(each).items():
            assert rows[name].tolist() == pytest.approx(values, rel=1e-5, abs=1e-6), name
        assert rows["head"].tolist() == list(range(each.used.shape[1])) and set(rows["block"]) == {block}
        assert set(rows["level"]) == {each.level}
        assert set(rows["queries"]) == {each.used.shape[-2]} and set(rows["keys"]) == {each.used.shape[-1]}
        np.testing.assert_allclose(rows["evenness"] * math.log(each.used.shape[-1]), rows["entropy"])
    # The models were made so that there is something to see.
    assert frame["density"].between(0.001, 0.999).any()


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [6, 1]])
def test_statistics_do_not_depend_on_the_batch_size(sizes):
    model, images = create(PYRAMID).double(), images_of(7).double()
    whole = attention_statistics(model, [images])
    parts = attention_statistics(model, images.split(sizes))
    np.testing.assert_allclose(
        parts.select_dtypes("number"), whole.select_dtypes("number"), rtol=1e-12, atol=1e-12, equal_nan=True
    )
    assert parts["images"].equals(whole["images"]) and (parts["density"] == whole["density"]).all()


def test_known_maps_have_known_statistics():
    probabilities = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]).reshape(1, 1, 2, 4)
    used = 0.8 * (probabilities > 0.4)
    row = statistics_of([([AttentionMaps("a.attn", probabilities, used, level=0.8)], 1)]).iloc[0]
    assert row["entropy"] == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert row["evenness"] == pytest.approx(0.75)
    assert (row["density"], row["kept"]) == (0.25, 0.5)


@pytest.mark.parametrize(("keys", "channels"), [(16, 64), (65, 64), (64, 32)])
def test_chance_is_as_even_as_attention_between_random_signs(keys, channels):
    q, k = (torch.randn(2000, size, channels).sign() for size in (1, keys))
    rows = (q @ k.transpose(1, 2) / math.sqrt(channels)).softmax(-1).unsqueeze(1)
    measured = statistics_of([([AttentionMaps("a.attn", rows, rows, level=None)], 2000)]).iloc[0]
    assert evenness_of_chance(keys) == pytest.approx(measured["evenness"], abs=0.01)
    assert math.isnan(evenness_of_chance(1))


def test_attention_of_a_level_below_zero_is_off():
    model = create(COLUMNAR)
    model.stages[0].blocks[0].attn.binarize_attn.level.data.fill_(-1.0)
    frame = attention_statistics(model, [images_of(1)])
    first = frame[frame["block"] == 0]
    assert set(first["level"]) == {-1.0} and set(first["density"]) == {0.0}
    maps = AttentionCapture(model)(images_of(1))
    assert [each.off for each in maps] == [True] + [False] * (len(maps) - 1)
    assert not maps[0].used.any() and maps[0].probabilities.all()


@pytest.mark.parametrize("name", ["pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_models_of_timm_are_seen_too(name):
    model = timm.create_model(name, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    frame = attention_statistics(model, [images_of(1, 224)])
    assert frame["heads"].tolist() == [1] * 1 + [2] * 2 + [4] * 4 + [8] * 8
    assert frame["evenness"].between(0, 1).all() and frame["density"].isna().all()


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: AttentionCapture(timm.create_model("resnet18")), "ResNet has no attention to look at"),
        (lambda: AttentionCapture(create(PYRAMID))(images_of(1, 32)), "32 x 32 pixels and the model takes 16 x 16"),
        (lambda: AttentionCapture(create(TEACHER))(images_of(1, 32)), "32 x 32 pixels and the model takes 16 x 16"),
        (lambda: AttentionCapture(create(TEACHER))(images_of(1)[0]), r"not a tensor of shape \(3, 16, 16\)"),
        (lambda: AttentionCapture(create(TEACHER))(images_of(0)), "choose at least one image"),
        (lambda: attention_statistics(create(TEACHER), []), "There are no images"),
        (lambda: select(AttentionCapture(create(PYRAMID))(images_of(1)), 3, 0), "no block 3: the model has 3, 0 to 2"),
        (lambda: select(AttentionCapture(create(PYRAMID))(images_of(1)), 0, 1), "no head 1 in block 0 .*has 1, 0 to 0"),
        (lambda: AttentionMaps("a", torch.ones(1, 1, 6, 6), torch.ones(1, 1, 6, 6)).grid_size, "form no square grid"),
    ],
)
def test_mistakes_are_told_in_a_sentence(action, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        action()


def test_selection_counts_from_either_end():
    maps = AttentionCapture(create(PYRAMID))(images_of(1))
    assert select(maps, -1, -1) == (maps[2], 1)
    assert select(maps, 1, 0) == (maps[1], 0)
