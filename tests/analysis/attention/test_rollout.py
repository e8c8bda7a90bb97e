"""Attention rollout against matrices over pixels, written out: every token is the pixels it stands for."""

import numpy as np
import pytest
import timm
import torch
from helpers.attention_models import COLUMNAR, PYRAMID, TEACHER, create, images_of

from binaryvit.analysis.attention.capture import AttentionCapture, AttentionMaps
from binaryvit.analysis.attention.rollout import output_by_place, pooling_weights, rollout
from binaryvit.errors import BinaryViTError

SIDE = 16


def cell_of_pixels(grid):
    """The token of a `grid` x `grid` grid that each of the 16 x 16 pixels belongs to."""
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    return rows // (SIDE // grid) * grid + columns // (SIDE // grid)


def pixel_matrix(each, image):
    """One block's (A + I) / 2 between pixels: a token is the average of its pixels, a reduced key of a larger cell."""
    attention = each.used[image].double().numpy().mean(0)
    query, key = cell_of_pixels(each.grid_size), cell_of_pixels(each.key_grid_size)
    pixels = SIDE**2
    matrix = np.zeros((pixels, pixels))
    for pixel in range(pixels):
        itself = (query == query[pixel]) / (query == query[pixel]).sum()
        row = attention[query[pixel]]
        attended = sum(row[k] * (key == k) / (key == k).sum() for k in range(len(row)))
        matrix[pixel] = itself if row.sum() == 0 else 0.5 * itself + 0.5 * attended / row.sum()
    return matrix


@pytest.mark.parametrize("arguments", [{}, {"reductions": (4, 2)}, {"depths": (2, 1), "reductions": (1, 1)}])
def test_a_pyramids_rollout_is_the_product_of_pixel_matrices(arguments):
    model, images = create((PYRAMID[0], PYRAMID[1] | arguments)), images_of(2)
    maps = AttentionCapture(model)(images)
    rows = rollout(maps, pooling_weights(model, maps[-1]))
    assert rows.shape == (2, 1, 64)
    assert any((each.used.sum((1, 3)) == 0).any() for each in maps) or arguments  # a row that attends nothing
    for image in range(2):
        expected = np.full(SIDE**2, 1 / SIDE**2)
        for each in reversed(maps):
            expected = expected @ pixel_matrix(each, image)
        patch = SIDE // maps[0].grid_size
        places = output_by_place(model, maps)[image] / SIDE**2
        np.testing.assert_allclose(np.kron(places, np.ones((patch, patch))).ravel(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", [COLUMNAR, TEACHER])
def test_a_columnar_rollout_is_the_product_over_tokens(variant):
    model, images = create(variant), images_of(2)
    maps = AttentionCapture(model)(images)
    rows = rollout(maps, torch.eye(17))
    for image in range(2):
        product = np.eye(17)
        for each in maps:
            attention = each.used[image].double().numpy().mean(0)
            total = attention.sum(1, keepdims=True)
            block = np.where(total > 0, (attention / np.where(total > 0, total, 1) + np.eye(17)) / 2, np.eye(17))
            product = block @ product
        np.testing.assert_allclose(rows[image], product, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rollout(maps, pooling_weights(model, maps[-1]))[:, 0], rows[:, 0])  # reads the CLS token


@pytest.mark.parametrize("variant", [COLUMNAR, PYRAMID, TEACHER])
def test_every_row_sums_to_one(variant):
    maps = AttentionCapture(create(variant))(images_of(3))
    rows = rollout(maps, torch.eye(maps[-1].used.shape[-2]))
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:2], dtype=torch.float64))
    assert (rows >= 0).all()


def test_pooling_is_the_models():
    for variant, expected in ((COLUMNAR, [1.0] + [0.0] * 16), (PYRAMID, [1 / 16] * 16)):
        model = create(variant)
        maps = AttentionCapture(model)(images_of(1))
        assert pooling_weights(model, maps[-1]).tolist() == [expected]
    averaging = timm.create_model(TEACHER[0], **TEACHER[1], global_pool="avg").eval()
    maps = AttentionCapture(averaging)(images_of(1))
    assert pooling_weights(averaging, maps[-1]).tolist() == [[0.0] + [1 / 16] * 16]


def test_attention_to_one_key_is_seen_where_it_is():
    used = torch.zeros(1, 1, 16, 4)
    used[..., 3] = 0.7  # all queries of a 4 x 4 grid look at the lower right cell of 2 x 2
    maps = [AttentionMaps("a.attn", used, used, 0.7)]
    grid = rollout(maps, torch.full((1, 16), 1 / 16)).reshape(4, 4)
    expected = np.full((4, 4), 0.5 / 16)
    expected[2:, 2:] += 0.5 / 4
    np.testing.assert_allclose(grid, expected)


def swin_rollout():
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    maps = AttentionCapture(model)(images_of(1, 224))
    return rollout(maps, pooling_weights(model, maps[-1]))


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: rollout([], torch.eye(4)), "There are no attention maps"),
        (swin_rollout, "within windows"),
    ],
)
def test_mistakes_are_told_in_a_sentence(action, sentence):
    with pytest.raises(BinaryViTError, match=sentence):
        action()
